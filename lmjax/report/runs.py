"""What runs have left in their workdirs, as a report shows it."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.config.experiment import Config, leaves, to_dict
from lmjax.errors import UserError
from lmjax.run.metric_log import METRICS, read_metrics
from lmjax.run.starts import read_starts
from lmjax.run.workdir import read_config
from lmjax.storage.paths import open_path

_MAX_POINTS = 2000  # of a curve; of longer ones evenly spread points are drawn
_SEPARATOR = "\n----\n"  # of the samples of a step
# Named by another column of the report, or not drawn.
_NOT_CURVES = ("step", "split", "num_compilations", "num_skipped")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as its workdir tells it.

    Attributes:
      name: short, and unlike that of the other runs.
      directory: the workdir.
      config: of the run.
      lines: of metrics.jsonl, in order; of a step that is logged twice, the later.
      samples: the continuations of each step, in the order of the prompts.
      starts: when and where it was started.
    """

    name: str
    directory: Path
    config: Config
    lines: Sequence[Mapping[str, Any]]
    samples: Mapping[int, Sequence[str]]
    starts: Sequence[Mapping[str, Any]]


def read_runs(workdirs: Sequence[str]) -> list[RunRecord]:
    """Read some runs, which may still be training.

    Raises:
      UserError: a workdir holds no run that has logged something, or is named twice, or
        the runs have no metric in common.
    """
    directories = [open_path(workdir).expanduser() for workdir in workdirs]
    for i, directory in enumerate(directories):
        if directory in directories[:i]:
            raise UserError(f"{directory}: is given twice")
    names = shorten_names([str(directory) for directory in directories])
    runs = [
        _read_run(directory, name)
        for directory, name in zip(directories, names, strict=True)
    ]
    _check_common_metrics(runs)
    return runs


def _read_run(directory: Path, name: str) -> RunRecord:
    try:
        config = read_config(directory)
    except UserError as error:
        raise UserError(str(error).removeprefix("--workdir=")) from error
    latest = {(line["split"], line["step"]): line for line in read_metrics(directory)}
    if not latest:
        raise UserError(
            f"{directory / METRICS}: holds no metrics; a report needs a run that has "
            "been trained"
        )
    return RunRecord(
        name=name,
        directory=directory,
        config=config,
        lines=sorted(latest.values(), key=lambda line: line["step"]),
        samples=_read_samples(directory / "samples"),
        starts=read_starts(directory),
    )


def _read_samples(directory: Path) -> dict[int, list[str]]:
    files = directory.glob("*.txt") if directory.is_dir() else ()
    by_step = {int(file.stem): file for file in files if file.stem.isdecimal()}
    texts = {s: by_step[s].read_text(errors="replace") for s in sorted(by_step)}
    return {
        step: text.removesuffix("\n").split(_SEPARATOR) for step, text in texts.items()
    }


def shorten_names(paths: Sequence[str]) -> list[str]:
    """Return paths without the directories that all of them begin or end with."""
    parts = [path.rstrip("/").split("/") for path in paths]
    if len(parts) == 1:
        return [parts[0][-1]]
    first = _count_common(parts)
    last = _count_common([part[first:][::-1] for part in parts])
    cut = [part[first : len(part) - last] for part in parts]
    # A path that is the beginning of another would have no name left.
    return ["/".join(part) or path for part, path in zip(cut, paths, strict=True)]


def _count_common(paths: Sequence[Sequence[str]]) -> int:
    """Return how many parts all of some paths begin with."""
    equal = (len(set(parts)) == 1 for parts in zip(*paths, strict=False))
    return sum(1 for _ in itertools.takewhile(bool, equal))


def _check_common_metrics(runs: Sequence[RunRecord]) -> None:
    named = [{name for s in list_curves(run).values() for name in s} for run in runs]
    for run, names in zip(runs[1:], named[1:], strict=True):
        if not names & named[0]:
            raise UserError(
                f"{run.directory}: has no metric in common with {runs[0].directory} "
                f"({', '.join(sorted(names))}; {', '.join(sorted(named[0]))})"
            )


def list_curves(run: RunRecord) -> dict[str, dict[str, list[list[float]]]]:
    """Return the points of each metric, by split and name.

    A point is [step, tokens seen, hours, value]. Hours are of training itself, without
    evaluation, as the log's times of steps add up; they and the tokens are of the
    steps that were logged.
    """
    curves: dict[str, dict[str, list[list[float]]]] = {}
    step, tokens, hours = 0, 0.0, 0.0
    for line in run.lines:
        seconds = _number(line.get("step_seconds")) * max(line["step"] - step, 0)
        if line["split"] == "train":
            tokens += _number(line.get("tokens_per_second")) * seconds
            hours, step = hours + seconds / 3600, line["step"]
        for name, value in line.items():
            if name not in _NOT_CURVES and isinstance(value, int | float):
                points = curves.setdefault(line["split"], {}).setdefault(name, [])
                points.append([line["step"], round(tokens), round(hours, 6), value])
    return {
        split: {name: _thin_out(points) for name, points in metrics.items()}
        for split, metrics in curves.items()
    }


def _thin_out(points: list[list[float]]) -> list[list[float]]:
    """Return at most `_MAX_POINTS` of some points, the first and last among them."""
    if len(points) <= _MAX_POINTS:
        return points
    spread = (len(points) - 1) / (_MAX_POINTS - 1)
    return [points[round(i * spread)] for i in range(_MAX_POINTS)]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def list_differences(runs: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Return the leaves of the configs in which runs differ, with each one's value."""
    flat = [_flatten(run.config) for run in runs]
    paths = dict.fromkeys(path for leaves_of_run in flat for path in leaves_of_run)
    rows = {path: [values.get(path, "-") for values in flat] for path in paths}
    return {path: row for path, row in rows.items() if len(set(row)) > 1}


def _flatten(config: Config) -> dict[str, str]:
    return {path: repr(value) for path, value in leaves(to_dict(config), "config")}


def list_leaves(run: RunRecord) -> dict[str, str]:
    """Return all leaves of the config of a run."""
    return _flatten(run.config)
