"""Predict a file of examples, line by line: `lmjax predict`."""

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.config.experiment import Config, leaves, to_dict
from lmjax.data.formats.examples import add_location
from lmjax.data.formats.registry import (
    LINE_FORMATS,
    find_input_file,
    open_input_file,
)
from lmjax.data.sources.text import read_errors
from lmjax.errors import UserError, nearest
from lmjax.inference import predictor
from lmjax.inference.blank_lines import LinesAndBlanks, is_blank
from lmjax.inference.explain import check_method
from lmjax.inference.explained import EXAMPLE_TASKS
from lmjax.inference.language_model import LanguageModel, restore_language_model
from lmjax.inference.prediction_file import PredictionFile, open_prediction_file
from lmjax.progress import ProgressBar
from lmjax.run import workdir
from lmjax.run.checkpoint import Step, open_checkpoints
from lmjax.storage.paths import open_path

_BLOCK_SIZE = 2048  # examples that are sorted by length together, and written
_PROGRESS_DELAY = 5.0  # seconds before a progress bar is shown
# The part of a config that decides predictions, and the leaves of it that do not: they
# only decide the metrics of predictions.
_SECTIONS = ("model", "task")
_DATA_LEAVES = (
    "fields",
    "columns",
    "length",
    "target_length",
    "on_bad_text",
    "encoding",
)
_METRIC_LEAVES = tuple(
    f"config.task.{leaf}"
    for leaf in ("metrics", "num_answers", "language", "bleu_tokenizer", "strict")
)

_KEEP = "id"  # the field that answers are joined by

log = logging.getLogger(__name__)


def predict_file(
    directory: str | Path,
    input: str | Path,
    output: str | Path,
    *,
    step: Step = None,
    skip_bad: bool = False,
    format: str = "",
    keep: str = "id",
    explain: str = "",
    overrides: Sequence[str] = (),
) -> None:
    """Write a prediction for each example of a file, in the order of the examples.

    A line that holds no example, such as a blank one, has the prediction {"error": ...}
    in its place.

    An interrupted file is resumed: see `prediction_file`.

    Args:
      directory: the workdir of a fine-tuned model.
      input: a file of examples as training reads them, whose labels or targets may be
        missing, or of texts.
      output: the file of predictions, one JSON object per line.
      step: of a checkpoint, or "best"; by default the newest.
      skip_bad: write {"error": ...} for an example that cannot be used.
      format: of the input; by default that of its suffix, else the run's.
      keep: the fields of an example that its prediction has, too, separated by commas;
        "input": all of it, as `input`. By default the field "id", if there is one.
      explain: a method of `LanguageModel.explain`, whose scores each prediction has as
        its `explanation`.
      overrides: `a.b=value` of the run's config, as `load` takes them.

    Raises:
      UserError: a file cannot be used, or an example (with its line).
    """
    directory = open_path(directory).expanduser()
    source, target = open_path(input).expanduser(), open_path(output).expanduser()
    config = workdir.read_config(directory, overrides)
    predictor.check(config)
    if explain:
        with _name_flag(explain):
            check_method(config, explain)
        if config.task.kind not in EXAMPLE_TASKS:
            raise UserError(
                f"--explain={explain}: config.task.kind = {config.task.kind!r}: only "
                f"for {', '.join(EXAMPLE_TASKS)}"
            )
    examples = _open_input(config, source, format=format)
    if target.exists() and target.samefile(examples.file):
        raise UserError(f"--output={target}: is --input")
    provenance: dict[str, Any] = {
        "input": _fingerprint(examples.file),
        "format": examples.format,
        **({} if keep == _KEEP else {"keep": keep}),
        **({"explain": explain} if explain else {}),
        **_decisive_leaves(config),
    }
    with open_checkpoints(directory, config) as checkpoints:

        def predict(found: int) -> None:
            saved = {"step": found, "saved": checkpoints.saved_at(found)}
            with open_prediction_file(
                target,
                provenance={**saved, **provenance},
                num_examples=len(examples),
                block_size=_BLOCK_SIZE,
            ) as predictions:
                num_done = predictions.num_done
                if num_done == len(examples):
                    log.info(
                        "%s: has all %d predictions; nothing to do", target, num_done
                    )
                    return
                if num_done:
                    log.info("%s: resumes after example %d", target, num_done)
                lm = restore_language_model(directory, config, checkpoints, step=found)
                _predict_rest(
                    lm,
                    examples,
                    predictions,
                    skip_bad=skip_bad,
                    keep=keep,
                    explain=explain,
                )

        checkpoints.read(step, predict)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Input:
    """An open file of examples."""

    file: Path
    format: str
    examples: Any
    hint: str  # for errors: how its format was chosen

    def __len__(self) -> int:
        return len(self.examples)


def _open_input(config: Config, source: Path, *, format: str) -> _Input:
    chosen, file = find_input_file(config.data, source, kind=format, leaf="--input")
    hint = ""
    if not format and source.suffix == ".txt":
        hint = f"read as {chosen}, like the run's data; --format=text reads texts"
    with _add_hints(hint):
        examples = open_input_file(config.data, file, kind=chosen, leaf="--input")
    if chosen in LINE_FORMATS and (lines := examples.lines_of(file)):
        examples = LinesAndBlanks(examples, file, lines)
    return _Input(file=file, format=chosen, examples=examples, hint=hint)


