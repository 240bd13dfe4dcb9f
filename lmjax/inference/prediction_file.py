"""A file of predictions that can be resumed, with a record of what decides them.

FILE                 one JSON object per line and example
FILE.made_from.json  the provenance: what decides the predictions, by name
"""

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.errors import UserError
from lmjax.fileio import open_locked, read_json, write_errors, write_json
from lmjax.run.metric_log import json_line

PROVENANCE = ".made_from.json"
_FLAG = "--output"
_MARK = "made_by"  # tells a provenance file from another file of that name
_MAX_DIFFERENCES = 3  # that an error names
_ADVICE = "remove the file, or choose another"


@dataclasses.dataclass(eq=False)
class PredictionFile:
    """Predictions in a file that only this process writes."""

    out: io.FileIO
    path: Path
    num_done: int

    def append(self, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Write the next predictions.

        Raises:
          UserError: they cannot be written, as when the disk is full.
        """
        lines = "".join(json_line(prediction) + "\n" for prediction in predictions)
        left = memoryview(lines.encode())
        with write_errors(self.path):
            while left:
                left = left[self.out.write(left) :]
        self.num_done += len(predictions)


@contextlib.contextmanager
def open_prediction_file(
    path: Path,
    *,
    provenance: Mapping[str, Any],
    num_examples: int,
    block_size: int,
) -> Iterator[PredictionFile]:
    """Open a file of predictions, and resume it if it was interrupted.

    Predictions are kept in whole blocks, or all of them: those that follow come from
    the same batches as without the interruption.

    Args:
      path: the file; created if missing.
      provenance: what decides the predictions, JSON by name.
      num_examples: predictions of the complete file.
      block_size: examples that are predicted together.

    Raises:
      UserError: the file holds something else, or predictions of another provenance;
        it is left unchanged.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{_FLAG}={path}: is no file")
    provenance = json.loads(json.dumps(provenance))
    record = path.with_name(path.name + PROVENANCE)
    with open_locked(path, flag=_FLAG) as out:
        line_ends = _find_line_ends(path)
        num_done, size = len(line_ends) - 1, path.stat().st_size
        recorded = _read_provenance(record)
        if size:
            _check_same_provenance(recorded, provenance, path=path)
        else:
            write_json(record, {_MARK: "lmjax predict", **provenance})
        if num_done > num_examples:
            raise UserError(
                f"{_FLAG}={path}: has {num_done:,} predictions, --input "
                f"{num_examples:,} examples: {_ADVICE}"
            )
        if num_done < num_examples:
            num_done -= num_done % block_size
        if size > line_ends[num_done]:
            out.truncate(line_ends[num_done])
        yield PredictionFile(out, path, num_done)


def _find_line_ends(path: Path) -> list[int]:
    """Return the byte offsets at which complete lines end, after a first 0.

    The last line may be cut off, as after a process was killed.

    Raises:
      UserError: a line is no prediction.
    """
    ends = [0]
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            complete = line.endswith(b"\n")
            if not (_is_object(line) if complete else line.startswith(b"{")):
                raise UserError(
                    f"{_FLAG}={path}: line {number} is no prediction: {_ADVICE}"
                )
            if complete:
                ends.append(ends[-1] + len(line))
    return ends


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _read_provenance(record: Path) -> dict[str, Any] | None:
    """Return the recorded provenance, None if there is no record.

    Raises:
      UserError: the file is something else.
    """
    if not record.exists():
        return None
    recorded = read_json(record)
    if recorded.pop(_MARK, None) is None:
        raise UserError(f"{record}: is no record of lmjax predict: {_ADVICE}")
    return recorded


def _check_same_provenance(
    recorded: Mapping[str, Any] | None, provenance: Mapping[str, Any], *, path: Path
) -> None:
    """Check that the predictions in a file have this provenance.

    Raises:
      UserError: they have another, or there is no record of it.
    """
    where = f"{_FLAG}={path}: holds predictions"
    if recorded is None:
        raise UserError(
            f"{where}, but {path.name}{PROVENANCE}, which records what decided "
            f"them, is missing: {_ADVICE}"
        )
    changed = [
        f"{name} was {recorded.get(name)!r}, is {provenance.get(name)!r}"
        for name in {**provenance, **recorded}
        if recorded.get(name) != provenance.get(name)
    ]
    if changed:
        num_more = len(changed) - _MAX_DIFFERENCES
        more = f" and {num_more} more" if num_more > 0 else ""
        raise UserError(
            f"{where} of another run of predict: "
            f"{'; '.join(changed[:_MAX_DIFFERENCES])}{more} "
            f"(undo these changes, {_ADVICE})"
        )
