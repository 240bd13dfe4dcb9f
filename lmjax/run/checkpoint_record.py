"""The record of a checkpoint: what it holds, its metrics, and the log at its step.

checkpoints/STEP/record/record.json has a checksum of its own. Checkpoints of earlier
versions have none; there the metrics are read from where those versions put them.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.errors import UserError
from lmjax.fileio import has_intact_seal, read_json, seal
from lmjax.types import named_leaves

COMMITTED = "commit_success.txt"  # Orbax writes it last into a checkpoint
ITEM, FILE = "record", "record.json"
_EARLIER_METRICS = Path("metrics") / "metrics"

Shapes = dict[str, tuple[int, ...]]  # of arrays, by their dotted names


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogMark:
    """How much was logged up to a step: the number of lines and their CRC-32."""

    num_lines: int = 0
    crc32: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What a checkpoint says of itself."""

    shapes: Mapping[str, Shapes]  # by item
    metrics: Mapping[str, float] | None = None  # of the valid split at this step
    log: LogMark | None = None  # of metrics.jsonl up to this step
    saved_nanoseconds: int = dataclasses.field(default_factory=time.time_ns)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the file."""
        return seal(json.loads(json.dumps(dataclasses.asdict(self))))


def read_record(checkpoint: Path) -> Record | None:
    """Return the record of a checkpoint; None if an earlier version wrote it.

    Raises:
      UserError: it is damaged.
    """
    file = checkpoint / ITEM / FILE
    if not file.exists():
        return None
    values = read_json(file)
    if not has_intact_seal(values, file=file):
        raise UserError(f"{file}: damaged: it has no checksum")
    log = values["log"]
    return Record(
        shapes={
            item: {name: tuple(shape) for name, shape in shapes.items()}
            for item, shapes in values["shapes"].items()
        },
        metrics=values["metrics"],
        log=None if log is None else LogMark(**log),
        saved_nanoseconds=values["saved_nanoseconds"],
    )


def read_metrics(checkpoint: Path) -> Mapping[str, float] | None:
    """Return the metrics of a checkpoint, if it has any.

    Raises:
      UserError: they are damaged.
    """
    record = read_record(checkpoint)
    if record is not None:
        return record.metrics
    file = checkpoint / _EARLIER_METRICS
    values = read_json(file) if file.exists() else None
    if values and not all(isinstance(v, int | float) for v in values.values()):
        raise UserError(f"{file}: damaged: a metric is not a number")
    return values


def shapes_of(tree: Any) -> Shapes:
    """Return the shape of each array by its name."""
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}
