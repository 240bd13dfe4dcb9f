"""A file of predictions: resumed to the same bytes, or refused and left unchanged."""

import json
import resource

import pytest

from lmjax.errors import UserError
from lmjax.inference.prediction_file import open_prediction_file

PROVENANCE = {"step": 3, "input": "12 bytes", "config.task.labels": ("a", "b")}
PREDICTIONS = [{"label": "é" * i, "number": i} for i in range(5)]


def write(path, *, provenance=PROVENANCE, predictions=PREDICTIONS):
    """Write what is missing, in blocks of two; return how many lines were kept."""
    total = len(predictions)
    with open_prediction_file(
        path, provenance=provenance, num_examples=total, block_size=2
    ) as file:
        kept = file.num_done
        for first in range(kept, total, 2):
            file.append(predictions[first : first + 2])
        assert file.num_done == total
    return kept


def test_a_file_cut_off_at_any_byte_is_resumed_to_the_same_bytes(tmp_path):
    path = tmp_path / "out.jsonl"
    assert write(path) == 0
    whole = path.read_bytes()
    assert [*map(json.loads, whole.splitlines())] == PREDICTIONS
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        lines = whole[:size].count(b"\n")
        # The rest of an incomplete block would come from other batches.
        assert write(path) == (lines if lines == 5 else lines - lines % 2)
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({"step": 4}, "step was 3, is 4 ("),
        ({"input": "9 bytes"}, "input was '12 bytes', is '9 bytes' ("),
        ({"config.task.labels": ("a",)}, "labels was ['a', 'b'], is ['a'] ("),
        ({"config.new": 1}, "config.new was None, is 1 ("),
        (dict.fromkeys("abcd", 1), "a was None, is 1; b was None, is 1; c was None, "),
        (dict.fromkeys("abcd", 1), "is 1 and 1 more ("),
    ],
)
def test_predictions_of_another_provenance_are_refused(tmp_path, changes, differences):
    path = tmp_path / "out.jsonl"
    write(path)
    path.write_bytes(before := path.read_bytes()[:30])
    with pytest.raises(UserError) as error:
        write(path, provenance=PROVENANCE | changes)
    assert f"--output={path}: " in str(error.value)
    assert differences in str(error.value)
    assert path.read_bytes() == before
    path.unlink()
    assert write(path, provenance=PROVENANCE | changes) == 0


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("my notes\nmore\n", "line 1 "),
        ("no line end", "line 1 "),
        ('{"label": "pos"}\n[1]\n', "line 2 "),
        ("[" * 99_999 + "\n", "line 1 "),
        ('{"label": "pos"}\n', r"out\.jsonl\.made_from\.json"),
    ],
)
def test_another_file_is_refused(tmp_path, text, where):
    path = tmp_path / "out.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=where):
        write(path)
    assert path.read_text() == text


def test_another_file_in_place_of_the_provenance_is_refused(tmp_path):
    record = tmp_path / "out.jsonl.made_from.json"
    for text, where in (
        ('{"text": "x"}\n', r"made_from\.json: "),
        ("{}\n{}\n", r"made_from\.json:2: not JSON"),
    ):
        record.write_text(text)
        with pytest.raises(UserError, match=where):
            write(tmp_path / "out.jsonl")
        assert record.read_text() == text


def test_more_predictions_than_examples(tmp_path):
    path = tmp_path / "out.jsonl"
    write(path)
    with pytest.raises(UserError, match=r"has 5 .*, --input 4 examples"):
        write(path, predictions=PREDICTIONS[:4])


def test_a_file_that_cannot_be_written(tmp_path):
    for path, problem in (
        (tmp_path, "is no file"),
        (tmp_path / "none" / "out.jsonl", "No such file or directory"),
    ):
        with pytest.raises(UserError, match=f"--output={path}: {problem}"):
            write(path)
    path = tmp_path / "out.jsonl"
    with (
        open_prediction_file(path, provenance={}, num_examples=1, block_size=1),
        pytest.raises(UserError, match="another process"),
    ):
        write(path)


def test_a_full_disk_is_one_line(tmp_path):
    path = tmp_path / "out.jsonl"
    write(path, predictions=PREDICTIONS[:2])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = path.stat().st_size + 5
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        with pytest.raises(UserError, match=r"out\.jsonl: cannot be written: .*free"):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == size
    assert write(path) == 2