@contextlib.contextmanager
def _add_hints(*hints: str) -> Iterator[None]:
    """Append hints to the text of a `UserError`."""
    try:
        yield
    except UserError as error:
        more = f" ({'; '.join(filter(None, hints))})" if any(hints) else ""
        raise UserError(f"{error}{more}") from error


@contextlib.contextmanager
def _name_flag(explain: str) -> Iterator[None]:
    """Name the flag in the text of a `UserError` about a method."""
    try:
        yield
    except UserError as error:
        text = str(error).removeprefix(f"method = {explain!r}")
        raise UserError(f"--explain={explain}{text}") from error


def _fingerprint(file: Path) -> str:
    """Return the size and the hash of a file."""
    with read_errors(file, path="--input"), file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        return f"{content.tell():,} bytes of sha256 {digest[:16]}"


def _decisive_leaves(config: Config) -> dict[str, Any]:
    """Return the leaves of a config that decide predictions, by their dotted paths."""
    values = to_dict(config)
    decisive = {name: values[name] for name in _SECTIONS}
    decisive["data"] = {name: values["data"][name] for name in _DATA_LEAVES}
    return {
        path: value
        for path, value in leaves(decisive, "config")
        if path not in _METRIC_LEAVES
    }


def _predict_rest(
    lm: LanguageModel,
    examples: _Input,
    predictions: PredictionFile,
    *,
    skip_bad: bool,
    keep: str,
    explain: str,
) -> None:
    """Predict the examples that are not done yet, and log how many were truncated."""
    total, num_done = len(examples), predictions.num_done
    num_truncated = num_bad = 0
    with ProgressBar(
        "predicting", total=total, done=num_done, delay=_PROGRESS_DELAY
    ) as bar:
        for first in range(num_done, total, _BLOCK_SIZE):
            block = range(first, min(first + _BLOCK_SIZE, total))
            lines, truncated = _predict_block(
                lm, examples, block, skip_bad=skip_bad, keep=keep, explain=explain
            )
            num_bad += sum("error" in line for line in lines)
            num_truncated += truncated
            predictions.append(lines)
            bar.update(block.stop)
    cut = f"; {num_truncated:,} truncated" if num_truncated else ""
    bad = f"; {num_bad:,} could not be used, with the error" if num_bad else ""
    now = f"; of these {total - num_done:,} now" if num_done else ""
    log.info("%s: %d predictions%s%s%s", predictions.path, total, now, cut, bad)


def _predict_block(
    lm: LanguageModel,
    examples: _Input,
    block: range,
    *,
    skip_bad: bool,
    keep: str,
    explain: str,
) -> tuple[list[dict[str, Any]], int]:
    """Return the predictions for some examples, and how many were truncated."""
    predictions: dict[int, dict[str, Any]] = {}
    parsed, kept = {}, {}
    for i in block:
        where = examples.examples.where
        try:
            example = examples.examples[i]
            if is_blank(example):
                predictions[i] = {"error": f"{where(i)}: is blank"}
                continue
            kept[i] = _keep(example, keep)
            parsed[i] = lm.predictor.parse(example)
        except UserError as error:
            located = add_location(error, where(i))
            if not skip_bad:
                with _add_hints("--skip_bad writes the error instead", examples.hint):
                    raise located from error
            predictions[i] = kept.get(i, {}) | {"error": str(located)}
    encoded = lm.predictor.encode_examples([*parsed.values()])
    answers = lm.predictor.predict(lm.params, encoded, mesh=lm.mesh)
    if explain:
        answers = [*answers]
        for place, (i, one) in enumerate(parsed.items()):
            try:
                found = lm.explain_prediction(one, answers[place], explain)
            except UserError as error:
                if not skip_bad:
                    raise add_location(error, where(i)) from error
                answers[place] = {"error": str(add_location(error, where(i)))}
            else:
                answers[place] = answers[place] | {"explanation": found.to_dict()}
    for i, answer in zip(parsed, answers, strict=True):
        if clash := kept[i].keys() & answer.keys():
            raise UserError(
                f"--keep={keep}: predictions have their own {clash.pop()!r}"
            )
        predictions[i] = kept[i] | answer
    return [predictions[i] for i in block], encoded.num_truncated


def _keep(example: Any, keep: str) -> dict[str, Any]:
    """Return what a prediction has of its example.

    Raises:
      UserError: it lacks a field that is named.
    """
    if keep == "input":
        return {"input": example}
    fields = example if isinstance(example, Mapping) else {}
    if keep == _KEEP:
        return {_KEEP: fields[_KEEP]} if _KEEP in fields else {}
    for name in keep.split(","):
        if name not in fields:
            hint = nearest(name, [*fields])
            raise UserError(f"--keep={keep}: no field {name!r}{hint}")
    return {name: fields[name] for name in keep.split(",")}
