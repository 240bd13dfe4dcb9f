"""Text as it is on disk: byte order marks, line ends, and files that are no text."""

import codecs
import gzip
import json
import logging
import lzma
import os
import random
import zipfile

import pytest

from lmjax.config.data import FieldsConfig, SourceConfig
from lmjax.data.formats.registry import open_examples, open_input_file
from lmjax.data.sources.registry import open_splits
from lmjax.data.sources.text import find_fault, read_lines
from lmjax.data.tokenizers import stop_words
from lmjax.data.tokenizers.word_vectors import WordVectors
from lmjax.errors import UserError

BOM = codecs.BOM_UTF8
# Characters that `str.splitlines` takes for line ends; on disk they are text.
ODD = "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i\0j"


def open_text(path, document="line", **more):
    config = SourceConfig(
        source="text", path=str(path), valid_path="x", document=document, **more
    )
    return open_splits(config, splits=("train",))["train"]


def open_format(source, path, **more):
    config = SourceConfig(source=source, path=str(path), valid_path="x", **more)
    return open_examples(config, split="train")


def read(documents):
    return [documents[i] for i in range(len(documents))]


READERS = {
    "text": ("{0}\n{1}\n", lambda p: read(open_text(p))),
    "text, files": ("{0}\n{1}\n", lambda p: read(open_text(p, "file"))[0].split("\n")),
    "jsonl": (
        '{{"text": "{0}"}}\n{{"text": "{1}"}}\n',
        lambda p: read(
            open_splits(
                SourceConfig(source="jsonl", path=str(p), valid_path="x"),
                splits=("train",),
            )["train"]
        ),
    ),
    "jsonl of examples": (
        '{{"text": "{0}"}}\n{{"text": "{1}"}}\n',
        lambda p: [e["text"] for e in open_format("jsonl", p)],
    ),
    "csv": (
        "text,n\n{0},1\n{1},2\n",
        lambda p: [e["text"] for e in open_format("csv", p)],
    ),
    "tsv": (
        "text\tn\n{0}\t1\n{1}\t2\n",
        lambda p: [e["text"] for e in open_format("tsv", p)],
    ),
    "conll": (
        "{0}\tO\n\n{1}\tO\n",
        lambda p: [
            e["tokens"][0] for e in open_format("conll", p, columns=("tokens", "tags"))
        ],
    ),
    "squad": (
        '{{"data": [{{"paragraphs": [{{"context": "{0}", "qas": [{{"id": "1"}}]}}, '
        '{{"context": "{1}", "qas": [{{"id": "2"}}]}}]}}]}}',
        lambda p: [e["context"] for e in open_format("squad", p)],
    ),
    "to predict": (
        "{0}\n{1}\n",
        lambda p: read(
            open_input_file(
                SourceConfig(path="x", valid_path="x"), p, kind="text", leaf="--input"
            )
        ),
    ),
    "to score": ("{0}\n{1}\n", lambda p: read_lines(p, path="--input")),
}


def parallel(path):
    fields = FieldsConfig(source=path.name, target="other")
    (path.parent / "x.other").write_text("1\n2\n")
    (path.parent / f"x.{path.name}").write_bytes(path.read_bytes())
    pairs = open_format("parallel", path.parent / "x", fields=fields)
    return [pair[path.name] for pair in pairs]


READERS["parallel"] = ("{0}\n{1}\n", parallel)
IN_JSON = {"jsonl", "jsonl of examples", "squad"}


@pytest.mark.parametrize("name", READERS)
def test_line_ends_and_marks_are_no_text(tmp_path, name):
    layout, reader = READERS[name]
    path = tmp_path / "a"
    odd = json.dumps(ODD)[1:-1] if name in IN_JSON else ODD
    plain = layout.format("first", odd).encode()
    if name in IN_JSON:  # raw where JSON allows it
        plain = plain.replace(rb"\u2028", "\u2028".encode())
        plain = plain.replace(rb"\u0085", "\x85".encode())
    crlf = plain.replace(b"\n", b"\r\n")
    files = [plain, BOM + plain, plain.removesuffix(b"\n")]
    for content in [*files, *([] if name == "text, files" else [crlf, BOM + crlf])]:
        path.write_bytes(content)
        assert reader(path)[:2] == ["first", ODD], content


