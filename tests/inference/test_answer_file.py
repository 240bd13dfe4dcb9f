"""A file of answers: gone on with to the same bytes, or refused as it is."""

import json
import resource

import pytest

from lmjax.errors import UserError
from lmjax.inference import answer_file

MADE_FROM = {"step": 3, "input": "12 bytes", "config.task.labels": ("a", "b")}
ANSWERS = [{"label": "é" * i, "number": i} for i in range(5)]


def write(target, *, made_from=MADE_FROM, answers=ANSWERS):
    """Write what is missing, in blocks of two; return how many answers were kept."""
    count = len(answers)
    with answer_file.opened(
        target, made_from=made_from, count=count, at_once=2
    ) as file:
        kept = file.num_done
        for first in range(kept, count, 2):
            file.add(answers[first : first + 2])
        assert file.num_done == count
    return kept


def test_what_was_cut_off_at_any_byte_goes_on_to_the_same(tmp_path):
    target = tmp_path / "out.jsonl"
    assert write(target) == 0
    whole = target.read_bytes()
    assert [*map(json.loads, whole.splitlines())] == ANSWERS
    for size in range(len(whole) + 1):
        target.write_bytes(whole[:size])
        lines = whole[:size].count(b"\n")
        # A block that is not whole was made of other batches than its rest would be.
        assert write(target) == (lines if lines == 5 else lines - lines % 2)
        assert target.read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"step": 4}, "step was 3, is 4 ("),
        ({"input": "9 bytes"}, "input was '12 bytes', is '9 bytes' ("),
        ({"config.task.labels": ("a",)}, "labels was ['a', 'b'], is ['a'] ("),
        ({"config.new": 1}, "config.new was None, is 1 ("),
        (dict.fromkeys("abcd", 1), "a was None, is 1; b was None, is 1; c was None, "),
        (dict.fromkeys("abcd", 1), "is 1 and 1 more (take these back, remove the f"),
    ],
)
def test_answers_made_from_something_else_are_left_as_they_are(tmp_path, changes, told):
    target = tmp_path / "out.jsonl"
    write(target)
    target.write_bytes(before := target.read_bytes()[:30])
    with pytest.raises(UserError) as error:
        write(target, made_from=MADE_FROM | changes)
    assert f"--output={target}: holds answers made from" in str(error.value)
    assert told in str(error.value)
    assert target.read_bytes() == before
    target.unlink()
    assert write(target, made_from=MADE_FROM | changes) == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("my notes\nmore\n", "line 1 is no answer of predict"),
        ("no line end", "line 1 is no answer of predict"),
        ('{"label": "pos"}\n[1]\n', "line 2 is no answer of predict"),
        ("[" * 99_999 + "\n", "line 1 is no answer of predict"),
        ('{"label": "pos"}\n', "there is no out.jsonl.made_from.json that says what"),
    ],
)
def test_what_holds_something_else_is_left_as_it_is(tmp_path, text, told):
    target = tmp_path / "out.jsonl"
    target.write_text(text)
    with pytest.raises(UserError, match=told):
        write(target)
    assert target.read_text() == text


def test_a_note_that_is_none_is_left_as_it_is(tmp_path):
    target = tmp_path / "out.jsonl"
    note = tmp_path / "out.jsonl.made_from.json"
    for text, told in (
        ('{"text": "x"}\n', "made_from.json: is no note of predict"),
        ("{}\n{}\n", "made_from.json:2: not JSON"),
    ):
        note.write_text(text)
        with pytest.raises(UserError, match=told):
            write(target)
        assert note.read_text() == text


def test_more_answers_than_examples(tmp_path):
    target = tmp_path / "out.jsonl"
    write(target)
    with pytest.raises(UserError, match=r"has 5 answers, --input 4 examples: remove"):
        write(target, answers=ANSWERS[:4])


def test_what_cannot_be_written(tmp_path):
    for target, told in (
        (tmp_path, "is no file"),
        (tmp_path / "none" / "out.jsonl", "No such file or directory"),
    ):
        with pytest.raises(UserError, match=f"--output={target}: {told}"):
            write(target)
    target = tmp_path / "out.jsonl"
    with (
        answer_file.opened(target, made_from={}, count=1, at_once=1),
        pytest.raises(UserError, match="another process writes it"),
    ):
        write(target)


def test_a_full_disk_is_one_line(tmp_path):
    target = tmp_path / "out.jsonl"
    write(target, answers=ANSWERS[:2])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = target.stat().st_size + 5
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        with pytest.raises(UserError, match=r"out\.jsonl: cannot be written: .*free"):
            write(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert target.stat().st_size == size
    assert write(target) == 2
