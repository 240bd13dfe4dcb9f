"""Files of labelled examples: what is read, and what is said of mistakes."""

import dataclasses
import pickle
from pathlib import Path

import pytest

from lmjax.config.data import FieldsConfig, SourceConfig
from lmjax.data.formats.registry import find_file, open_examples, open_file
from lmjax.errors import ConfigError, UserError


def opened(source, path, split="train", **more):
    config = SourceConfig(source=source, path=str(path), valid_path="x", **more)
    return open_examples(config, split=split)


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "label": 1}\n\n{"text": "zwei", "n": null}\n')
    examples = opened("jsonl", path)
    assert [*map(dict, examples)] == [
        {"text": "one", "label": 1},
        {"text": "zwei", "n": None},
    ]
    assert examples.where(1) == f"{path}:3"
    assert pickle.loads(pickle.dumps(examples))[1]["text"] == "zwei"


@pytest.mark.parametrize(
    ("line", "why"),
    [("{", "not JSON"), ("[1]", "not a JSON object"), ("[" * 99999, "cannot be read")],
)
def test_a_line_that_is_no_object(tmp_path, line, why):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"a\.jsonl:2: {why}"):
        opened("jsonl", path)[1]


def test_csv_has_quotes_and_tsv_has_none(tmp_path):
    (tmp_path / "a.csv").write_text('\ufefftext,label\n"one,\ntwo",x\n\nthree,y\n')
    (tmp_path / "a.tsv").write_text('text\tlabel\n"one\tx\ntwo,"\ty\n')
    table = opened("csv", tmp_path / "a.csv")
    assert [*table] == [
        {"text": "one,\ntwo", "label": "x"},
        {"text": "three", "label": "y"},
    ]
    assert [table.where(i).rsplit(":")[-1] for i in range(2)] == ["2", "5"]
    rows = opened("tsv", tmp_path / "a.tsv")
    assert [row["text"] for row in rows] == ['"one', 'two,"']


@pytest.mark.parametrize(("source", "mark"), [("csv", ","), ("tsv", "\t")])
def test_only_line_ends_end_a_row(tmp_path, source, mark):
    path = tmp_path / "a"
    rows = [["text", "label"], ["a\u2028b\x85\x0b c", "x"], ["", "y"]]
    path.write_bytes("\r\n".join(map(mark.join, rows)).encode("utf-8-sig"))
    assert [*map(dict, opened(source, path))] == [
        {"text": "a\u2028b\x85\x0b c", "label": "x"},
        {"text": "", "label": "y"},
    ]


