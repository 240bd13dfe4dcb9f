"""Search over leaves of a config for the best value of a validation metric.

    python tools/sweep.py --config=experiments/lm/quickstart.py --workdir=runs/sweep \\
      --metric=loss --mode=min --num_trials=20 --config.num_steps=300 \\
      --config.eval.every_steps=50 --search.optim.learning_rate=log:1e-4:1e-1 \\
      --search.model.num_layers=int:1:6 --search.model.dropout=0:0.5 \\
      --search.optim.name=choice:adamw,lion,muon

Needs `pip install -e '.[sweep]'`. The range of a leaf is LOW:HIGH, log:LOW:HIGH
(uniform in the logarithm), int:LOW:HIGH[:STEP] or choice:A,B,... Each trial is an
ordinary run, `lmjax train`, in WORKDIR/trials/NUMBER. Its value is the metric of the
last evaluation, or of the best one if that is the `checkpoint.best_metric`. With
--pruner=halving, the worse half of the trials is stopped after 1, 2, 4, ... times
`eval.every_steps`.

The same command again resumes the search, and several processes may run it at once, on
one or more hosts that share the workdir; a trial that was killed resumes from its
checkpoint. The Optuna study is WORKDIR/study.db. At the end the table of trials and the
command of the best trial are printed (also in best.json), and trials.png is drawn. Exit
codes are those of lmjax.
"""

import argparse
import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lmjax.config.experiment import Config, load
from lmjax.errors import UserError, nearest

TRAINER = (sys.executable, "-m", "lmjax.cli", "train")


class _Parser(argparse.ArgumentParser):
    """Raises an error in place of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(argv: Sequence[str] | None = None, *, trainer: Sequence[str] = TRAINER) -> int:
    """Search, and return the exit code; `trainer` is the command of a trial."""
    try:
        return _main(sys.argv[1:] if argv is None else argv, trainer)
    except (UserError, OSError) as error:
        message = str(error)
        if isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror}"
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return 2


def _main(argv: Sequence[str], trainer: Sequence[str]) -> int:
    args = _parse_args(argv)
    config = load(args.config, args.overrides, defaults=_init_from_sections)
    for package in ("optuna", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"needs {package}: pip install -e '.[sweep]'")
    from . import search, space, study  # Optuna takes a while to import

    distributions = space.parse_space(args.ranges, config)
    check_metric(config, args.metric)
    workdir = Path(args.workdir)
    if not args.dry_run:
        workdir.mkdir(parents=True, exist_ok=True)
    flags = [f"--config={args.config}", *(f"--config.{o}" for o in args.overrides)]
    # Trials share the stores of encoded text.
    store = f"--config.data.store={workdir.absolute() / 'store'}"
    sweep = study.Sweep(
        config=config,
        command=[*trainer, *flags, *([] if config.data.store else [store])],
        user_command=["lmjax", "train", *flags],
        workdir=workdir,
        space=distributions,
        ranges=args.ranges,
        metric=args.metric,
        mode=args.mode,
        num_trials=args.num_trials,
        seed=args.seed,
        sampler=args.sampler,
        pruner=args.pruner,
    )
    if args.dry_run:
        return search.dry_run(sweep)
    return search.search(sweep, timeout_seconds=60 * args.timeout_minutes)


def check_metric(config: Config, metric: str) -> None:
    """Raise if no run would measure the metric on a valid split.

    Raises:
      UserError: the metric is not measured, or the config cannot be trained.
    """
    from lmjax.data import pipeline
    from lmjax.training.evaluate import metric_names

    if not pipeline.has_valid_split(config):
        raise UserError(f"--metric={metric}: config.data has no valid split")
    names = metric_names(pipeline.resolve_vocabulary(config))
    if metric not in names:
        raise UserError(
            f"--metric={metric}: not measured on the valid split"
            f"{nearest(metric, names)}; allowed: {', '.join(names)}"
        )


def _init_from_sections(path: str) -> dict[str, Any]:
    """Return the sections that a config inherits from its `init_from`."""
    from lmjax.training import init_from

    return init_from.sections(path)


def _parse_args(argv: Sequence[str]) -> Any:
    args, others = _parser().parse_known_args(argv)
    args.overrides, args.ranges = [], {}
    for arg in others:
        flag, equals, value = arg.partition("=")
        prefix, _, leaf = flag.partition(".")
        if prefix not in ("--config", "--search"):
            hint = nearest(flag, [f"--{name}" for name in vars(args)])
            raise UserError(f"{arg}: no such flag{hint}")
        if not equals:
            raise UserError(f"{arg}: expected {arg}=VALUE")
        if prefix == "--config":
            args.overrides.append(f"{leaf}={value}")
        elif leaf in args.ranges:
            raise UserError(f"{flag}: given more than once")
        else:
            args.ranges[leaf] = value
    for override in args.overrides:
        if (leaf := override.partition("=")[0]) in args.ranges:
            raise UserError(f"--search.{leaf}: also fixed, by --config.{leaf}")
    for name, allowed, rule in (
        ("num_trials", args.num_trials >= 1, ">= 1"),
        ("seed", 0 <= args.seed < 1 << 32, f">= 0, < {1 << 32}"),
        ("timeout_minutes", args.timeout_minutes > 0, "> 0"),
    ):
        if not allowed:
            raise UserError(f"--{name}={getattr(args, name)}: must be {rule}")
    return args


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        usage="sweep.py --config=FILE.py[:ARG] --workdir=DIR --metric=NAME "
        "--mode=min|max --search.a.b=RANGE ... [--config.a.b=VALUE ...] [flags]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, help="the experiment, a Python file")
    add("--workdir", required=True, help="of the search")
    add("--metric", required=True, help="of the valid split, as in metrics.jsonl")
    add("--mode", required=True, choices=("min", "max"))
    add("--num_trials", type=int, default=20, help="over all processes; default: 20")
    add("--sampler", choices=("tpe", "random"), default="tpe")
    add("--pruner", choices=("halving", "none"), default="halving")
    add("--seed", type=int, default=0, help="of the sampler; default: 0")
    add("--timeout_minutes", type=float, default=math.inf, help="stop after this time")
    add("--dry_run", action="store_true", help="check all, and print the first trial")
    return parser
