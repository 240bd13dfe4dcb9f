"""Data as it comes: compressed, in columns, in arrays, in directories, in encodings."""

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import pickle
import random

import pytest

from lmjax.config.data import FieldsConfig, SourceConfig
from lmjax.data.formats.registry import (
    find_input_file,
    open_examples,
    open_input_file,
)
from lmjax.data.sources import arrow
from lmjax.data.sources.registry import open_splits
from lmjax.errors import UserError

pa = pytest.importorskip("pyarrow", reason="pip install 'lmjax[data]'")
pq = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")

TEXTS = [f"text {i}, \u00e9 \u4e2d " + "x" * (i * 37 % 211) for i in range(300)]
RECORDS = [{"body": text, "n": i} for i, text in enumerate(TEXTS)]


def open_text(path, source="text", split="train", document="line", **more):
    more = {"field": "body", "valid_path": "x", **more}
    config = SourceConfig(source=source, path=str(path), document=document, **more)
    return open_splits(config, splits=(split,)).get(split)


def open_all(path, **more):
    config = SourceConfig(path=str(path), field="body", **more)
    return open_splits(config, splits=("train", "valid", "test"))


def read(documents):
    return [documents[i] for i in range(len(documents))]


def table(delimiter):
    out = io.StringIO()
    rows = csv.writer(out, delimiter=delimiter, lineterminator="\r\n")
    rows.writerows([["body", "n"], *([r["body"], r["n"]] for r in RECORDS)])
    return out.getvalue().encode()


def parquet(records=RECORDS, **options):
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), out, **options)
    return out.getvalue()


def arrow_file(new=pa.ipc.new_file, size=7):
    records, out = pa.Table.from_pylist(RECORDS), io.BytesIO()
    with new(out, records.schema) as writer:
        writer.write_table(records, max_chunksize=size)
    return out.getvalue()


