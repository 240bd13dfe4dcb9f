"""Files of labelled examples in each format, and errors in them."""

import dataclasses
import pickle
from pathlib import Path

import pytest

from lmjax.config.data import FieldsConfig, SourceConfig
from lmjax.data.formats.registry import find_input_file, open_examples, open_input_file
from lmjax.errors import UserError


def open_split(source, path, split="train", **more):
    config = SourceConfig(source=source, path=str(path), valid_path="x", **more)
    return open_examples(config, split=split)


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "label": 1}\n\n{"text": "zwei", "n": null}\n')
    examples = open_split("jsonl", path)
    assert [*map(dict, examples)] == [
        {"text": "one", "label": 1},
        {"text": "zwei", "n": None},
    ]
    assert examples.where(1) == f"{path}:3"
    assert pickle.loads(pickle.dumps(examples))[1]["text"] == "zwei"


@pytest.mark.parametrize(
    ("line", "why"),
    [("{", "not JSON"), ("[1]", "not a JSON object"), ("[" * 99999, "")],
)
def test_a_line_that_is_not_a_json_object(tmp_path, line, why):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"a\.jsonl:2: {why}"):
        open_split("jsonl", path)[1]


def test_csv_has_quotes_and_tsv_has_none(tmp_path):
    (tmp_path / "a.csv").write_text('\ufefftext,label\n"one,\ntwo",x\n\nthree,y\n')
    (tmp_path / "a.tsv").write_text('text\tlabel\n"one\tx\ntwo,"\ty\n')
    table = open_split("csv", tmp_path / "a.csv")
    assert [*table] == [
        {"text": "one,\ntwo", "label": "x"},
        {"text": "three", "label": "y"},
    ]
    assert [table.where(i).rsplit(":")[-1] for i in range(2)] == ["2", "5"]
    rows = open_split("tsv", tmp_path / "a.tsv")
    assert [row["text"] for row in rows] == ['"one', 'two,"']


@pytest.mark.parametrize(("source", "mark"), [("csv", ","), ("tsv", "\t")])
def test_only_line_ends_end_a_row(tmp_path, source, mark):
    path = tmp_path / "a"
    rows = [["text", "label"], ["a\u2028b\x85\x0b c", "x"], ["", "y"]]
    path.write_bytes("\r\n".join(map(mark.join, rows)).encode("utf-8-sig"))
    assert [*map(dict, open_split(source, path))] == [
        {"text": "a\u2028b\x85\x0b c", "label": "x"},
        {"text": "", "label": "y"},
    ]


