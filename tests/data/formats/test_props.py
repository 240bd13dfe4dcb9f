"""Propositions in columns: brackets, and a sentence for each predicate."""

import pytest

from lmjax.config.data import FieldsConfig, SourceConfig
from lmjax.config.experiment import parse
from lmjax.data.formats.conll import bio
from lmjax.data.formats.registry import open_examples, open_file
from lmjax.errors import ConfigError, UserError

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


def opened(path, text, **more):
    path.write_text(text)
    options = {"columns": COLUMNS, "fields": FIELDS, **more}
    config = SourceConfig(source="props", path=str(path), valid_path="x", **options)
    return open_examples(config, split="train")


def test_each_predicate_is_an_example(tmp_path):
    examples = opened(tmp_path / "a.props", TEXT)
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


def test_columns_may_follow_those_of_the_arguments(tmp_path):
    lines = ["#begin document (bc/x); part 000", "d 0 a - * -", "d 1 b b (V*) (1)", ""]
    columns = ("document", "number", "tokens", "predicate", "tags", "coreference")
    text = "\n".join([*lines, "#end document", ""])
    (example,) = opened(tmp_path / "a.conll", text, columns=columns)
    assert example["coreference"] == ["-", "(1)"]
    assert example["tags"] == ["O", "B-V"]


def test_arguments_may_be_missing_where_they_are_asked_for(tmp_path):
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
        found = open_file(config, path, kind="props", leaf="--input")
        assert [e["predicate"] for e in found] == wanted
        assert all(e["tokens"] == words for e in found)
        assert [found.where(i)[-2:] for i in range(2)] == [":2", ":3"]
    path.write_text("No - *\nbit b (V*)\n\nNo -\n")
    with pytest.raises(
        ConfigError, match=r":1: has 3 columns; .*also read: \(tokens, p"
    ):
        open_file(config, path, kind="props", leaf="--input")[0]


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ("(A0* *", "(A0*", 2, "has 4 columns, the sentence's first line 3"),
        ("The - (A0* *", "The", 1, "has 1 columns; .* names 3: tokens, pred"),
        ("bit bite", "bit -", 1, "has 1 predicates, but 2 columns of arguments"),
        ("*) (A0*)", "* (A0*)", 3, r"'\(V\*\)' at token 2 is within \(A0\*"),
        ("(A0* *", "*) *", 3, r"'\*\)' at token 0 ends what has not begun"),
        ("(V*) *", "(V* *", 3, r"\(V\* does not end"),
        ("(A0*)", "A0", 5, r"'A0' at token 1 is not as \(A0\*, \*, \*\) or"),
    ],
)
def test_a_sentence_that_is_not_well_formed(tmp_path, old, new, line, why):
    examples = opened(tmp_path / "a.props", TEXT.replace(old, new, 1))
    with pytest.raises(UserError, match=rf"a\.props:{line}: .*{why}"):
        list(examples)


def test_brackets():
    column = ["*", "(A0*", "*A0)", "(C-A1*)", "(V*", "*)"]
    expected = ["O", "B-A0", "I-A0", "B-C-A1", "B-V", "I-V"]
    assert bio(column) == expected
    assert bio([]) == []


def test_the_columns_must_name_what_is_read():
    data = {"source": "props", "path": "x", "columns": ("tokens", "verb", "tags")}
    sections = {
        "data": data,
        "task": {"kind": "tag"},
        "model": {"kind": "encoder", "num_token_types": 2},
    }
    sections["tokenizer"] = {"kind": "bytes"}
    with pytest.raises(UserError, match=r"predicate = '': .*'props' needs it to be"):
        parse(sections)
    with pytest.raises(UserError, match=r"valid_path = '': .*'props' needs one"):
        parse(sections, ["data.fields.predicate=verb"])
