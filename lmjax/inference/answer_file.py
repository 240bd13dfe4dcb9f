"""A file of answers that may be gone on with, and beside it what they were made from.

FILE                 one JSON object a line, an answer each
FILE.made_from.json  what decides the answers, by name; written before the first of them
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.errors import ConfigError
from lmjax.fileio import locked_file, one_line_errors
from lmjax.run.metric_log import json_line
from lmjax.run.workdir import read_json, write_json

NOTE = ".made_from.json"
_MARK = "made_by"  # tells a note from another file of that name
_MOST = 3  # differences that an error names
_INSTEAD = "remove the file, or choose another"


@dataclasses.dataclass(eq=False)
class AnswerFile:
    """Answers in a file that this process alone writes."""

    out: io.FileIO
    target: Path
    num_done: int

    def add(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Write some more answers.

        Raises:
          ConfigError: the disk is full, or what else the system says.
        """
        lines = "".join(json_line(answer) + "\n" for answer in answers)
        left = memoryview(lines.encode())
        with one_line_errors(self.target):
            while left:
                left = left[self.out.write(left) :]
        self.num_done += len(answers)


@contextlib.contextmanager
def opened(
    target: Path, *, made_from: Mapping[str, Any], count: int, at_once: int
) -> Iterator[AnswerFile]:
    """Open a file of answers; what was cut off goes on.

    Whole blocks of answers are kept, or all that are asked for: what comes after is
    then made of the same batches as if it had never been cut off.

    Args:
      target: the file, made if it is not there.
      made_from: what decides the answers, JSON by name.
      count: how many answers it will have.
      at_once: answers of a block.

    Raises:
      ConfigError: the file holds something else, or answers made from something else;
        it is left as it is.
    """
    if target.exists() and not target.is_file():
        raise ConfigError(f"--output={target}: is no file")
    made_from = json.loads(json.dumps(made_from))
    note = target.with_name(target.name + NOTE)
    with locked_file(target, name="--output") as out:
        ends = _ends(target)
        num_done, size = len(ends) - 1, target.stat().st_size
        noted = _noted(note)
        if size:
            _refuse_others(noted, made_from, target=target)
        else:
            write_json(note, {_MARK: "lmjax predict", **made_from})
        if num_done > count:
            raise ConfigError(
                f"--output={target}: has {num_done:,} answers, --input {count:,} "
                f"examples: {_INSTEAD}"
            )
        if num_done < count:
            num_done -= num_done % at_once
        if size > ends[num_done]:
            out.truncate(ends[num_done])
        yield AnswerFile(out, target, num_done)


def _ends(target: Path) -> list[int]:
    """Return where a file's whole lines end, 0 before them.

    Only its last line may be cut off, as where a run was killed.

    Raises:
      ConfigError: it holds something else than answers.
    """
    ends = [0]
    with target.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            whole = line.endswith(b"\n")
            if not (_is_answer(line) if whole else line.startswith(b"{")):
                raise ConfigError(
                    f"--output={target}: line {number} is no answer of predict: "
                    f"{_INSTEAD}"
                )
            if whole:
                ends.append(ends[-1] + len(line))
    return ends


def _is_answer(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _noted(note: Path) -> dict[str, Any] | None:
    """Return what a note says; None where there is none.

    Raises:
      ConfigError: it is another file.
    """
    if not note.exists():
        return None
    noted = read_json(note)
    if noted.pop(_MARK, None) is None:
        raise ConfigError(f"{note}: is no note of predict: {_INSTEAD}")
    return noted


def _refuse_others(
    noted: Mapping[str, Any] | None, made_from: Mapping[str, Any], *, target: Path
) -> None:
    """Raise if answers were made from something else, or nobody knows from what."""
    where = f"--output={target}: holds answers"
    if noted is None:
        raise ConfigError(
            f"{where}, but there is no {target.name}{NOTE} that says what they were "
            f"made from: {_INSTEAD}"
        )
    changed = [
        f"{name} was {noted.get(name)!r}, is {made_from.get(name)!r}"
        for name in {**made_from, **noted}
        if noted.get(name) != made_from.get(name)
    ]
    if changed:
        more = f" and {len(changed) - _MOST} more" if len(changed) > _MOST else ""
        raise ConfigError(
            f"{where} made from something else: {'; '.join(changed[:_MOST])}{more} "
            f"(take these back, {_INSTEAD})"
        )