def test_unmatched_quotes_are_a_bad_example(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"a"b,x\nc,y\n"d,x\ne,y\n')
    rows = open_split("csv", path)
    assert rows[1] == {"text": "c", "label": "y"}
    for i, line, lines in ((0, 2, ""), (2, 4, "lines 4 to 5 are ")):
        with pytest.raises(UserError, match=rf"a\.csv:{line}: {lines}not a row"):
            rows[i]
    path.write_text('"text,label\na,x\nb,y\n')
    with pytest.raises(UserError, match=r"a\.csv:1: lines 1 to 3 "):
        open_split("csv", path)


def test_a_repeated_column(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text\ttext\na\tb\n")
    with pytest.raises(UserError, match=r"a\.tsv:1: .*'text'"):
        open_split("tsv", path)


def test_the_line_of_bytes_that_are_not_utf8_is_named(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b"text\tlabel\na\tx\nb\xff\ty\n")
    with pytest.raises(UserError, match=r"a\.tsv:3: not UTF-8 at byte 1"):
        open_split("tsv", path)
    replaced = open_split("tsv", path, on_bad_text="replace")
    assert replaced[1]["text"] == "b\ufffd"


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\r\n'.join([b"\xef\xbb\xbf", b""]))
    assert open_split("jsonl", path)[0] == {"a": 1}


def test_a_row_with_too_few_columns_is_an_error_only_when_it_is_read(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\none\ntwo\tx\n")
    rows = open_split("tsv", tmp_path / "a.tsv")
    assert rows[1] == {"text": "two", "label": "x"}
    with pytest.raises(UserError, match=r"a\.tsv:2: .*1 columns, .* 2"):
        rows[0]


CONLL = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O

Peter NNP I-NP I-PER
"""


def test_conll(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(CONLL)
    sentences = open_split("conll", path)
    assert len(sentences) == 2
    assert sentences[0]["tokens"] == ["EU", "rejects"]
    assert sentences[0]["tags"] == ["I-ORG", "O"]
    assert sentences.where(1) == f"{path}:6"
    with pytest.raises(
        UserError, match=r"train\.txt:3: .*4 columns; config\.data\.columns .* 2"
    ):
        open_split("conll", path, columns=("tokens", "tags"))[0]


def test_conll_with_tabs_and_windows_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    columns = ("tokens", "tags")
    path.write_bytes("New York\tB\r\n \t\r\na\u00a0b\tO\r\n".encode("utf-8-sig"))
    found = [e["tokens"] for e in open_split("conll", path, columns=columns)]
    assert found == [["New York"], ["a\u00a0b"]]
    path.write_text("a\u00a0b  O \n")
    assert open_split("conll", path, columns=columns)[0]["tokens"] == ["a\u00a0b"]


def test_parallel_files(tmp_path):
    (tmp_path / "train.en").write_text("a\n\nc\n")
    (tmp_path / "train.de").write_text("A\nB\nC")
    fields = FieldsConfig(source="en", target="de")
    pairs = open_split("parallel", tmp_path / "train", fields=fields)
    assert [*pairs][1] == {"en": "", "de": "B"}


def test_parallel_files_must_have_different_names():
    same = FieldsConfig(source="a", target="a")
    config = SourceConfig(source="parallel", path="x", fields=same)
    (problem,) = config.validate("config.data")
    assert problem.startswith("config.data.fields.target = 'a': ")
    assert "config.data.fields.source" in problem


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_parallel_files_of_unequal_length(tmp_path, split):
    (tmp_path / "x.en").write_text("a\n\nc\nd\n")
    (tmp_path / "x.de").write_text("A\nB\n")
    leaf = {"train": "path", "valid": "valid_path", "test": "test_path"}[split]
    paths = dict.fromkeys(("path", "valid_path", "test_path"), "y")
    fields = FieldsConfig(source="en", target="de")
    given = {**paths, leaf: f"{tmp_path}/x"}
    config = SourceConfig(source="parallel", fields=fields, **given)
    counts = rf"{tmp_path}/x\.en has 4, {tmp_path}/x\.de has 2"
    with pytest.raises(UserError, match=rf"{counts} \(config\.data\.on_bad_example"):
        open_examples(config, split=split)
    skipping = dataclasses.replace(config, on_bad_example="skip")
    pairs = open_examples(skipping, split=split)
    assert [pairs[0], pairs[1]] == [{"en": "a", "de": "A"}, {"en": "", "de": "B"}]
    assert len(pairs) == 4
    for i in (2, 3):
        with pytest.raises(UserError, match=rf"x\.en:{i + 1}: .*{counts}"):
            pairs[i]


def test_examples_are_held_out_without_a_file_for_validation(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{i}"}}\n' for i in range(10)))
    config = SourceConfig(source="jsonl", path=str(path), holdout_every=5)
    parts = [open_examples(config, split=split) for split in ("train", "valid", "test")]
    assert [row["text"] for row in parts[1]] == ["0", "5"]
    assert len(parts[0]) == 8
    assert parts[2] is None
    assert parts[0].where(0) == f"{path}:2"


def test_no_file_and_no_example(tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.path = .*none'"):
        open_split("jsonl", tmp_path / "none")
    (tmp_path / "a.tsv").write_text("text\n")
    with pytest.raises(
        UserError, match=r"config\.data\.path = '.*a\.tsv': has no example"
    ):
        open_split("tsv", tmp_path / "a.tsv")
    bare = SourceConfig(source="tsv", path=str(tmp_path / "a.tsv"))
    with pytest.raises(UserError, match=r"a\.tsv': has no example$"):
        open_examples(bare, split="train")
    (tmp_path / "a.tsv").write_text("text\none\n")
    config = SourceConfig(source="tsv", path=str(tmp_path / "a.tsv"))
    with pytest.raises(UserError, match=r"a\.tsv': .*config\.data\.valid_path"):
        open_examples(config, split="train")


@pytest.mark.parametrize("source", ["jsonl", "parallel"])
def test_a_path_that_cannot_exist(source):
    for path, why in (("~nobody-here/x", ".*~nobody-here$"), ("a\0", "")):
        with pytest.raises(UserError, match=rf"config\.data\.path = '.*': {why}"):
            open_split(source, path)


def test_an_archive_is_an_error(tmp_path):
    end = "zip"
    for name in ("a.jsonl", "a.de"):
        (tmp_path / f"{name}.{end}").write_bytes(b"PK\x03\x04")
    message = rf"config\.data: .*a\.%s\.{end} .*compressed"
    with pytest.raises(UserError, match=message % "jsonl"):
        open_split("jsonl", tmp_path / "a.json*")
    fields = FieldsConfig(source=f"de.{end}", target="en")
    with pytest.raises(UserError, match=message % "de"):
        open_split("parallel", tmp_path / "a", fields=fields)


def to_predict(config, path, kind=""):
    named, file = find_input_file(config, path, kind=kind, leaf="--input")
    return open_input_file(config, file, kind=named, leaf="--input")


def test_the_format_of_a_file_to_predict(tmp_path):
    config = SourceConfig(source="conll", path="x", columns=("tokens",))
    contents = {"a.jsonl": '{"t": "x"}', "a.tsv": "t\nx", "a.txt": "x"}
    wanted = {"a.jsonl": {"t": "x"}, "a.tsv": {"t": "x"}, "a.txt": {"tokens": ["x"]}}
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
        (found,) = to_predict(config, tmp_path / name)
        assert found == wanted[name]
    (tmp_path / "a.txt").write_text("\ufeffx y\r\n \nz")
    assert [*to_predict(config, tmp_path / "a.txt", "text")] == ["x y", "z"]
    with pytest.raises(UserError, match=r"--format=cvs: .*jsonl, .*mean 'csv'"):
        to_predict(config, tmp_path / "a.txt", "cvs")
    with pytest.raises(UserError, match=r"--input=.*a\.txt: .*--format.*jsonl, "):
        to_predict(SourceConfig(source="tfds", path="x"), tmp_path / "a.txt")


def test_a_file_to_predict_is_one_file_and_has_examples(tmp_path):
    config = SourceConfig(source="jsonl", path="x")
    for name in ("a[1].jsonl", "a1.jsonl"):
        (tmp_path / name).write_text(f'{{"name": "{name}"}}\n')
    (found,) = to_predict(config, tmp_path / "a[1].jsonl")
    assert found == {"name": "a[1].jsonl"}
    with pytest.raises(UserError, match=r"--input=.*a\?\.jsonl: "):
        to_predict(config, tmp_path / "a?.jsonl")
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(UserError, match=f"--input={path}: not a file"):
            to_predict(config, path)
    (tmp_path / "a1.jsonl").write_text("\n \n")
    with pytest.raises(UserError, match=r"--input=.*a1\.jsonl: .*no example"):
        to_predict(config, tmp_path / "a1.jsonl")
    with pytest.raises(UserError, match=r"data\.fields\.predicate = '': .*'props'"):
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
    with pytest.raises(UserError, match=r"a\.txt:3: .*3 columns, .* 1$"):
        found[1]
    path.write_text("P a T U\n")
    with pytest.raises(UserError, match=r"4 columns; .* 3: .*\(tokens\), \(pos, to"):
        to_predict(config, path)[0]
    with pytest.raises(UserError, match=r"1 columns; .* 3: pos, tokens, tags$"):
        path.write_text("a\n")
        open_split("conll", path, columns=config.columns)[0]


def test_sources_to_predict_need_no_targets(tmp_path):
    fields = FieldsConfig(source="en", target="de")
    config = SourceConfig(source="parallel", path="x", fields=fields)
    (tmp_path / "new.en").write_text("a\r\n\r\nc\r\n")
    for name in ("new", "new.en"):
        found = to_predict(config, tmp_path / name)
        assert [*found] == [{"en": "a"}, {"en": ""}, {"en": "c"}]
    (tmp_path / "new.de").write_text("A\n")
    assert len(to_predict(config, tmp_path / "new")) == 3
    with pytest.raises(UserError, match=r"--input=.*old\.en: .*old$"):
        to_predict(config, tmp_path / "old")
