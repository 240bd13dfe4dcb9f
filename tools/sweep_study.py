"""The study of a sweep: a SQLite file that several processes work on at once.

Who runs a trial holds the lock of its directory, which the system lets go of when the
process dies. A trial that is RUNNING and whose lock is free was lost with its process,
on this host or another: whoever comes first takes it over, as the same trial with the
same values. What a trial draws depends on the seed, its number and the trials before
it, so that a sweep that is stopped and goes on draws as if it never was.
"""

import contextlib
import dataclasses
import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
from optuna import Study, Trial
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError
from sweep_space import Space, suggest

from lmjax import fileio
from lmjax.config.experiment import Config, leaves, to_dict
from lmjax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is searched, for what, and how."""

    config: Config  # what the trials have in common
    command: Sequence[str]  # trains it, given a workdir and the values of a trial
    shown_command: Sequence[str]  # the same as a user types it
    workdir: Path
    space: Space
    spellings: dict[str, str]  # of the space, by leaf
    metric: str
    mode: str  # min or max
    num_trials: int  # over all processes
    seed: int
    sampler: str
    pruner: str

    def directory(self, number: int) -> Path:
        """Return the workdir of a trial's run."""
        return self.workdir / "trials" / str(number)

    @property
    def keeps_best(self) -> bool:
        """Return whether a run hands on its best parameters, not its last."""
        kept = self.config.checkpoint
        return (kept.best_metric, kept.best_mode) == (self.metric, self.mode)


SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
}


def open_study(sweep: Sweep) -> Study:
    """Return the study in the workdir, made if it is not there.

    Raises:
      ConfigError: it is a study of something else, or no study.
    """
    with fileio.lock(sweep.workdir), one_line_errors(sweep, KeyError):
        study = _open(sweep)
        changed = list(_differences(study, _identity(sweep)))
        if changed and _all_failed(study):
            _begin_anew(study, sweep)
            study, changed = _open(sweep), []
        if not study.user_attrs:
            if any((sweep.workdir / "trials").glob("*")):
                raise ConfigError(
                    f"--workdir={sweep.workdir}: holds trials of another study; remove "
                    f"{sweep.workdir / 'trials'}, or choose another --workdir"
                )
            study.set_user_attr("sweep", _identity(sweep))
    if changed:
        more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise ConfigError(
            f"--workdir={sweep.workdir}: holds another search: "
            f"{'; '.join(changed[:4])}{more} "
            "(take these back, or choose another --workdir)"
        )
    return study


def _open(sweep: Sweep) -> Study:
    file = sweep.workdir / "study.db"
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{file}", engine_kwargs={"connect_args": {"timeout": 60}}
    )
    if optuna.get_all_study_names(storage):
        return optuna.load_study(
            study_name="sweep", storage=storage, pruner=_pruner(sweep)
        )
    return optuna.create_study(
        study_name="sweep",
        storage=storage,
        pruner=_pruner(sweep),
        direction={"min": "minimize", "max": "maximize"}[sweep.mode],
    )


@contextlib.contextmanager
def one_line_errors(sweep: Sweep, *more: type[Exception]) -> Iterator[None]:
    """Tell in one line what the database says, and `more` that means the same."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.OptunaError, *more) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", cause))
        raise ConfigError(
            f"{sweep.workdir / 'study.db'}: cannot be used as a study: {reason}"
        ) from error


def rungs(sweep: Sweep) -> list[int]:
    """Return the steps at which a trial may be stopped for being the worse half."""
    every, num_steps = sweep.config.eval.every_steps, sweep.config.num_steps
    if sweep.pruner == "none" or not every:
        return []
    return [every << n for n in range(32) if every << n < num_steps]


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    """Return asynchronous successive halving (Li et al. 2020), if there are rungs."""
    steps = rungs(sweep)
    if not steps:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=steps[0], reduction_factor=2
    )


def _identity(sweep: Sweep) -> dict[str, Any]:
    """Return what must stay for trials to be comparable, by the user's names."""
    config = dict(leaves(to_dict(sweep.config), "config"))
    for leaf in sweep.space:
        config.pop(f"config.{leaf}")
    searched = {f"--search.{leaf}": text for leaf, text in sweep.spellings.items()}
    named = {"--metric": sweep.metric, "--mode": sweep.mode}
    return json.loads(json.dumps(named | searched | config))


def _differences(study: Study, now: dict[str, Any]) -> Iterator[str]:
    before = study.user_attrs.get("sweep", now)
    for name in before | now:
        if name not in now:
            yield f"{name} was {before[name]!r}"
        elif name not in before:
            yield f"{name} is new"
        elif before[name] != now[name]:
            yield f"{name} was {before[name]!r}, is {now[name]!r}"


def _begin_anew(study: Study, sweep: Sweep) -> None:
    """Forget a study all of whose trials failed: its author has mended something.

    Its trials go first: if it is killed in between, it is begun anew another time.
    """
    shutil.rmtree(sweep.workdir / "trials", ignore_errors=True)
    optuna.delete_study(study_name=study.study_name, storage=study._storage)


def _all_failed(study: Study) -> bool:
    states = {trial.state for trial in _trials(study)}
    return states == {TrialState.FAIL}


def _trials(study: Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """A trial that is this process's to run, as long as it holds the lock."""

    trial: Trial
    values: dict[str, Any]
    directory: Path
    lock: IO[str]


def claim(study: Study, sweep: Sweep) -> Claim | None:
    """Take a trial that was lost with its process, or else a new one.

    Returns:
      None if `num_trials` are done or run by others.
    """
    with fileio.lock(sweep.workdir):
        trials = _trials(study)
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            lock = try_lock(sweep.directory(trial.number) / ".sweep.lock")
            if lock is None:
                continue
            if _trials(study)[trial.number].state == TrialState.RUNNING:
                study.sampler = _sampler(sweep, trial.number)
                # `ask` never gives a running trial again; its values are kept.
                return _claimed(Trial(study, trial._trial_id), sweep, lock)
            lock.close()  # it ended before it could be locked
        if len(trials) >= sweep.num_trials:
            return None
        study.sampler = _sampler(sweep, len(trials))
        trial = study.ask()
        lock = try_lock(sweep.directory(trial.number) / ".sweep.lock")
        assert lock is not None
        return _claimed(trial, sweep, lock)


def first_trial(sweep: Sweep) -> Trial:
    """Return the first trial of a new study, which is kept nowhere."""
    return optuna.create_study(sampler=_sampler(sweep, 0)).ask()


def _claimed(trial: Trial, sweep: Sweep, lock: IO[str]) -> Claim:
    values = suggest(trial, sweep.space)
    directory = sweep.directory(trial.number)
    return Claim(trial=trial, values=values, directory=directory, lock=lock)


def _sampler(sweep: Sweep, number: int) -> optuna.samplers.BaseSampler:
    """Return a sampler whose draws are those of one trial, whoever makes them."""
    seed = np.random.SeedSequence([sweep.seed, number]).generate_state(1)[0]
    return SAMPLERS[sweep.sampler](seed=int(seed))


def try_lock(path: Path) -> IO[str] | None:
    """Lock a file, made if it is not there; None if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
