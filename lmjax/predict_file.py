"""`lmjax predict`: a file of examples to a file of answers, line by line."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from lmjax import workdir
from lmjax.checkpoint import Step
from lmjax.config import ConfigError
from lmjax.data.directory import locked_file
from lmjax.data.example_formats import open_file
from lmjax.data.example_store import placed
from lmjax.language_model import LanguageModel, load
from lmjax.logging import json_line

_AT_ONCE = 2048  # lines that are sorted by length together, and written
_QUIET_SECONDS = 5.0

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

    Whole lines that `target` holds already are kept, and their examples passed over:
    what was cut off goes on.

    Args:
      directory: the workdir of a fine-tuned model.
      source: examples, as training reads them, or texts; blank lines are passed over.
      target: where the answers go, one JSON object a line.
      step: of a checkpoint; by default the newest.
      skip_bad: answer an example that cannot be used with {"error": ...}.
      kind: of file, as in `open_file`.
      overrides: of the run's config, as `load` takes them.

    Raises:
      ConfigError: a file cannot be used, or an example (with its line).
    """
    if source.resolve() == target.resolve():
        raise ConfigError(f"--output={target}: is --input")
    config = workdir.read_config(directory)
    examples = open_file(config.data, source, kind=kind, leaf="--input")
    with locked_file(target, name="--output") as out:
        done, end = _whole_lines(out, target)
        if done > len(examples):
            raise ConfigError(
                f"--output={target}: has {done:,} lines, --input={source} "
                f"{len(examples):,} examples: it holds answers to something else"
            )
        if done:
            log.info("%s: goes on after example %d", target, done)
        lm = load(directory, step=step, overrides=overrides)
        out.truncate(end)
        out.seek(end)
        num_truncated = 0
        for first in _progress(range(done, len(examples), _AT_ONCE), len(examples)):
            indices = range(first, min(first + _AT_ONCE, len(examples)))
            lines, truncated = _answers(lm, examples, indices, skip_bad=skip_bad)
            num_truncated += truncated
            out.write("".join(json_line(line) + "\n" for line in lines).encode())
            out.flush()
    cut = f"; {num_truncated:,} cut to fit" if num_truncated else ""
    log.info("%s: %d answers%s", target, len(examples), cut)


def _answers(
    lm: LanguageModel, examples: Any, indices: range, *, skip_bad: bool
) -> tuple[list[dict[str, Any]], int]:
    """Return the answers to some examples, and how many were cut to fit."""
    lines: dict[int, dict[str, Any]] = {}
    readings = {}
    for i in indices:
        try:
            readings[i] = lm.predictor.read(examples[i])
        except ConfigError as error:
            told = placed(error, examples.where(i))
            if not skip_bad:
                hint = "--skip_bad answers such lines with the error"
                raise ConfigError(f"{told} ({hint})") from error
            lines[i] = {"error": str(told)}
    answers, truncated = lm.predictor.answers(
        lm.params, [*readings.values()], mesh=lm.mesh
    )
    lines |= dict(zip(readings, answers, strict=True))
    return [lines[i] for i in indices], truncated


def _whole_lines(out: Any, target: Path) -> tuple[int, int]:
    """Count the whole lines of a file of answers, and the bytes of them.

    Only its last line may be cut off, as where a run was killed.

    Raises:
      ConfigError: it holds something else, which is left as it is.
    """
    out.seek(0)
    count = end = 0
    for number, line in enumerate(out, start=1):
        whole = line.endswith(b"\n")
        if not (_is_answer(line) if whole else line.startswith(b"{")):
            raise ConfigError(
                f"--output={target}: line {number} is no answer of predict: remove the "
                "file, or choose another"
            )
        if whole:
            count, end = count + 1, end + len(line)
    return count, end


def _is_answer(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


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
