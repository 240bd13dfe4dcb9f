"""Predictions of labels beside the labels of their examples."""

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.config.data import FieldsConfig
from lmjax.errors import UserError
from lmjax.fileio import parse_json_line

_LEAST = 5e-7  # of probabilities, which are written with 6 digits
_HINT = "write it by lmjax predict --keep=input from examples with labels"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """A file of predictions, compared with the labels of its examples.

    Attributes:
      name: of the file.
      labels: all of them, in the order of the confusion matrix.
      counts: by label and predicted label; of tags, those of tokens.
      worst: the examples that the model finds least probable, worst first.
    """

    name: str
    labels: Sequence[str]
    counts: Mapping[tuple[str, str], int]
    worst: Sequence["WrongExample"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrongExample:
    """An example with its label, what was predicted, and the loss in nats."""

    text: str
    label: str
    predicted: str
    loss: float


def judge_predictions(file: Path, *, fields: FieldsConfig, num_worst: int) -> Judged:
    """Compare the predictions of a file with the labels of their examples.

    Args:
      file: written by `lmjax predict --keep=input`, of labels or of tags.
      fields: the names of the fields of an example.
      num_worst: how many examples to list.

    Raises:
      UserError: it is not such a file; the line is named.
    """
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    examples = []
    for where, line in _read_lines(file):
        if "error" in line:
            continue
        example = line.get("input")
        if not isinstance(example, Mapping):
            raise UserError(f"{where}: has no 'input'; {_HINT}")
        if "tags" in line:
            counts.update(_pair_tags(line, example, fields=fields, where=where))
            continue
        judged = _judge(line, example, fields=fields, where=where)
        counts[judged.label, judged.predicted] += 1
        examples.append(judged)
    if not counts:
        raise UserError(f"{file}: holds no prediction of a label or of tags; {_HINT}")
    wrong = [example for example in examples if example.label != example.predicted]
    wrong.sort(key=lambda example: -example.loss)
    return Judged(
        name=file.name,
        labels=sorted({label for pair in counts for label in pair}),
        counts=counts,
        worst=wrong[:num_worst],
    )


def _read_lines(file: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{file}:{number}"
                yield where, parse_json_line(line, where=where.__str__)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--predictions={file}: cannot be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--predictions={file}: not UTF-8") from error


def _judge(
    line: Mapping[str, Any],
    example: Mapping[str, Any],
    *,
    fields: FieldsConfig,
    where: str,
) -> WrongExample:
    if "label" not in line:
        raise UserError(f"{where}: predicts neither a label nor tags; {_HINT}")
    label = example.get(fields.label)
    if label is None:
        raise UserError(f"{where}: its example has no {fields.label!r}; {_HINT}")
    shares = line.get("probabilities") or {}
    if str(label) not in shares:
        raise UserError(
            f"{where}: {fields.label} = {label!r} is none of the labels that the model "
            f"predicts ({', '.join(shares)})"
        )
    texts = (example.get(name) for name in (fields.text, fields.pair) if name)
    return WrongExample(
        text=" / ".join(str(text) for text in texts if text),
        label=str(label),
        predicted=str(line["label"]),
        loss=-math.log(max(shares[str(label)], _LEAST)),
    )


def _pair_tags(
    line: Mapping[str, Any],
    example: Mapping[str, Any],
    *,
    fields: FieldsConfig,
    where: str,
) -> Iterator[tuple[str, str]]:
    tags, predicted = example.get(fields.tags), line["tags"]
    if not isinstance(tags, list) or len(tags) != len(predicted):
        raise UserError(
            f"{where}: its example has no {fields.tags!r} for each token; {_HINT}"
        )
    return zip(map(str, tags), map(str, predicted), strict=True)
