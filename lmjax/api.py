"""Training and evaluation from Python: `lmjax.train`, `lmjax.evaluate`.

They do what the commands do, with the same workdirs. `lmjax/__init__.py` exports them
next to `lmjax.load` and `lmjax.predict_file`.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.config import experiment
from lmjax.config.experiment import Config, parse, to_dict
from lmjax.inference.language_model import LanguageModel, load
from lmjax.run.checkpoint import Step, open_checkpoints
from lmjax.run.metric_log import read_metrics
from lmjax.run.workdir import read_config
from lmjax.storage.paths import open_path
from lmjax.training import init_from, loop
from lmjax.training.evaluate_workdir import evaluate_workdir


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The workdir of a run after `train`.

    Attributes:
      workdir: where everything is.
      finished: False if a signal stopped the run; `train` again to resume it.
    """

    workdir: Path
    finished: bool

    @functools.cached_property
    def history(self) -> list[dict[str, Any]]:
        """The logged metrics in order: one dict per step and split."""
        return read_metrics(self.workdir)

    @functools.cached_property
    def step(self) -> int:
        """The step of the newest checkpoint."""
        with open_checkpoints(self.workdir, read_config(self.workdir)) as checkpoints:
            return checkpoints.find(None)

    @functools.cached_property
    def best_step(self) -> int | None:
        """The step of the best checkpoint, None without `checkpoint.best_metric`."""
        with open_checkpoints(self.workdir, read_config(self.workdir)) as checkpoints:
            return checkpoints.best()

    def load(self, step: Step = None) -> LanguageModel:
        """Return the trained model, by default of the newest checkpoint."""
        return load(self.workdir, step=step)


def train(
    config: Config | Mapping[str, Any] | str | Path,
    workdir: str | Path,
    *,
    overrides: Sequence[str] = (),
    profile: range = range(0),
) -> TrainResult:
    """Train an experiment in a workdir, as `lmjax train` does; call again to resume.

    Args:
      config: the experiment: what its `get_config` returns (a `ConfigDict` or nested
        dict), "FILE.py" or "FILE.py:ARG", or a `Config`.
      workdir: the directory of the run; created if missing.
      overrides: `a.b=value` of leaves of the config.
      profile: the steps to write a profiler trace of.

    Raises:
      UserError: the user's mistake, in one line.
      FloatingPointError: the loss is not finite; see `optim.on_nonfinite`.
    """
    directory = open_path(workdir).expanduser()
    defaults = functools.partial(init_from.sections, workdir=directory)
    if isinstance(config, str | Path):
        config = experiment.load(str(config), overrides, defaults=defaults)
    else:
        if not isinstance(config, Config):
            config = parse(config, overrides, defaults=defaults)
        elif overrides:
            config = parse(to_dict(config), overrides)
        experiment.warn_of_unused(config)
    return TrainResult(directory, loop.train(config, directory, profile=profile))


def evaluate(
    workdir: str | Path, step: Step = None, overrides: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the metrics of a checkpoint on each held-out split, as `lmjax eval` does.

    Args:
      workdir: of a run.
      step: of a checkpoint, or "best"; by default the newest.
      overrides: `a.b=value` of the run's config, such as "eval.num_batches=10".

    Raises:
      UserError: there is no such checkpoint, or an override is wrong.
    """
    directory = open_path(workdir).expanduser()
    return list(evaluate_workdir(directory, step=step, overrides=overrides))