def test_a_mark_within_a_file_is_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(BOM + b"\n" + BOM + b"a\n" + BOM * 2 + b"b")
    assert read_lines(path, path="p") == ["", "\ufeffa", "\ufeff\ufeffb"]
    documents = open_text(path)
    assert read(documents) == ["\ufeffa", "\ufeff\ufeffb"], "the first line is blank"


def test_a_mark_changes_no_fingerprint(tmp_path):
    for document in ("line", "file"):
        prints = []
        for content in (b"one\ntwo\n", BOM + b"one\ntwo\n", b"one\ntwo\n\n"):
            (tmp_path / "a").write_bytes(content)
            prints.append(open_text(tmp_path / "a", document).fingerprint())
        assert prints[0] == prints[1] != prints[2]


STORED = {
    "text": ("one\ntwo\n", "3553054ae6f1"),
    "text, files": ("one\ntwo\n", "bce57636e38f"),
    "squad": (
        '{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": 1}]}]}]}',
        "57f51a7d3367",
    ),
    "tsv": ("text\tn\na\t1\n", "9f5bc767b95b"),
    "conll": ("a O\n\nb O\n", "7bf2a2c5cd33"),
}


@pytest.mark.parametrize("name", STORED)
def test_fingerprints_that_stores_have(tmp_path, name):
    """Stores on disk are found by these: they never change for plain files."""
    content, wanted = STORED[name]
    (tmp_path / "a").write_text(content)
    if name.startswith("text"):
        found = open_text(tmp_path / "a", "file" if "files" in name else "line")
    else:
        found = open_format(name, tmp_path / "a", columns=("tokens", "tags"))
    assert found.fingerprint()[:12] == wanted


@pytest.mark.parametrize("name", [n for n in READERS if n != "squad"])
def test_bytes_that_are_not_utf8_are_told_with_their_line(tmp_path, name):
    layout, reader = READERS[name]
    path = tmp_path / "a"
    content = layout.format("first", "second").encode()
    path.write_bytes(content.replace(b"second", b"s\xe9cond"))
    number = content[: content.index(b"second")].count(b"\n") + 1
    where = "a" if name == "text, files" else f"a:{number}"
    with pytest.raises(UserError, match=rf"{where}: not UTF-8 at byte"):
        reader(path)


def words(path, **more):
    examples = open_format("conll", path, columns=("tokens", "tags"), **more)
    return [list(zip(e["tokens"], e["tags"], strict=True)) for e in examples]


def test_columns_are_separated_by_tabs_before_spaces(tmp_path):
    path = tmp_path / "a"
    path.write_text("New York\tB\n \tO\n to \t O\t\n\na\u00a0b\tO\n\u00a0\tO\n")
    assert words(path) == [
        [("New York", "B"), (" ", "O"), ("to", "O")],
        [("a\u00a0b", "O"), ("\u00a0", "O")],
    ]
    # A line without its tag is no word with another tag.
    for line, why in (("Los Angeles\n", "has 1 columns"), ("\tO\n", "'tokens' is emp")):
        path.write_text("New York\tB\nin\tO\n" + line)
        with pytest.raises(UserError, match=rf"a:3: .*{why}"):
            words(path)


def test_comments_of_conll(tmp_path):
    path = tmp_path / "a"
    path.write_text("# sent_id = 1\n# newpar\n#\tO\n#tag\tO\n\n# text = x\n\n#\tO\n")
    assert words(path) == [[("#", "O"), ("#tag", "O")], [("#", "O")]]
    path.write_text("# id 5-a\tdomain=en\n# O\n#x O\n\n# a comment of 6 words\nb O\n")
    assert words(path) == [[("#", "O"), ("#x", "O")], [("b", "O")]]
    path.write_text("a O\n# not a comment\nb O\n")
    with pytest.raises(UserError, match=r"a:2: has 4 columns"):
        words(path)


