"""Compare models on one file: `lmjax compare`."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.experiment import Config
from lmjax.data.formats.examples import add_location
from lmjax.data.formats.registry import find_input_file, open_input_file
from lmjax.data.sources.text import read_lines
from lmjax.errors import ConfigError, UserError
from lmjax.inference import speed
from lmjax.inference.language_model import LanguageModel, load
from lmjax.inference.measure import (
    Measured,
    chosen,
    measure_documents,
    measure_examples,
)
from lmjax.metrics import bootstrap
from lmjax.nn.quantized import count_weights
from lmjax.run import workdir
from lmjax.storage.paths import open_path

log = logging.getLogger(__name__)

_NUM_SHOWN = 5  # units on which the models differ most
_MAX_CHARACTERS = 300  # of each
# Of language models with other tokens these cannot be compared.
_OF_TOKENS = ("loss", "perplexity", "accuracy")


def compare(
    directories: Sequence[str | Path],
    input: str | Path,
    *,
    format: str = "",
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure models on one file, and what each differs by from the first.

    Language models are measured on a text, whose documents blank lines separate; where
    there are none, each line is one. Models that were trained on examples are measured
    on a file of labelled ones. Intervals are of a paired bootstrap over documents or
    examples.

    Args:
      directories: workdirs, two or more, of one task.
      input: the file.
      format: of examples; by default that of its suffix, else the run's.
      overrides: `a.b=value` of each run's config, such as "data.fields.text=review".

    Returns:
      JSON: `models` in their order, each with `metrics`, `differences` from the first,
      the `agreement` with its choices, bytes and tokens a second; `most_different`
      units; and `notes` for the reader.

    Raises:
      UserError: there is only one workdir, their tasks differ, or the file cannot be
        used.
    """
    paths = [open_path(directory).expanduser() for directory in directories]
    if len(paths) < 2:
        raise UserError(f"{' '.join(map(str, paths))}: give two workdirs or more")
    configs = [_read_config(path, overrides) for path in paths]
    for path, config in zip(paths[1:], configs[1:], strict=True):
        _check_same_task(config, configs[0], path=path, first=paths[0])
    units = _open_units(configs[0], open_path(input).expanduser(), format=format)
    described, measured, fingerprints = [], [], []
    for path in paths:
        log.info("%s: measuring on %d %s", path, len(units.items), units.name)
        lm = load(path, overrides=overrides)
        measured.append(units.measure(lm))
        described.append(_describe(lm, path) | _describe_speed(lm, units))
        fingerprints.append(lm.tokenizer.fingerprint())
        del lm  # before the next is in memory
    same = [fingerprint == fingerprints[0] for fingerprint in fingerprints]
    comparable = [units.has_labels or is_same for is_same in same]
    models = [
        model | _describe_metrics(found, measured[0], of_tokens=ok, is_first=i == 0)
        for i, (model, found, ok) in enumerate(
            zip(described, measured, comparable, strict=True)
        )
    ]
    return {
        "input": str(input),
        "task": configs[0].task.kind,
        "units": units.name,
        "num_units": len(units.items),
        "models": models,
        "most_different": _most_different(units, measured) if all(comparable) else [],
        "notes": [*_notes(units, comparable, paths)],
    }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Units:
    """What models are measured on: documents, or examples with their labels."""

    items: Sequence[Any]
    places: Sequence[str]  # FILE:LINE of each example
    has_labels: bool

    @property
    def name(self) -> str:
        """Return what they are called."""
        return "examples" if self.has_labels else "documents"

    def measure(self, lm: LanguageModel) -> Measured:
        """Measure a model on all of them.

        Raises:
          UserError: one cannot be used.
        """
        if not self.has_labels:
            return measure_documents(lm, self.items)
        for item, place in zip(self.items, self.places, strict=True):
            try:
                lm.predictor.features.parse(item)
            except UserError as error:
                raise add_location(error, place) from error
        return measure_examples(lm, self.items)


def _read_config(path: Path, overrides: Sequence[str]) -> Config:
    try:
        return workdir.read_config(path, overrides)
    except ConfigError:
        raise
    except UserError as error:  # it names the flag of other verbs
        raise UserError(str(error).removeprefix("--workdir=")) from error


def _check_same_task(config: Config, other: Config, *, path: Path, first: Path) -> None:
    if config.task.kind != other.task.kind:
        raise UserError(
            f"{path}: config.task.kind = {config.task.kind!r}, but {first} has "
            f"{other.task.kind!r}: only models of one task can be compared"
        )
    if {*config.task.output_names} != {*other.task.output_names}:
        raise UserError(
            f"{path}: config.task.labels = {config.task.output_names}, but {first} has "
            f"{other.task.output_names}"
        )


