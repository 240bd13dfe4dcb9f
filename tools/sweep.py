"""Search over leaves of a config for the best value of a validation metric.

    python tools/sweep.py --config=experiments/lm/quickstart.py --workdir=runs/sweep \\
      --metric=loss --mode=min --num_trials=20 --config.num_steps=300 \\
      --config.eval.every_steps=50 --search.optim.learning_rate=log:1e-4:1e-1 \\
      --search.model.num_layers=int:1:6 --search.model.dropout=0:0.5 \\
      --search.optim.name=choice:adamw,lion,muon

Needs `pip install -e '.[sweep]'`. A leaf is searched over LOW:HIGH, log:LOW:HIGH (even
in the logarithm), int:LOW:HIGH[:STEP] or choice:A,B,... Each trial is an ordinary run,
`lmjax train`, in WORKDIR/trials/NUMBER. Its value is that of its last evaluation, or
of its best where `checkpoint.best_metric` keeps the best. What does worse than half of
the trials after 1, 2, 4, ... times `eval.every_steps` is stopped, by --pruner=halving.

The same command again goes on, and several processes may run it at once, on one or more
hosts that share the workdir; a trial that was killed goes on from its checkpoint. The
study is WORKDIR/study.db, of Optuna. At the end come the table of trials, the best as a
command (and in best.json), and trials.png. Exit codes are those of lmjax.
"""

import argparse
import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import sweep_metric

from lmjax.config.experiment import Config, load
from lmjax.errors import ConfigError, UserError, nearest

TRAINER = (sys.executable, "-m", "lmjax.cli", "train")
PREFIXES = ("--config.", "--search.")


class _Parser(argparse.ArgumentParser):
    """Answers a mistake with an exception, not with a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def main(argv: Sequence[str] | None = None, *, trainer: Sequence[str] = TRAINER) -> int:
    """Search, and return the exit code; `trainer` is the command of a trial."""
    try:
        return _main(list(sys.argv[1:] if argv is None else argv), trainer)
    except (UserError, OSError) as error:
        told = str(error)
        if isinstance(error, OSError) and error.filename:
            told = f"{error.filename}: {error.strerror}"
        print(f"error: {' '.join(told.split())}", file=sys.stderr)
        return 2


def _main(argv: Sequence[str], trainer: Sequence[str]) -> int:
    args = _arguments(argv)
    config = load(args.config, args.overrides, defaults=_defaults)
    for package in ("optuna", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"needs {package}: pip install -e '.[sweep]'")
    from sweep_space import parse_space

    space = parse_space(args.searched, config)
    sweep_metric.check(config, args.metric)
    fixed = [f"--config={args.config}"] + [
        f"--config.{text}" for text in args.overrides
    ]
    workdir = Path(args.workdir)
    if not args.dry_run:
        workdir.mkdir(parents=True, exist_ok=True)
    import sweep_search  # optuna's storage takes a while to import
    from sweep_study import Sweep

    sweep = Sweep(
        config=config,
        command=[*trainer, *fixed, *_shared_store(config, workdir)],
        shown_command=["lmjax", "train", *fixed],
        workdir=workdir,
        space=space,
        spellings=dict(text.split("=", 1) for text in args.searched),
        metric=args.metric,
        mode=args.mode,
        num_trials=args.num_trials,
        seed=args.seed,
        sampler=args.sampler,
        pruner=args.pruner,
    )
    if args.dry_run:
        return sweep_search.show(sweep)
    return sweep_search.search(sweep, timeout_seconds=60 * args.timeout_minutes)


def _arguments(argv: Sequence[str]) -> Any:
    """Read and check the command line."""
    for arg in argv:
        if arg.startswith(PREFIXES) and "=" not in arg:
            raise ConfigError(f"{arg}: is written {arg}=VALUE")
    rest = [arg for arg in argv if not arg.startswith(PREFIXES)]
    parser = _parser()
    args, unknown = parser.parse_known_args(rest)
    if unknown:
        names = ["--" + name for name in vars(args)]
        hint = nearest(unknown[0].partition("=")[0], names)
        raise ConfigError(f"{unknown[0]}: no such flag{hint}")
    args.overrides, args.searched = (
        [arg.removeprefix(prefix) for arg in argv if arg.startswith(prefix)]
        for prefix in PREFIXES
    )
    fixed = {text.partition("=")[0] for text in args.overrides}
    for leaf in (text.partition("=")[0] for text in args.searched):
        if leaf in fixed:
            raise ConfigError(f"--search.{leaf}: is also fixed, by --config.{leaf}")
    if args.num_trials < 1:
        raise ConfigError(f"--num_trials={args.num_trials}: must be >= 1")
    if not 0 <= args.seed < 1 << 32:
        raise ConfigError(f"--seed={args.seed}: must be >= 0, < {1 << 32}")
    if not args.timeout_minutes > 0:
        raise ConfigError(f"--timeout_minutes={args.timeout_minutes}: must be above 0")
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
    add("--config", required=True)
    add("--workdir", required=True)
    add("--metric", required=True, help="of the valid split, as in metrics.jsonl")
    add("--mode", required=True, choices=("min", "max"))
    add("--num_trials", type=int, default=20, help="over all processes")
    add("--sampler", choices=("tpe", "random"), default="tpe")
    add("--pruner", choices=("halving", "none"), default="halving")
    add("--seed", type=int, default=0, help="of what is drawn")
    add("--timeout_minutes", type=float, default=math.inf, help="then stop, and report")
    add("--dry_run", action="store_true", help="check all, and show the first trial")
    return parser


def _defaults(path: str) -> dict[str, Any]:
    """Return the sections that a config takes over from its `init_from`."""
    from lmjax.training import init_from

    return init_from.sections(path)


def _shared_store(config: Config, workdir: Path) -> list[str]:
    """Have trials share what is tokenized alike, unless the config says where."""
    if config.data.store:
        return []
    return [f"--config.data.store={workdir.absolute() / 'store'}"]


if __name__ == "__main__":
    sys.exit(main())
