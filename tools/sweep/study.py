"""The Optuna study of a sweep: a SQLite file that several processes share.

The process that runs a trial holds the lock of the trial's directory, which the system
releases when the process ends. A trial whose state is RUNNING and whose lock is free
was lost with its process, on this host or another: the first process that finds it
resumes it, as the same trial with the same values. The values of a trial depend on the
seed, its number and the trials before it, so that an interrupted search draws the same
values as one without interruptions.
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
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from lmjax import fileio
from lmjax.config.experiment import Config, leaves, to_dict
from lmjax.errors import UserError

from .space import Space

SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
}

_STUDY = "sweep"  # its name in study.db


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """The parsed command line of a search."""

    config: Config  # shared by all trials
    command: Sequence[str]  # trains a trial, given its workdir and its values
    user_command: Sequence[str]  # the same as a user types it
    workdir: Path
    space: Space
    ranges: dict[str, str]  # of the space, as on the command line
    metric: str
    mode: str  # min or max
    num_trials: int  # over all processes
    seed: int
    sampler: str
    pruner: str

    def directory(self, number: int) -> Path:
        """Return the workdir of a trial."""
        return self.workdir / "trials" / str(number)

    @property
    def rungs(self) -> list[int]:
        """Steps at which the worse half of the trials is stopped."""
        every, num_steps = self.config.eval.every_steps, self.config.num_steps
        if self.pruner == "none" or not every:
            return []
        return [every << n for n in range(32) if every << n < num_steps]


def open_study(sweep: Sweep) -> Study:
    """Open the study in the workdir; create it if it does not exist.

    Raises:
      UserError: the file holds another search, or no study.
    """
    with fileio.lock(sweep.workdir), study_errors(sweep):
        study = _load_or_create(sweep)
        now = _identity(sweep)
        before = study.user_attrs.get("sweep", now)
        changed = [
            f"{name} was {before.get(name, 'unset')!r}, is {now.get(name, 'unset')!r}"
            for name in before | now
            if before.get(name, "unset") != now.get(name, "unset")
        ]
        trials = sweep.workdir / "trials"
        if changed and {t.state for t in get_trials(study)} == {TrialState.FAIL}:
            # Nothing is lost by starting again with the corrected settings. The trials
            # are removed first, so that a kill in between leaves a failed study.
            shutil.rmtree(trials, ignore_errors=True)
            optuna.delete_study(study_name="sweep", storage=study._storage)
            study, changed = _load_or_create(sweep), []
        if not study.user_attrs:
            if any(trials.glob("*")):
                raise UserError(
                    f"--workdir={sweep.workdir}: holds trials of another study; remove "
                    f"{trials}, or choose another --workdir"
                )
            study.set_user_attr("sweep", now)
    if changed:
        more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise UserError(
            f"--workdir={sweep.workdir}: holds another search: "
            f"{'; '.join(changed[:4])}{more} "
            "(undo these changes, or choose another --workdir)"
        )
    return study


def _load_or_create(sweep: Sweep) -> Study:
    """Open the study, which prunes by successive halving (ASHA, Li et al. 2020)."""
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if sweep.rungs:
        pruner = optuna.pruners.SuccessiveHalvingPruner(
            min_resource=sweep.rungs[0], reduction_factor=2
        )
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{sweep.workdir / 'study.db'}",
        engine_kwargs={"connect_args": {"timeout": 60}},
    )
    names = optuna.get_all_study_names(storage)
    if names and _STUDY not in names:
        raise UserError(
            f"{sweep.workdir / 'study.db'}: holds another program's study, {names[0]!r}"
        )
    return optuna.create_study(
        study_name=_STUDY,
        storage=storage,
        pruner=pruner,
        direction=f"{sweep.mode}imize",
        load_if_exists=True,
    )


def _identity(sweep: Sweep) -> dict[str, Any]:
    """Return the settings, by the user's names, that make trials comparable."""
    fixed = dict(leaves(to_dict(sweep.config), "config"))
    for leaf in sweep.space:
        del fixed[f"config.{leaf}"]
    searched = {f"--search.{leaf}": text for leaf, text in sweep.ranges.items()}
    named = {"--metric": sweep.metric, "--mode": sweep.mode}
    return json.loads(json.dumps(named | searched | fixed))


@contextlib.contextmanager
def study_errors(sweep: Sweep) -> Iterator[None]:
    """Turn errors of the database into a `UserError`."""
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", cause))
        raise UserError(
            f"{sweep.workdir / 'study.db'}: cannot be used as a study: {reason}"
        ) from error


def get_trials(study: Study) -> list[FrozenTrial]:
    """Return all trials of a study, in order of their numbers."""
    return study.get_trials(deepcopy=False)


def claim(study: Study, sweep: Sweep) -> tuple[Trial, IO[str]] | None:
    """Take over a trial that was lost with its process, or else create one.

    Returns:
      The trial, with its values, and the lock by which it belongs to this process;
      None if `num_trials` have ended or are run by other processes.
    """
    with fileio.lock(sweep.workdir):
        trials = get_trials(study)
        running = [t.number for t in trials if t.state == TrialState.RUNNING]
        for number in running:
            lock = try_lock(sweep.directory(number) / ".sweep.lock")
            if lock is None:
                continue
            if get_trials(study)[number].state == TrialState.RUNNING:
                set_sampler(study, sweep, number)
                # `Study.ask` never returns a running trial again.
                return suggest(Trial(study, trials[number]._trial_id), sweep), lock
            lock.close()  # it ended before it could be locked
        if len(trials) >= sweep.num_trials:
            return None
        set_sampler(study, sweep, len(trials))
        trial = study.ask()
        lock = try_lock(sweep.directory(trial.number) / ".sweep.lock")
        assert lock is not None
        return suggest(trial, sweep), lock


def suggest(trial: Trial, sweep: Sweep) -> Trial:
    """Return the trial with a value for each leaf; values that it has already stay."""
    for leaf, distribution in sweep.space.items():
        trial._suggest(leaf, distribution)  # the body of `suggest_float` and so on
    return trial


def set_sampler(study: Study, sweep: Sweep, number: int) -> None:
    """Give the study a sampler whose random numbers depend on the trial's number."""
    seed = np.random.SeedSequence([sweep.seed, number]).generate_state(1)[0]
    study.sampler = SAMPLERS[sweep.sampler](seed=int(seed))


def try_lock(path: Path) -> IO[str] | None:
    """Lock a file, created if missing; return None if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