FORMATS = {
    "text": "\n".join(TEXTS).encode(),
    "jsonl": "\n\n".join(map(json.dumps, RECORDS)).encode(),
    "jsonl array": json.dumps(RECORDS).encode(),
    "jsonl pretty array": json.dumps(RECORDS, indent=4, ensure_ascii=False).encode(),
    "csv": table(","),
    "tsv": table("\t"),
}
COLUMNS = {
    "parquet": parquet(),
    "parquet of groups": parquet(row_group_size=41, compression="zstd"),
    "parquet of a dictionary": parquet(use_dictionary=True, data_page_size=100),
    "arrow": arrow_file(),
    "arrow stream": arrow_file(new=pa.ipc.new_stream, size=1000),
}
COMPRESSIONS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
    # several compressed files, one after another, are one
    "two.gz": lambda raw: gzip.compress(raw[:99]) + gzip.compress(raw[99:]),
    "two.zst": lambda raw: zstandard.compress(raw[:99]) + zstandard.compress(raw[99:]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_compressed_files_are_read_as_those_inside(tmp_path, copies, name):
    source, content = name.split()[0], b"\xef\xbb\xbf" + FORMATS[name]
    found = {"": content}
    found |= {end: pack(content) for end, pack in COMPRESSIONS.items()}
    for end, packed in found.items():
        (tmp_path / f"a.{end}").write_bytes(packed)
        documents = open_text(tmp_path / f"a.{end}", source)
        fingerprint = documents.fingerprint()
        assert not [*copies.rglob("*.plain")], "a store is found by the fingerprint"
        assert [t.strip() for t in read(documents)] == [t.strip() for t in TEXTS], end
        assert documents[7].strip() == TEXTS[7].strip()
        again = pickle.loads(pickle.dumps(documents))
        assert again[299] == documents[299] and again.fingerprint() == fingerprint
        assert documents.size(5) == len(documents[5].encode())
        for copy in copies.rglob("*.plain"):
            copy.unlink()
    if source == "text":
        whole = open_text(tmp_path / "a.zst", document="file")
        assert whole[0] == content.decode("utf-8-sig")
        assert whole.size(0) == len(content)


def test_compressed_files_of_every_format_of_examples(tmp_path):
    squad = {"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "1"}]}]}]}
    contents = {
        "jsonl": b'{"a": "x"}\n{"a": "y"}\n',
        "csv": b"a\nx\ny\n",
        "tsv": b"a\tb\nx\t1\ny\t2\n",
        "conll": b"x O\n\ny O\n",
        "squad": json.dumps(squad).encode(),
    }
    plain: list[str] = []
    for source, content in contents.items():
        for end in ("", ".gz", ".zst"):
            packed = COMPRESSIONS[end[1:]](content) if end else content
            (tmp_path / f"{source}{end}").write_bytes(packed)
            config = SourceConfig(
                source=source,
                path=str(tmp_path / f"{source}{end}"),
                columns=("a", "tags"),
                valid_path="x",
            )
            examples = open_examples(config, split="train")
            found = [*map(str, read(examples))]
            plain = found if not end else plain
            assert found == plain and len(found) == (1 if source == "squad" else 2)
    for name in ("p.de", "p.en"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    fields = FieldsConfig(source="de.gz", target="en.gz")
    config = SourceConfig(
        source="parallel", path=str(tmp_path / "p"), valid_path="x", fields=fields
    )
    pairs = read(open_examples(config, split="train"))
    assert pairs[1] == {"de.gz": "two", "en.gz": "two"}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_are_read_in_order_and_at_random(tmp_path, name, monkeypatch):
    (tmp_path / "a").write_bytes(COLUMNS[name])
    (tmp_path / "b").write_bytes(COLUMNS[name])
    for rows in (1 << 14, 10):
        monkeypatch.setattr(arrow, "_MAX_ROWS", rows)
        texts = open_text(tmp_path / "?", name.split()[0])
        assert read(texts) == TEXTS * 2
        order = random.Random(0).sample(range(600), 60)
        again = pickle.loads(pickle.dumps(texts))
        assert [again[i] for i in order] == [(TEXTS * 2)[i] for i in order]
    assert texts.size(30) == len(TEXTS[30].encode())
    config = SourceConfig(source="parquet", path=str(tmp_path / "?"))
    train, valid = (open_examples(config, split=s) for s in ("train", "valid"))
    assert valid[1] == RECORDS[20] and train[0] == RECORDS[1]
    assert train.where(299).endswith("b: row 16")
    with pytest.raises(IndexError):
        texts[600]


def test_a_stream_of_columns_is_decoded_once(tmp_path, monkeypatch):
    """Also by what reads ever further rows of one large row group."""
    (tmp_path / "a").write_bytes(parquet(row_group_size=300))
    monkeypatch.setattr(arrow, "_MAX_ROWS", 10)
    texts = open_text(tmp_path / "a", "parquet")
    decoded, opened = [], arrow._open_parquet

    def count(*args):
        table = opened(*args)

        def read_part(*part):
            for batch in table.read(*part):
                decoded.append(batch.num_rows)
                yield batch

        return table._replace(read=read_part)

    monkeypatch.setattr(arrow, "_open_parquet", count)
    assert [texts[i] for i in range(0, 300, 7)] == TEXTS[::7]
    assert sum(decoded) == 300 and max(decoded) == 10


def test_fields_of_columns_are_those_of_json(tmp_path):
    """With names of classes as `datasets` writes them, without images."""
    features = {
        "label": {"names": ["neg", "pos"], "_type": "ClassLabel"},
        "tags": {
            "feature": {"names": ["O", "B"], "_type": "ClassLabel"},
            "_type": "Sequence",
        },
    }
    records = [
        {
            "label": label,
            "tags": [0, 1],
            "image": {"bytes": b"\xff", "path": "a"},
            "answers": {"text": ["x"], "answer_start": [3]},
            "messages": [{"role": "user", "content": "hi"}],
        }
        for label in (1, -1, None)
    ]
    whole = pa.Table.from_pylist(records)
    noted = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(whole.replace_schema_metadata(noted), tmp_path / "a.parquet")
    config = SourceConfig(
        source="parquet", path=str(tmp_path / "a.parquet"), valid_path="x"
    )
    examples = read(open_examples(config, split="train"))
    assert [example["label"] for example in examples] == ["pos", None, None]
    assert examples[0] == {
        "label": "pos",
        "tags": ["O", "B"],
        "answers/text": ["x"],
        "answers/answer_start": [3],
        "messages": [{"role": "user", "content": "hi"}],
    }
    nested = [{"translation": {"en": text, "de": ""}} for text in TEXTS]
    (tmp_path / "n").write_bytes(parquet(nested))
    assert read(open_text(tmp_path / "n", "parquet", field="translation/en")) == TEXTS


@pytest.mark.parametrize(
    ("content", "field", "why"),
    [
        (COLUMNS["parquet"][:-100], "body", r"is cut off or damaged \(Parquet\)"),
        (COLUMNS["parquet"][:3000], "body", r"is cut off or damaged \(Parquet\)"),
        (COLUMNS["arrow"][:-100], "body", r"is cut off or damaged \(Arrow\)"),
        (COLUMNS["arrow stream"][:900], "body", r"is cut off or damaged \(Arrow\)"),
        (b"some text\n", "body", "is neither Parquet nor Arrow"),
        (b"", "body", "is neither Parquet nor Arrow"),
        (COLUMNS["parquet"], "bodi", r"no such column \(did you mean 'body'\?\); it"),
        (COLUMNS["arrow"], "text", "no such column; it has body, n"),
        (COLUMNS["parquet"], "n", "holds int64, not text; text is in body"),
    ],
)
def test_columns_that_cannot_be_read(tmp_path, content, field, why, caplog):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=why) as error:
        len(open_text(tmp_path / "a", "parquet", field=field))
    assert "\n" not in str(error.value) and str(tmp_path / "a") in str(error.value)
    (tmp_path / "b").write_bytes(parquet([{"body": "x", "bodi": "x", "text": "x"}]))
    if field == "body":
        skip = open_text(tmp_path / "?", "parquet", on_bad_file="skip")
        assert read(skip) == ["x"]
        assert "left out 1 of 2 files" in caplog.text


def test_damage_and_nulls_within_columns_name_the_row(tmp_path):
    raw = bytearray(parquet(row_group_size=100, compression="gzip"))
    middle = pq.ParquetFile(io.BytesIO(raw)).metadata.row_group(1).column(0)
    at = middle.data_page_offset
    raw[at : at + 400] = b"\xff" * 400
    (tmp_path / "a").write_bytes(raw)
    texts = open_text(tmp_path / "a", "parquet")
    assert texts[99] == TEXTS[99]
    with pytest.raises(UserError, match=r"a: row 101: cannot be read: ") as error:
        texts[100]
    assert "\n" not in str(error.value)
    assert texts[200] == TEXTS[200] and texts[0] == TEXTS[0]
    (tmp_path / "a").write_bytes(parquet([{"body": "a"}, {"body": None}]))
    (tmp_path / "b").write_text('{"body": "a"}\n{"body": null}\n')
    for name, source in (("a", "parquet"), ("b", "jsonl")):
        with pytest.raises(UserError, match=r"2: config\.data\.field.*holds null"):
            read(open_text(tmp_path / name, source))
        texts = open_text(tmp_path / name, source, on_bad_text="replace")
        assert read(texts) == ["a", ""]


@pytest.mark.parametrize(
    ("source", "content", "why"),
    [
        ("jsonl", '[{"body": "a"}, {"body": "b"', "a: not JSON in record 2"),
        ("jsonl", '[{"body": "a"} {"body": "b"}]', r"a: not JSON: '\{' follows after"),
        ("jsonl", '[{"body": "a"},', "a: record 2 is not a JSON object"),
        ("jsonl", '[{"body": "a"}, "b"]', "a: record 2 is not a JSON object"),
        ("jsonl", '[{"body": "a"}, {"bod": "b"}]', "a: record 2: .*no such field"),
        ("jsonl", "[" * 100_000, "a: record 1 is not a JSON object"),
        ("jsonl", '[{"body": ' + "[" * 100_000, "a: not JSON in record 1"),
        ("csv", "body,body\na,b\n", "a: line 1: the column 'body' is repeated"),
        ("csv", "body,n\na,1\nb\n", "a: line 3: has 1 columns, the header 2"),
        ("csv", 'body,n\n"a', "a: line 2: not a row of a table"),
        ("csv", "text,n\na,1\n", "a: record 1: .*no such field"),
    ],
)
def test_errors_in_arrays_and_tables(tmp_path, source, content, why):
    (tmp_path / "a").write_text(content)
    with pytest.raises(UserError, match=why) as error:
        read(open_text(tmp_path / "a", source))
    assert "\n" not in str(error.value)
    packed = gzip.compress(FORMATS["text"])
    for damaged in (packed[:-20], packed[:40] + b"\0" * 20 + packed[60:]):
        (tmp_path / "a").write_bytes(damaged)
        with pytest.raises(UserError, match=r"a is cut off or damaged \(gzip\)"):
            read(open_text(tmp_path / "a", "text"))


@pytest.mark.slow
def test_encodings(tmp_path):
    text = "caf\u00e9 na\u00efve\nsecond\n"
    for name in ("latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "utf-8-sig"):
        for end, pack in (("", bytes), (".gz", gzip.compress)):
            (tmp_path / f"a{end}").write_bytes(pack(text.encode(name)))
            path = tmp_path / f"a{end}"
            assert read(open_text(path, encoding=name)) == text.split("\n")[:2], name
            assert read(open_text(path, document="file", encoding=name)) == [text]
    (tmp_path / "a").write_bytes("l\u00e9,n\n\u4e2d,1\n".encode("gb18030"))
    config = SourceConfig(
        source="csv", path=str(tmp_path / "a"), valid_path="x", encoding="gb18030"
    )
    assert open_examples(config, split="train")[0] == {"l\u00e9": "\u4e2d", "n": "1"}
    (tmp_path / "b").write_bytes(b"good\n" * 300_000 + b"\x81\x30\x81 bad\n")
    with pytest.raises(UserError, match=r"b: not cp1252 at byte 1,500,000 \(0x81\)"):
        read(open_text(tmp_path / "b", encoding="cp1252"))
    lines = read(open_text(tmp_path / "b", encoding="cp1252", on_bad_text="replace"))
    assert lines[-1] == "\ufffd0\ufffd bad"
    skip = open_text(tmp_path / "*", encoding="cp1252", on_bad_file="skip")
    assert len(skip) == 4
    same = [open_text(tmp_path / "a.gz", encoding=e) for e in ("utf-8", "UTF8")]
    assert same[0].fingerprint() == same[1].fingerprint()
    for name, why in (("utf-9", "did you mean"), ("base64", "no encoding"), ("", "no")):
        config = SourceConfig(source="text", path="x", encoding=name)
        (problem,) = config.validate("config.data")
        assert (
            problem.startswith(f"config.data.encoding = {name!r}: ") and why in problem
        )


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_a_directory_in_place_of_a_glob(tmp_path, caplog):
    for name in ("b.jsonl", "deep/a.jsonl.gz", "c.json"):
        record = json.dumps({"body": name}).encode()
        write(tmp_path / name, gzip.compress(record) if "gz" in name else record)
    for name in ("README.md", ".hidden/x.jsonl", "dataset_info.json"):
        write(tmp_path / name, b"no records")
    caplog.set_level(logging.WARNING)
    documents = open_text(tmp_path, "jsonl")
    assert read(documents) == ["b.jsonl", "c.json", "deep/a.jsonl.gz"]
    (record,) = caplog.records
    assert "left out 3 of 6 files: .hidden/x.jsonl, README.md" in record.getMessage()
    with pytest.raises(UserError, match=r"no \.parquet or \.pq file; it has 2 \.json"):
        open_text(tmp_path, "parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no readable file; it has no file"):
        open_text(tmp_path / "empty")


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("parquet", "data/{}-00000-of-00042.parquet"),
        ("arrow", "{}/data-00000-of-00001.arrow"),
        ("jsonl", "corpus_{}.jsonl"),
    ],
)
def test_the_splits_of_a_directory(tmp_path, source, names):
    content = {**COLUMNS, "jsonl": FORMATS["jsonl"]}[source]
    for split, word in (("train", "train"), ("valid", "validation"), ("test", "test")):
        write(tmp_path / names.format(word), content)
        write(tmp_path / word / "cache-1f_00000_of_00002.arrow", content)
        opened = open_all(tmp_path, source=source, holdout_every=3)
        counts = {name: len(documents) for name, documents in opened.items()}
        if split == "train":
            assert counts == {"train": 200, "valid": 100}
        if split == "valid":
            assert counts == {"train": 300, "valid": 300}
    assert counts == dict.fromkeys(("train", "valid", "test"), 300)
    config = SourceConfig(source=source, path=str(tmp_path))
    assert len(open_examples(config, split="test")) == 300
    other = open_all(tmp_path, source=source, valid_path=str(tmp_path))
    assert len(other["train"]) == len(other["valid"]) == 300
    for file in tmp_path.rglob("*train*"):
        if file.is_file():
            file.unlink()
    for file in [*tmp_path.glob("train/*")]:
        file.unlink()
    with pytest.raises(UserError, match="those of valid, test, none of train"):
        open_all(tmp_path, source=source)


def test_names_that_only_some_files_have_are_no_splits(tmp_path):
    for name in ("training-guide.txt", "guide.txt", "test.txt"):
        write(tmp_path / name, b"a\nb\n")
    assert len(open_text(tmp_path)) == 6


def test_binary_files_given_as_text_say_what_reads_them(tmp_path):
    for source in ("parquet", "arrow"):
        write(tmp_path / "a", COLUMNS[source])
        for bad_text in ("error", "replace"):
            with pytest.raises(
                UserError, match=rf"a is .*data\.source='{source}' reads"
            ):
                len(open_text(tmp_path / "a", on_bad_text=bad_text))
    write(tmp_path / "a", "\u4e2d\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"a is UTF-16; .*data\.encoding='UTF-16'"):
        len(open_text(tmp_path / "a"))


def test_files_to_predict_of_every_kind(tmp_path):
    config = SourceConfig(source="conll", path="x", columns=("tokens",))
    contents = {
        "a.parquet": COLUMNS["parquet"],
        "a.jsonl.gz": gzip.compress(FORMATS["jsonl"]),
        "a.json": FORMATS["jsonl pretty array"],
        "a.csv.zst": zstandard.compress(FORMATS["csv"]),
    }
    for name, content in contents.items():
        write(tmp_path / name, content)
        kind, file = find_input_file(config, tmp_path / name, kind="", leaf="--input")
        examples = open_input_file(config, file, kind=kind, leaf="--input")
        assert [e["body"] for e in read(examples)] == TEXTS, name


HTML = """<!DOCTYPE html><html><head><title>No</title></head><body>
<h1>A   title</h1><script>var x = "no";</script><!-- no -->
<p>One <b>bold</b>
word &amp; more.</p><ul><li>first<li>second</ul><pre>a
  b</pre></body></html>"""
MARKDOWN = "# A   title\n\nOne **bold**\nword &amp; more.\n\n- first\n- second\n"


@pytest.mark.slow
def test_text_without_markup(tmp_path):
    pytest.importorskip("bs4", reason="pip install 'lmjax[data]'")
    text = "A title\nOne bold word & more.\nfirst\nsecond"
    for markup, content in (("html", HTML), ("markdown", MARKDOWN)):
        write(tmp_path / "a", content.encode())
        documents = open_text(tmp_path / "a", document="file", markup=markup)
        kept = open_text(tmp_path / "a", document="file")
        assert documents[0] == text + ("\na\n  b" if markup == "html" else "")
        assert kept[0] == content and kept.fingerprint() != documents.fingerprint()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    write(tmp_path / "a.zst", zstandard.compress(b"a\n"))
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(UserError, match=r"a\.zst .*zstandard.*lmjax\[data\]"):
        read(open_text(tmp_path / "a.zst"))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"lmjax\[data\]"):
        read(open_text(tmp_path / "a.zst", "parquet"))


def test_directories_of_the_library_datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    whole = datasets.Dataset.from_list(
        [{"body": text, "label": i % 2} for i, text in enumerate(TEXTS)],
        features=datasets.Features(
            body=datasets.Value("string"),
            label=datasets.ClassLabel(names=["even", "odd"]),
        ),
    )
    both = datasets.DatasetDict(train=whole, test=whole.select(range(5)))
    both.save_to_disk(str(tmp_path / "saved"), num_shards={"train": 3, "test": 1})
    whole.save_to_disk(str(tmp_path / "one"))
    opened = open_all(tmp_path / "saved", source="arrow")
    assert len(opened["train"]) == 285 and read(opened["test"]) == TEXTS[:5]
    assert read(open_text(tmp_path / "one", "arrow")) == TEXTS
    for i in range(3):
        name = f"train-{i:05}-of-00003.parquet"
        part = whole.shard(3, i, contiguous=True)
        part.to_parquet(str(tmp_path / "hub" / name))
    assert read(open_text(tmp_path / "hub", "parquet")) == TEXTS
    config = SourceConfig(source="parquet", path=str(tmp_path / "hub"))
    assert open_examples(config, split="train")[0]["label"] == "odd"