CONLLU = """# global.columns = ID FORM UPOS
# sent_id = 1
1-2\tdon't\t_
1\tdo\tAUX
2\tn't\tPART
2.1\tgo\tVERB
3\t1-2\tNUM

1\tyes\tINTJ
"""


def test_conllu_has_lines_that_are_no_words(tmp_path):
    path = tmp_path / "a"
    columns = ("id", "tokens", "tags")
    path.write_text(CONLLU)
    examples = open_format("conll", path, columns=columns)
    assert [e["tokens"] for e in examples] == [["do", "n't", "1-2"], ["yes"]]
    assert [examples.where(i)[-2:] for i in (0, 1)] == [":4", ":9"]
    lines = CONLLU.splitlines()[1:]
    wide = [
        f"{x}{7 * chr(9) + 7 * '_'}" if x[:1] not in ("", "#") else x for x in lines
    ]
    wide = [x.replace("\t" * 7 + "_" * 7, "\t_" * 7) for x in wide]
    path.write_text("\n".join(wide))
    columns = (*columns, *"abcdefg")
    examples = open_format("conll", path, columns=columns)
    assert [e["tokens"] for e in examples] == [["do", "n't", "1-2"], ["yes"]]
    # In other files such a word is a word.
    path.write_text("1-2\tO\n1\tO\n")
    assert words(path) == [[("1-2", "O"), ("1", "O")]]


