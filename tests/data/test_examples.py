"""Files of labelled examples: what is read, and what is said of mistakes."""

import pickle

import pytest

from lmjax.config import ConfigError, FieldsConfig, SourceConfig
from lmjax.data.example_formats import open_examples


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
    with pytest.raises(ConfigError, match=rf"a\.jsonl:2: {why}"):
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


def test_a_row_of_another_width_is_a_bad_example_only_when_read(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\none\ntwo\tx\n")
    rows = opened("tsv", tmp_path / "a.tsv")
    assert rows[1] == {"text": "two", "label": "x"}
    with pytest.raises(ConfigError, match=r"a\.tsv:2: has 1 columns, the header 2"):
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
    with pytest.raises(ConfigError, match=r"train\.txt:3: has 4 columns; .*names 2"):
        opened("conll", path, columns=("tokens", "tags"))[0]


def test_parallel_files(tmp_path):
    (tmp_path / "train.en").write_text("a\n\nc\n")
    (tmp_path / "train.de").write_text("A\nB\nC")
    fields = FieldsConfig(source="en", target="de")
    pairs = opened("parallel", tmp_path / "train", fields=fields)
    assert [*pairs][1] == {"en": "", "de": "B"}
    (tmp_path / "train.de").write_text("A\n")
    with pytest.raises(ConfigError, match=r"train\.en has 3, .*train\.de has 1"):
        opened("parallel", tmp_path / "train", fields=fields)


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
    with pytest.raises(ConfigError, match=r"config\.data\.path = .*matches no file"):
        opened("jsonl", tmp_path / "none")
    (tmp_path / "a.tsv").write_text("text\n")
    with pytest.raises(ConfigError, match="no example for train"):
        opened("tsv", tmp_path / "a.tsv")
