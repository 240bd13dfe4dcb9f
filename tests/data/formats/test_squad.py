"""Files in the format of SQuAD: questions with their contexts, and errors."""

import json

import numpy as np
import pytest

from lmjax.config.data import SourceConfig
from lmjax.data.formats.answers import get_answers
from lmjax.data.formats.registry import open_examples
from lmjax.errors import UserError

QUESTION = {"id": "q1", "question": "Who?", "answers": []}


def open_split(path):
    config = SourceConfig(source="squad", path=str(path), valid_path="x")
    return open_examples(config, split="train")


def write(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps({"data": data}))
    return path


def test_questions_have_their_context(tmp_path):
    text = {"context": "Ann left.", "qas": [QUESTION, {**QUESTION, "id": 2}]}
    other = {"context": "Bob.", "qas": [{"question": "Where?", "is_impossible": True}]}
    articles = [{"title": "a", "paragraphs": [text]}, {"paragraphs": [other]}]
    examples = open_split(write(tmp_path / "a.json", articles))
    assert [example["context"] for example in examples] == ["Ann left."] * 2 + ["Bob."]
    assert examples[0] == {**QUESTION, "context": "Ann left."}
    assert examples[2]["is_impossible"]
    assert examples[0]["context"] is examples[1]["context"]  # not a copy for each
    places = [examples.where(i) for i in range(3)]
    assert places[0] == f"{tmp_path / 'a.json'}: question q1"
    assert places[2].endswith("a.json: data[1].paragraphs[0].qas[0]")


def test_the_fingerprint_depends_on_the_contents_alone(tmp_path):
    article = [{"paragraphs": [{"context": "a", "qas": [QUESTION]}]}]
    one, two = (write(tmp_path / f"{i}.json", article) for i in range(2))
    assert open_split(one).fingerprint() == open_split(two).fingerprint()
    write(two, [*article, {"paragraphs": []}])
    assert open_split(one).fingerprint() != open_split(two).fingerprint()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"data": [\n1,}', r"a\.json:2: not JSON: "),
        ("[" * 99999, r"a\.json: "),
        ("[1]", r"a\.json: not a JSON object"),
        ([1], r"a\.json: .*data\[0\] .*'paragraphs'"),
        ([{"paragraphs": [{"context": "a"}]}], r"paragraphs\[0\] .*'qas'"),
        ([{"paragraphs": [{"qas": [{}]}]}], r"paragraphs\[0\] has no 'context'"),
        ([{"paragraphs": [{"qas": [2]}]}], r"a\.json: .*qas\[0\] is not an object"),
        ([], r"config\.data\.path = .*: has no example"),
    ],
)
def test_a_file_with_another_structure(tmp_path, content, why):
    with pytest.raises(UserError, match=why) as error:
        open_split(write(tmp_path / "a.json", content))
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"data": "\xff"}')
    with pytest.raises(UserError, match=r"a\.json: not UTF-8 at byte 10"):
        open_split(tmp_path / "a.json")


def test_answers_of_tfds_are_found_by_their_name():
    """Its nested features are fields of their own, NAME/REST."""
    example = {
        "question": "Where?",
        "context": "In Ulm.",
        "answers/text": ["Ulm"],
        "answers/answer_start": np.array([3]),
    }
    found = get_answers(example, "answers", context="In Ulm.", leaf="leaf")
    assert found == (("Ulm", 3),)
    with pytest.raises(UserError, match="did you mean 'answers/"):
        get_answers(example, "answer", context="In Ulm.", leaf="leaf")