def test_files_of_words(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(BOM + b"the\r\nof\x0bin\n")
    assert stop_words.read(str(path)) == ["the", "of", "in"]
    for start in (b"", b"2 2\n"):
        path.write_bytes(BOM + start + b"the 1 2\r\nof 3 4\r\n")
        vectors = dict(WordVectors(str(path), leaf="x").select(lambda _: True))
        assert {k: v.tolist() for k, v in vectors.items()} == {
            "the": [1, 2],
            "of": [3, 4],
        }


def test_word_vectors_tell_bytes_that_are_not_utf8(tmp_path, caplog):
    (tmp_path / "a").write_bytes(b"a 1\nb\xe9 2\nc\xe9 3\n")
    first, *_ = WordVectors(str(tmp_path / "a"), leaf="leaf").words()
    assert first == "a"
    (record,) = caplog.records
    assert "a:2: " in record.getMessage() and "not UTF-8" in record.getMessage()


TEXT = "A line of text, and some more of it.\n" * 50
NOISE = random.Random(0).randbytes(4000)
OTHERS = {
    "gzip": gzip.compress(TEXT.encode())[:60],
    "xz": lzma.compress(TEXT.encode())[:60],
    "lz4": b"\x04\x22\x4d\x18" + NOISE,
    "Parquet": b"PAR1\x15\x04\x15" + NOISE,
    "Arrow": b"ARROW1\0\0\xff\xff\xff\xff" + NOISE,
    "Arrow stream": b"\xff\xff\xff\xff\x10\x01\0\0" + NOISE,
    "binary": b"a\0\1\2" + NOISE,
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-32": TEXT.encode("utf-32"),
    "UTF-16LE": TEXT.encode("utf-16-le"),
    "UTF-16BE": TEXT.encode("utf-16-be"),
    "PDF": b"%PDF-1.7\n" + NOISE,
    "tar": b"a.txt".ljust(257, b"\0") + b"ustar\x0000" + NOISE,
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("bad_text", ["error", "replace"])
def test_files_that_are_no_text_are_never_read_as_text(
    tmp_path, name, bad_text, caplog
):
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.txt").write_bytes(OTHERS[name])
    (tmp_path / "c.txt").write_text("two\n")
    for document in ("line", "file"):
        stop = open_text(tmp_path / "*", document, on_bad_text=bad_text)
        with pytest.raises(UserError, match=rf"b\.txt is .*{name}.*on_bad_file='skip'"):
            len(stop)
        caplog.clear()
        skip = open_text(
            tmp_path / "*", document, on_bad_text=bad_text, on_bad_file="skip"
        )
        assert [t.strip() for t in read(skip)] == ["one", "two"]
        (record,) = caplog.records
        assert "left out 1 of 3 files" in record.getMessage()
        assert "b.txt is" in record.getMessage() and name in record.getMessage()


def test_letters_of_other_formats_may_begin_a_text(tmp_path):
    for start in ("PAR1", "ORC", "BZh", "ARROW1", "GIF89a", "PK", "ustar"):
        (tmp_path / "a").write_text(f"{start} is how this begins\u00e9.\n")
        assert not find_fault(tmp_path / "a", path="p", all=True), start


def test_a_few_control_characters_are_text(tmp_path):
    (tmp_path / "a").write_bytes(b"one\0two\n")
    assert read(open_text(tmp_path / "a")) == ["one\0two"]
    (tmp_path / "a").write_bytes(b"\x1b[1mbold\x1b[0m \x08\n" * 900)
    assert not find_fault(tmp_path / "a", path="p", all=True)


def test_bad_files_are_left_out_by_choice(tmp_path, caplog):
    for name in "abcdefgh":
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / "b").write_bytes(b"b\n" * 9000 + b"\xe9\n")  # after the first bytes
    (tmp_path / "c").unlink()
    (tmp_path / "c").symlink_to("nowhere")
    (tmp_path / "d").unlink()
    os.mkfifo(tmp_path / "d")
    (tmp_path / "e").write_text("one\rtwo\rthree\r")
    with zipfile.ZipFile(tmp_path / "f", "w") as archive:
        archive.writestr("x", "y")
    skip = open_text(tmp_path / "*", on_bad_file="skip")
    skip.fingerprint()
    assert read(skip) == ["a", "g", "h"]
    (record,) = caplog.records
    text = record.getMessage()
    assert "left out 5 of 8 files" in text and "\n" not in text
    for name, why in (
        ("b", "is not UTF-8"),
        ("c", "No such file"),
        ("d", "is not a regular file"),
        ("e", "CR alone"),
        ("f", "zip"),
    ):
        assert f"{tmp_path / name}" in text and why in text
    assert open_text(tmp_path / "*").fingerprint  # cheap
    with pytest.raises(UserError, match="c: No such file"):
        open_text(tmp_path / "*").fingerprint()
    (tmp_path / "c").unlink()
    with pytest.raises(UserError, match="d is not a regular file"):
        open_text(tmp_path / "*").fingerprint()


def test_bad_files_of_examples_are_left_out_by_choice(tmp_path, caplog):
    good = {
        "jsonl": '{"text": "a"}\n',
        "csv": "text\na\n",
        "tsv": "text\tn\na\t1\n",
        "conll": "a O\n",
        "squad": '{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": 1}]}]}]}',
    }
    for source, content in good.items():
        folder = tmp_path / source
        folder.mkdir()
        (folder / "a").write_text(content)
        (folder / "b").write_bytes(b"PK\x03\x04" + NOISE)
        (folder / "c").write_bytes(b"\xe9" + content.encode())
        with pytest.raises(UserError, match=r"b is compressed \(zip"):
            open_format(source, folder / "*")
        caplog.clear()
        found = open_format(source, folder / "*", on_bad_file="skip")
        assert len(found) == 1, source
        assert "left out 2 of 3 files" in caplog.text
    (tmp_path / "csv" / "d").write_text("text,text\na,b\n")
    (tmp_path / "squad" / "d").write_text("{}")
    for source in ("csv", "squad"):
        caplog.clear()
        path = tmp_path / source / "[ad]"
        assert len(open_format(source, path, on_bad_file="skip")) == 1
        assert "left out 1 of 2 files" in caplog.text
    for source in ("parallel", "tfds"):
        config = SourceConfig(source=source, path="x", on_bad_file="skip")
        (problem,) = config.validate("config.data")
        assert problem.startswith("config.data.on_bad_file = 'skip': ")


def test_the_names_of_many_bad_files_are_few(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / "a").write_text("a")
    for i in range(50):
        (tmp_path / f"{i:02}.gz").write_bytes(b"\x1f\x8b")
    assert read(open_text(tmp_path / "*", on_bad_file="skip")) == ["a"]
    assert "left out 50 of 51 files" in caplog.text and "and 30 more" in caplog.text