def test_quotes_that_do_not_pair_are_a_bad_example(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"a"b,x\nc,y\n"d,x\ne,y\n')
    rows = opened("csv", path)
    assert rows[1] == {"text": "c", "label": "y"}
    for i, line, lines in ((0, 2, ""), (2, 4, "lines 4 to 5 are ")):
        told = rf"a\.csv:{line}: {lines}not a row of a table"
        with pytest.raises(UserError, match=told):
            rows[i]
    path.write_text('"text,label\na,x\nb,y\n')
    with pytest.raises(UserError, match=r"a\.csv:1: lines 1 to 3 are not a row"):
        opened("csv", path)


def test_a_column_that_is_there_twice(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text\ttext\na\tb\n")
    with pytest.raises(UserError, match=r"a\.tsv:1: the column 'text' is there more"):
        opened("tsv", path)


def test_bytes_that_are_no_text_are_placed(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"text\tlabel\na\tx\nb\xff\ty\n")
    with pytest.raises(UserError, match=r"a\.tsv:3: not UTF-8 at byte 1"):
        opened("tsv", path)
    replaced = opened("tsv", path, on_bad_text="replace")
    assert replaced[1]["text"] == "b\ufffd"


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\r\n'.join([b"\xef\xbb\xbf", b""]))
    assert opened("jsonl", path)[0] == {"a": 1}


def test_a_row_of_another_width_is_a_bad_example_only_when_read(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\none\ntwo\tx\n")
    rows = opened("tsv", tmp_path / "a.tsv")
    assert rows[1] == {"text": "two", "label": "x"}
    with pytest.raises(UserError, match=r"a\.tsv:2: has 1 columns, the header 2"):
        rows[0]


CONLL = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O

Peter NNP I-NP I-PER
"""


def test_conll(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(CONLL)
    sentences = opened("conll", path)
    assert len(sentences) == 2
    assert sentences[0]["tokens"] == ["EU", "rejects"]
    assert sentences[0]["tags"] == ["I-ORG", "O"]
    assert sentences.where(1) == f"{path}:6"
    with pytest.raises(UserError, match=r"train\.txt:3: has 4 columns; .*names 2"):
        opened("conll", path, columns=("tokens", "tags"))[0]


def test_conll_by_tabs_and_with_windows_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    columns = ("tokens", "tags")
    path.write_bytes("New York\tB\r\n \t\r\na\u00a0b\tO\r\n".encode("utf-8-sig"))
    found = [e["tokens"] for e in opened("conll", path, columns=columns)]
    assert found == [["New York"], ["a\u00a0b"]]
    path.write_text("a\u00a0b  O \n")
    assert opened("conll", path, columns=columns)[0]["tokens"] == ["a\u00a0b"]


def test_parallel_files(tmp_path):
    (tmp_path / "train.en").write_text("a\n\nc\n")
    (tmp_path / "train.de").write_text("A\nB\nC")
    fields = FieldsConfig(source="en", target="de")
    pairs = opened("parallel", tmp_path / "train", fields=fields)
    assert [*pairs][1] == {"en": "", "de": "B"}


def test_parallel_files_have_two_names():
    same = FieldsConfig(source="a", target="a")
    config = SourceConfig(source="parallel", path="x", fields=same)
    (told,) = config.validate("config.data")
    assert told.startswith("config.data.fields.target = 'a': must not be config.data.f")


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_parallel_files_of_unequal_length(tmp_path, split):
    (tmp_path / "x.en").write_text("a\n\nc\nd\n")
    (tmp_path / "x.de").write_text("A\nB\n")
    leaf = {"train": "path", "valid": "valid_path", "test": "test_path"}[split]
    paths = dict.fromkeys(("path", "valid_path", "test_path"), "y")
    fields = FieldsConfig(source="en", target="de")
    given = {**paths, leaf: f"{tmp_path}/x"}
    config = SourceConfig(source="parallel", fields=fields, **given)
    counts = rf"unequal lines: {tmp_path}/x\.en has 4, {tmp_path}/x\.de has 2"
    with pytest.raises(UserError, match=rf"^{counts} \("):
        open_examples(config, split=split)
    skipping = dataclasses.replace(config, on_bad_example="skip")
    pairs = open_examples(skipping, split=split)
    assert [pairs[0], pairs[1]] == [{"en": "a", "de": "A"}, {"en": "", "de": "B"}]
    assert len(pairs) == 4
    for i in (2, 3):
        with pytest.raises(UserError, match=rf"x\.en:{i + 1}: {counts}"):
            pairs[i]


def test_examples_are_held_out_where_no_file_is(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{i}"}}\n' for i in range(10)))
    config = SourceConfig(source="jsonl", path=str(path), holdout_every=5)
    parts = [open_examples(config, split=split) for split in ("train", "valid", "test")]
    assert [row["text"] for row in parts[1]] == ["0", "5"]
    assert len(parts[0]) == 8
    assert parts[2] is None
    assert parts[0].where(0) == f"{path}:2"


def test_no_file_and_no_example(tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.path = .*matches no file"):
        opened("jsonl", tmp_path / "none")
    (tmp_path / "a.tsv").write_text("text\n")
    with pytest.raises(UserError, match=r"config\.data\.path = '.*a\.tsv': holds no"):
        opened("tsv", tmp_path / "a.tsv")
    bare = SourceConfig(source="tsv", path=str(tmp_path / "a.tsv"))
    with pytest.raises(UserError, match=r"a\.tsv': holds no example$"):
        open_examples(bare, split="train")
    (tmp_path / "a.tsv").write_text("text\none\n")
    config = SourceConfig(source="tsv", path=str(tmp_path / "a.tsv"))
    with pytest.raises(UserError, match=r"no more than one .*data\.valid_path"):
        open_examples(config, split="train")


@pytest.mark.parametrize("source", ["jsonl", "parallel"])
def test_what_is_no_path(source):
    for path, why in (
        ("~nobody-here/x", "no user ~nobody-here$"),
        ("a\0", "cannot hold"),
    ):
        with pytest.raises(UserError, match=rf"config\.data\.path = '.*': .*{why}"):
            opened(source, path)


@pytest.mark.parametrize("end", ["gz", "zip", "zst"])
def test_a_compressed_file_is_told_as_such(tmp_path, end):
    for name in ("a.jsonl", "a.de"):
        (tmp_path / f"{name}.{end}").write_bytes(b"\x1f\x8b")
    told = rf"config\.data\.path: .*a\.%s\.{end} is compressed; decompress it first"
    with pytest.raises(UserError, match=told % "jsonl"):
        opened("jsonl", tmp_path / "a.json*")
    fields = FieldsConfig(source=f"de.{end}", target="en")
    with pytest.raises(UserError, match=told % "de"):
        opened("parallel", tmp_path / "a", fields=fields)


def to_predict(config, path, kind=""):
    named, file = find_file(config, path, kind=kind, leaf="--input")
    return open_file(config, file, kind=named, leaf="--input")


def test_a_file_to_predict_is_what_its_name_or_the_run_says(tmp_path):
    config = SourceConfig(source="conll", path="x", columns=("tokens",))
    contents = {"a.jsonl": '{"t": "x"}', "a.tsv": "t\nx", "a.txt": "x"}
    wanted = {"a.jsonl": {"t": "x"}, "a.tsv": {"t": "x"}, "a.txt": {"tokens": ["x"]}}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
        (found,) = to_predict(config, tmp_path / name)
        assert found == wanted[name]
    (tmp_path / "a.txt").write_text("\ufeffx y\r\n \nz")
    assert [*to_predict(config, tmp_path / "a.txt", "text")] == ["x y", "z"]
    for kind, source in (("cvs", "csv"), ("", "tfds")):
        given = SourceConfig(source=source, path="x")
        with pytest.raises(UserError, match=r"--input=.*give --format, one of jsonl"):
            to_predict(given, tmp_path / "a.txt", kind)


def test_a_file_to_predict_is_one_file_and_has_examples(tmp_path):
    config = SourceConfig(source="jsonl", path="x")
    for name in ("a[1].jsonl", "a1.jsonl"):
        (tmp_path / name).write_text(f'{{"name": "{name}"}}\n')
    (found,) = to_predict(config, tmp_path / "a[1].jsonl")
    assert found == {"name": "a[1].jsonl"}
    with pytest.raises(UserError, match=r"--input=.*a\?\.jsonl: no such file"):
        to_predict(config, tmp_path / "a?.jsonl")
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(UserError, match=f"--input={path}: is no file"):
            to_predict(config, path)
    (tmp_path / "a1.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match=r"--input=.*a1\.jsonl: has no example"):
        to_predict(config, tmp_path / "a1.jsonl")
    with pytest.raises(UserError, match=r"fields\.predicate = '': .*'props' needs"):
        to_predict(config, tmp_path / "a1.jsonl", "props")


def test_columns_to_predict_may_lack_the_tags(tmp_path):
    path = tmp_path / "a.txt"
    config = SourceConfig(source="conll", path="x", columns=("pos", "tokens", "tags"))
    for text in ("P a T\nQ b U\n\nR c V", "P a\nQ b\n\nR c", "a\nb\n\nc\n"):
        path.write_text(text)
        assert [e["tokens"] for e in to_predict(config, path)] == [["a", "b"], ["c"]]
    path.write_text("a\n\nNew York City\n")  # no word with its tag
    found = to_predict(config, path)
    assert found[0] == {"tokens": ["a"]}
    with pytest.raises(
        ConfigError, match=r"a\.txt:3: has 3 columns, lines before it 1"
    ):
        found[1]
    path.write_text("P a T U\n")
    with pytest.raises(
        ConfigError, match=r"names 3: .*also read: \(tokens\), \(pos, to"
    ):
        to_predict(config, path)[0]
    with pytest.raises(
        ConfigError, match=r"has 1 columns; .*names 3: pos, tokens, tags$"
    ):
        path.write_text("a\n")
        opened("conll", path, columns=config.columns)[0]


def test_sources_to_predict_need_no_targets(tmp_path):
    fields = FieldsConfig(source="en", target="de")
    config = SourceConfig(source="parallel", path="x", fields=fields)
    (tmp_path / "new.en").write_text("a\r\n\r\nc\r\n")
    for name in ("new", "new.en"):
        found = to_predict(config, tmp_path / name)
        assert [*found] == [{"en": "a"}, {"en": ""}, {"en": "c"}]
    (tmp_path / "new.de").write_text("A\n")
    assert len(to_predict(config, tmp_path / "new")) == 3
    with pytest.raises(UserError, match=r"old\.en: no such file, nor .*old$"):
        to_predict(config, tmp_path / "old")
