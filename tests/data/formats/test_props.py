"""Semantic roles in columns: brackets, and an example for each predicate."""

import pytest

from lmjax.config.data import FieldsConfig, SourceConfig
from lmjax.config.experiment import parse
from lmjax.data.formats.conll import brackets_to_bio
from lmjax.data.formats.registry import open_examples, open_input_file
from lmjax.errors import UserError

COLUMNS = ("tokens", "predicate", "tags")
FIELDS = FieldsConfig(predicate="predicate")
TEXT = """The - (A0* *
dog - *) (A0*)
bit bite (V*) *
and - * *
ran run * (V*)

No -
verb -
"""


def open_split(path, text, **more):
    path.write_text(text)
    options = {"columns": COLUMNS, "fields": FIELDS, **more}
    config = SourceConfig(source="props", path=str(path), valid_path="x", **options)
    return open_examples(config, split="train")


def test_each_predicate_is_an_example(tmp_path):
    examples = open_split(tmp_path / "a.props", TEXT)
    words = ["The", "dog", "bit", "and", "ran"]
    assert [*examples] == [
        {
            "tokens": words,
            "predicate": 2,
            "tags": ["B-A0", "I-A0", "B-V", "O", "O"],
        },
        {"tokens": words, "predicate": 4, "tags": ["O", "B-A0", "O", "O", "B-V"]},
    ]
    assert [examples.where(i)[-2:] for i in range(2)] == [":3", ":5"]


def test_there_may_be_columns_after_the_arguments(tmp_path):
    lines = ["#begin document (bc/x); part 000", "d 0 a - * -", "d 1 b b (V*) (1)", ""]
    columns = ("document", "number", "tokens", "predicate", "tags", "coreference")
    text = "\n".join([*lines, "#end document", ""])
    (example,) = open_split(tmp_path / "a.conll", text, columns=columns)
    assert example["coreference"] == ["-", "(1)"]
    assert example["tags"] == ["O", "B-V"]


def test_arguments_may_be_missing_in_a_file_to_predict(tmp_path):
    path = tmp_path / "a.props"
    columns = ("number", "tokens", "predicate", "tags", "end")
    config = SourceConfig(source="props", path="x", columns=columns, fields=FIELDS)
    words, wanted = ["No", "bit", "ran"], [1, 2]
    for text in (
        "0 No - * * .\n1 bit b (V*) * .\n2 ran r * (V*) .\n",
        "0 No - .\n1 bit b .\n2 ran r .\n",
        "No -\nbit b\nran r\n",
    ):
        path.write_text(text)
        found = open_input_file(config, path, kind="props", leaf="--input")
        assert [e["predicate"] for e in found] == wanted
        assert all(e["tokens"] == words for e in found)
        assert [found.where(i)[-2:] for i in range(2)] == [":2", ":3"]
    path.write_text("No - *\nbit b (V*)\n\nNo -\n")
    with pytest.raises(UserError, match=r":1: .*3 columns; .*\(tokens, predicate\)"):
        open_input_file(config, path, kind="props", leaf="--input")[0]


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ("(A0* *", "(A0*", 2, "4 columns, .* 3"),
        ("The - (A0* *", "The", 1, "1 columns; config.data.columns .*3: tokens, pred"),
        ("bit bite", "bit -", 1, "1 predicates, .* 2 columns"),
        ("*) (A0*)", "* (A0*)", 3, r"'\(V\*\)' at token 2: .*\(A0\*"),
        ("(A0* *", "*) *", 3, r"'\*\)' at token 0: "),
        ("(V*) *", "(V* *", 3, r"\(V\*: "),
        ("(A0*)", "A0", 5, r"'A0' at token 1: .*\(A0\*, "),
    ],
)
def test_a_sentence_that_is_not_well_formed(tmp_path, old, new, line, why):
    examples = open_split(tmp_path / "a.props", TEXT.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"a\.props:{line}: .*{why}"):
        list(examples)


def test_brackets():
    column = ["*", "(A0*", "*A0)", "(C-A1*)", "(V*", "*)"]
    expected = ["O", "B-A0", "I-A0", "B-C-A1", "B-V", "I-V"]
    assert brackets_to_bio(column) == expected
    assert brackets_to_bio([]) == []


def test_the_columns_must_include_the_fields():
    data = {"source": "props", "path": "x", "columns": ("tokens", "verb", "tags")}
    sections = {
        "data": data,
        "task": {"kind": "tag"},
        "model": {"kind": "encoder", "num_token_types": 2},
    }
    sections["tokenizer"] = {"kind": "bytes"}
    with pytest.raises(
        UserError, match=r"fields\.predicate = '': .*config\.data\.columns"
    ):
        parse(sections)
    with pytest.raises(UserError, match=r"data\.valid_path = '': .*'props'"):
        parse(sections, ["data.fields.predicate=verb"])