def _open_units(config: Config, file: Path, *, format: str) -> _Units:
    """Open the file that models of a config are measured on.

    Raises:
      UserError: it cannot be used by models of this task.
    """
    if config.task.reads_examples:
        kind, file = find_input_file(config.data, file, kind=format, leaf="--input")
        examples = open_input_file(
            config.data, file, kind=kind, leaf="--input", labelled=True
        )
        places = [examples.where(i) for i in range(len(examples))]
        items = [examples[i] for i in range(len(examples))]
        return _Units(items=items, places=places, has_labels=True)
    if format not in ("", "text"):
        kind = config.task.kind
        raise UserError(
            f"--format={format}: must be text for config.task.kind = {kind!r}"
        )
    obstacle = config.model.generation_obstacle
    if config.model.is_encoder_decoder or not config.model.can_generate:
        why = obstacle or f"kind = {config.model.kind!r}"
        raise UserError(f"config.model.{why}: it scores no running text to compare")
    if not file.is_file():
        raise UserError(f"--input={file}: no such file")
    documents = _split_documents(read_lines(file, path=f"--input={file}"))
    if not documents:
        raise UserError(f"--input={file}: has no text")
    return _Units(items=documents, places=(), has_labels=False)


def _split_documents(lines: Sequence[str]) -> list[str]:
    """Return what lies between blank lines; without any, the lines."""
    blank = [i for i, line in enumerate(lines) if not line.strip()]
    if not blank:
        return [*lines]
    starts, ends = [0, *(i + 1 for i in blank)], [*blank, len(lines)]
    parts = ("\n".join(lines[a:b]) for a, b in zip(starts, ends, strict=True))
    return [part for part in parts if part]


def _describe(lm: LanguageModel, path: Path) -> dict[str, Any]:
    leaves = jax.tree.leaves(lm.params)
    return {
        "workdir": str(path),
        "step": lm.step,
        "parameters": count_weights(lm.params),
        "bytes_on_disk": _bytes_on_disk(path / "checkpoints" / str(lm.step)),
        "bytes_in_memory": sum(math.ceil(x.size * _num_bits(x) / 8) for x in leaves),
    }


def _num_bits(x: jax.Array) -> int:
    is_integer = jnp.issubdtype(x.dtype, jnp.integer)
    return (jnp.iinfo if is_integer else jnp.finfo)(x.dtype).bits


def _bytes_on_disk(checkpoint: Path) -> int:
    """Return the bytes of a checkpoint without the state of its training."""
    return sum(
        _bytes_on_disk(path) if path.is_dir() else path.stat().st_size
        for path in checkpoint.iterdir()
        if path.name != "train"
    )


def _describe_speed(lm: LanguageModel, units: _Units) -> dict[str, float | None]:
    features = lm.predictor.features if units.has_labels else None
    if features is None:
        found = speed.measure_writing(lm, units.items[0])
    elif lm.config.task.decoding is None:
        some = units.items[: speed.NUM_EXAMPLES]
        parsed = [features.parse(item, labelled=False) for item in some]
        found = speed.measure_predicting(lm, parsed)
    else:
        pair: Any = features.parse(units.items[0], labelled=False)
        text_features: Any = features
        found = speed.measure_writing(lm, text_features.prompt(pair))
    return {f"{name}_tokens_per_second": value for name, value in found.items()}


def _describe_metrics(
    found: Measured, first: Measured, *, of_tokens: bool, is_first: bool
) -> dict[str, Any]:
    """Return the metrics of a model, and their differences from those of the first.

    Args:
      found: of the model.
      first: of the first model.
      of_tokens: they have the same tokens.
      is_first: they are the same model.
    """
    names = [*found.metrics.values]
    comparable = [n for n in names if of_tokens or n not in _OF_TOKENS]
    intervals = {n: bootstrap.interval(found.metrics, n).to_dict() for n in names}
    if is_first:
        return {"metrics": intervals}
    return {
        "metrics": intervals,
        "differences": {
            n: bootstrap.difference(found.metrics, first.metrics, n).to_dict()
            for n in comparable
        },
        "agreement": found.agreement(first) if of_tokens else None,
    }


def _most_different(
    units: _Units, measured: Sequence[Measured]
) -> list[dict[str, Any]]:
    """Return the units on which the loss of a model differs most from the first's."""
    losses = np.stack([found.losses for found in measured])
    spread = np.abs(losses - losses[0]).max(axis=0)
    order = np.argsort(-spread, kind="stable")[:_NUM_SHOWN].tolist()
    return [
        {
            "number": i,
            **({"place": units.places[i]} if units.has_labels else {}),
            "text": _shorten(units.items[i]),
            "losses": [float(found.losses[i]) for found in measured],
            **_predictions(measured, i),
        }
        for i in order
    ]


def _predictions(measured: Sequence[Measured], unit: int) -> dict[str, Any]:
    found = [one.predictions[unit] for one in measured]
    return {} if found[0] is None else {"predictions": [chosen(x) for x in found]}


def _shorten(item: Any) -> str:
    text = item if isinstance(item, str) else str(dict(item))
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."


def _notes(
    units: _Units, comparable: Sequence[bool], paths: Sequence[Path]
) -> Sequence[str]:
    notes = []
    for path, ok in zip(paths, comparable, strict=True):
        if not ok:
            notes.append(
                f"{path} has another tokenizer than {paths[0]}: its loss, perplexity "
                "and accuracy are of other tokens; compare bits_per_byte"
            )
    if len(units.items) == 1:
        notes.append(f"one of {units.name} alone: there are no intervals")
    return notes
