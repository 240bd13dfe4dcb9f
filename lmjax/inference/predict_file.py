"""`lmjax predict`: a file of examples to a file of answers, line by line."""

import contextlib
import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from lmjax.config.experiment import Config, leaves, to_dict
from lmjax.data.formats.examples import add_location
from lmjax.data.formats.registry import find_file, open_file
from lmjax.data.sources.documents import reading
from lmjax.errors import ConfigError, UserError
from lmjax.inference import answer_file, predictor
from lmjax.inference.language_model import LanguageModel, load
from lmjax.run import workdir
from lmjax.run.checkpoint import Checkpoints, Step

_AT_ONCE = 2048  # lines that are sorted by length together, and written
_QUIET_SECONDS = 5.0
# What of a config decides the answers, and what of that only how they are judged.
_DECIDES = ("model", "task")
_DECIDES_DATA = ("fields", "columns", "length", "target_length", "on_bad_text")
_JUDGES = ("config.task.metrics", "config.task.num_answers")

log = logging.getLogger(__name__)


def predict_file(
    directory: Path,
    source: Path,
    target: Path,
    *,
    step: Step,
    skip_bad: bool,
    kind: str = "",
    overrides: Sequence[str] = (),
) -> None:
    """Write the answer to each example of `source` to `target`, in their order.

    What was cut off goes on, if it was made from the same: see `answer_file`.

    Args:
      directory: the workdir of a fine-tuned model.
      source: examples, as training reads them, though answers may be missing; or
        texts. Blank lines are passed over.
      target: where the answers go, one JSON object a line.
      step: of a checkpoint; by default the newest.
      skip_bad: answer an example that cannot be used with {"error": ...}.
      kind: of file, as in `find_file`.
      overrides: of the run's config, as `load` takes them.

    Raises:
      ConfigError: a file cannot be used, or an example (with its line).
    """
    config = workdir.read_config(directory, overrides)
    predictor.check(config)
    source, target = source.expanduser(), target.expanduser()
    given = _opened(config, source, kind=kind)
    if target.exists() and target.samefile(given.file):
        raise ConfigError(f"--output={target}: is --input")
    checkpoints = Checkpoints(directory, config.checkpoint, read_only=True)
    step, count = checkpoints.find(step), len(given.examples)
    made_from: dict[str, Any] = {"step": step, "saved": checkpoints.saved_at(step)}
    made_from |= {"input": _fingerprint(given.file), "format": given.kind}
    made_from |= _decisive(config)
    with answer_file.opened(
        target, made_from=made_from, count=count, at_once=_AT_ONCE
    ) as answers:
        if answers.num_done == count:
            log.info("%s: has all %d answers; nothing is left to do", target, count)
            return
        if answers.num_done:
            log.info("%s: goes on after example %d", target, answers.num_done)
        lm = load(directory, step=step, overrides=overrides)
        _answer_rest(lm, given, answers, skip_bad=skip_bad)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Input:
    """A file of examples, and what its reader should know if one cannot be used."""

    file: Path
    kind: str
    examples: Any
    hint: str


def _opened(config: Config, source: Path, *, kind: str) -> _Input:
    named, file = find_file(config.data, source, kind=kind, leaf="--input")
    hint = ""
    if not kind and source.suffix == ".txt":
        hint = f"read as {named}, as the run's own; --format=text takes lines as texts"
    with _hinting(hint):
        examples = open_file(config.data, file, kind=named, leaf="--input")
    return _Input(file=file, kind=named, examples=examples, hint=hint)


@contextlib.contextmanager
def _hinting(*hints: str) -> Iterator[None]:
    """Add hints to what is said of a mistake."""
    try:
        yield
    except UserError as error:
        more = f" ({'; '.join(filter(None, hints))})" if any(hints) else ""
        raise ConfigError(f"{error}{more}") from error


def _fingerprint(file: Path) -> str:
    """Return what tells a file from any other."""
    with reading(file, path="--input"), file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return f"{opened.tell():,} bytes of sha256 {digest[:16]}"


def _decisive(config: Config) -> dict[str, Any]:
    """Return the leaves of a config that decide the answers, by their paths."""
    whole = to_dict(config)
    parts = {name: whole[name] for name in _DECIDES}
    parts["data"] = {name: whole["data"][name] for name in _DECIDES_DATA}
    return {path: v for path, v in leaves(parts, "config") if path not in _JUDGES}


def _answer_rest(
    lm: LanguageModel,
    given: _Input,
    answers: answer_file.AnswerFile,
    *,
    skip_bad: bool,
) -> None:
    """Answer the examples that have no answer yet, and say how many were cut."""
    count, begun, num_truncated, num_bad = len(given.examples), answers.num_done, 0, 0
    for first in _progress(range(begun, count, _AT_ONCE), count):
        indices = range(first, min(first + _AT_ONCE, count))
        lines, truncated = _answers(lm, given, indices, skip_bad=skip_bad)
        num_bad += sum("error" in line for line in lines)
        num_truncated += truncated
        answers.add(lines)
    cut = f"; {num_truncated:,} cut to fit" if num_truncated else ""
    bad = f"; {num_bad:,} could not be used, and say why" if num_bad else ""
    now = f"; of {count - begun:,} now" if begun else ""
    log.info("%s: %d answers%s%s%s", answers.target, count, now, cut, bad)


def _answers(
    lm: LanguageModel, given: _Input, indices: range, *, skip_bad: bool
) -> tuple[list[dict[str, Any]], int]:
    """Return the answers to some examples, and how many were cut to fit."""
    lines: dict[int, dict[str, Any]] = {}
    parsed = {}
    for i in indices:
        try:
            parsed[i] = lm.predictor.parse(given.examples[i])
        except UserError as error:
            told = add_location(error, given.examples.where(i))
            if not skip_bad:
                with _hinting("--skip_bad answers with the error", given.hint):
                    raise told from error
            lines[i] = {"error": str(told)}
    encoded = lm.predictor.encode_examples([*parsed.values()])
    predictions = lm.predictor.predict(lm.params, encoded, mesh=lm.mesh)
    lines |= dict(zip(parsed, predictions, strict=True))
    return [lines[i] for i in indices], encoded.num_truncated


def _progress(steps: range, total: int) -> Iterator[int]:
    """Yield the steps; show a bar on a terminal, a line now and then elsewhere."""
    console = Console(stderr=True)
    last = time.monotonic()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("predicting", total=total, completed=steps.start)
        for done in steps:
            progress.update(task, completed=done)
            if not console.is_terminal and time.monotonic() - last > _QUIET_SECONDS:
                last = time.monotonic()
                console.print(f"predicted {done:,} of {total:,}", highlight=False)
            yield done
