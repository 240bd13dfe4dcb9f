"""The command line, `lmjax VERB`: one thin function for each verb.

Exit codes: 0 done; 2 the user's mistake, in one line on stderr; 75 stopped early on
purpose after saving, run again to go on; anything else is a fault of lmjax.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lmjax.config.experiment import load
from lmjax.errors import ConfigError, UserError, nearest

# jax and the rooms that need it are imported by the verbs: a mistake in a config is
# reported before any device is touched.


def train(args: argparse.Namespace) -> int:
    """Train an experiment in a workdir; the same command again resumes."""
    config = load(args.config, args.overrides, defaults=_defaults(args.workdir))
    profile = _profile(args.profile)
    from lmjax.cli import report
    from lmjax.parallel import processes
    from lmjax.train import loop

    processes.join_processes(detect=args.distributed)
    finished = loop.train(config, Path(args.workdir), profile=profile)
    if not processes.is_first():
        return 0 if finished else loop.EXIT_STOPPED
    if not finished:
        _say(f"stopped and saved; run the same command again to go on: {args.workdir}")
        return loop.EXIT_STOPPED
    report.after_training(config, Path(args.workdir))
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Print one JSON line of metrics for each held-out split."""
    from lmjax.cli import report
    from lmjax.run.metric_log import json_line

    for metrics in report.evaluate_workdir(
        Path(args.workdir), step=args.step, overrides=args.overrides
    ):
        print(json_line(metrics), flush=True)
    return 0


def generate(args: argparse.Namespace) -> int:
    """Print the continuation of a prompt as it comes, or the best that beams find."""
    from lmjax.generate.text_generator import choose_decoding
    from lmjax.inference.language_model import load as load_model

    way = {name: getattr(args, name) for name in WAY}
    if args.temperature is None and args.num_beams == 1:
        way["temperature"] = 0.8
    choose_decoding(**way)  # a mistake is found before anything is loaded
    lm = load_model(args.workdir, step=args.step)
    common = {"max_tokens": args.max_tokens, "seed": args.seed}
    for piece in lm.stream(args.prompt, **common, **way):
        print(piece, end="", flush=True)
    print()
    return 0


def score(args: argparse.Namespace) -> int:
    """Print one JSON line for each line of a file: its log-probability."""
    from lmjax.inference.score_file import score_file
    from lmjax.run.metric_log import json_line

    for line in score_file(
        Path(args.workdir), Path(args.input), step=args.step, eos=args.eos
    ):
        print(json_line(line), flush=True)
    return 0


def predict(args: argparse.Namespace) -> int:
    """Apply a fine-tuned task to a file of examples; goes on where it was cut off."""
    from lmjax.inference.predict_file import predict_file

    predict_file(
        Path(args.workdir),
        Path(args.input),
        Path(args.output),
        step=args.step,
        skip_bad=args.skip_bad,
        kind=args.format,
        overrides=args.overrides,
    )
    return 0


def prepare(args: argparse.Namespace) -> int:
    """Build the tokenizer and the token stores ahead of training."""
    config = load(args.config, args.overrides, defaults=_defaults(args.workdir))
    from lmjax.data import pipeline

    job, num_jobs = _job(args.job)
    datasets = pipeline.prepare_job(
        config, workdir=Path(args.workdir), job=job, num_jobs=num_jobs
    )
    if datasets is None:
        _say(f"job {job}/{num_jobs} is done; other jobs are still to finish theirs")
        return 0
    for split, stores in datasets.stores.items():
        for store in stores:
            print(f"{split}: {store.describe()}")
    return 0


def describe(args: argparse.Namespace) -> int:
    """Print parameters, axes, shardings and FLOPs; allocates nothing."""
    config = load(args.config, args.overrides, defaults=_defaults())
    if args.devices < 0:
        raise ConfigError(f"--devices={args.devices}: must be >= 0")
    from lmjax.cli import report

    report.describe(config, num_devices=args.devices)
    return 0


def import_model(args: argparse.Namespace) -> int:
    """Make a workdir of a Hugging Face directory."""
    from lmjax.interop import hf

    print(hf.import_hf(args.source, Path(args.workdir)))
    return 0


def export_model(args: argparse.Namespace) -> int:
    """Write the model of a workdir as a Hugging Face directory."""
    from lmjax.interop import hf, peft

    workdir, target = Path(args.workdir), Path(args.to)
    if args.adapters:
        print(peft.export_adapters(workdir, target, step=args.step))
        return 0
    print(hf.export_hf(workdir, target, step=args.step, dtype=args.dtype))
    return 0


def _defaults(workdir: str | None = None) -> Callable[[str], dict[str, Any]]:
    """Return what finds the sections that a config takes over from its `init_from`.

    A run that has begun has them in its own workdir: its origin may be gone by then.
    """

    def sections(path: str) -> dict[str, Any]:
        from lmjax.train import init_from

        return init_from.sections(
            path, workdir=None if workdir is None else Path(workdir)
        )

    return sections


# The flags of `generate` that say how to write.
WAY = (
    "temperature",
    "top_k",
    "top_p",
    "num_beams",
    "length_penalty",
    "early_finish",
    "min_tokens",
    "no_repeat_ngram",
)
# The verbs that take --config.a.b=value.
TAKE_OVERRIDES = ("train", "eval", "predict", "prepare", "describe")


class _Parser(argparse.ArgumentParser):
    """Answers a mistake with an exception, not with a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lmjax", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="store_true", help="print the version")
    verbs = parser.add_subparsers(metavar="VERB", dest="verb")

    def verb(name: str, run: Callable[[argparse.Namespace], int], *flags: str) -> Any:
        summary = (run.__doc__ or "").splitlines()[0]
        sub = verbs.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
        for flag in flags:
            sub.add_argument(flag, required=True)
        return sub

    _verbs_that_make(verb)
    _verbs_that_use(verb)
    return parser


# Adds a verb, what it runs, and the flags it cannot do without.
Verb = Callable[..., Any]


def _verbs_that_make(verb: Verb) -> None:
    """Add the verbs of experiments and of workdirs to be."""
    sub = verb("train", train, "--config", "--workdir")
    sub.add_argument("--profile", metavar="STEP:STEPS", help="write a profiler trace")
    sub.add_argument(
        "--distributed", action="store_true", help="one process of a cluster's job"
    )
    sub = verb("prepare", prepare, "--config", "--workdir")
    sub.add_argument("--job", metavar="I/N", default="0/1", help="a share, I from 0")
    sub = verb("describe", describe, "--config")
    sub.add_argument("--devices", type=int, default=0, help="default: what mesh says")
    sub = verb("import", import_model, "--workdir")
    sub.add_argument("--from", dest="source", required=True, metavar="HF_DIR|ORG/NAME")


def _verbs_that_use(verb: Verb) -> None:
    """Add the verbs of what is trained."""
    step: Any = {"type": _step, "metavar": "N|best", "help": "default: the newest"}
    sub = verb("eval", evaluate, "--workdir")
    sub.add_argument("--step", **step)
    sub = verb("generate", generate, "--workdir", "--prompt")
    sub.add_argument("--max_tokens", type=int, help="default: what fits, at most 64")
    sub.add_argument("--temperature", type=float, help="default: 0.8; 0 with beams")
    sub.add_argument("--top_k", type=int, default=0)
    sub.add_argument("--top_p", type=float, default=1.0)
    sub.add_argument("--num_beams", type=int, default=1, help="search, do not draw")
    sub.add_argument("--length_penalty", type=float, default=1.0, help="of beams")
    sub.add_argument("--early_finish", action="store_true", help="of beams")
    sub.add_argument("--min_tokens", type=int, default=0)
    sub.add_argument("--no_repeat_ngram", type=int, default=0, help="0: may repeat")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--step", **step)
    sub = verb("score", score, "--workdir", "--input")
    sub.add_argument("--eos", action="store_true", help="score the end of text too")
    sub.add_argument("--step", **step)
    sub = verb("predict", predict, "--workdir", "--input", "--output")
    sub.add_argument(
        "--format", default="", help="of --input; default: its suffix, else the run's"
    )
    sub.add_argument("--skip_bad", action="store_true", help="answer with the error")
    sub.add_argument("--step", **step)
    sub = verb("export", export_model, "--workdir", "--to")
    sub.add_argument("--step", **step)
    sub.add_argument("--dtype", default="float32", help="of the weights in the files")
    sub.add_argument(
        "--adapters", action="store_true", help="LoRA's alone, for PEFT; else merged"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("lmjax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of its inner life
    try:
        return _run(argv)
    except BrokenPipeError:
        # The reader of our output has gone: nothing more to say to anyone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, FloatingPointError, OSError, MemoryError) as error:
        if "--debug" in argv:
            raise
        _say(f"error: {' '.join(_told(error).split())}")
        return 2


def _told(error: Exception) -> str:
    """Return what there is to say of a mistake, or of what the system refuses."""
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        )
    return f"out of memory: {error}" if isinstance(error, MemoryError) else str(error)


def _run(argv: Sequence[str]) -> int:
    prefix = "--config."
    overrides = [arg[len(prefix) :] for arg in argv if arg.startswith(prefix)]
    for name, value in zip(overrides, _after(argv, prefix), strict=True):
        if "=" not in name:
            raise ConfigError(f"--config.{name}: is written --config.{name}={value}")
    rest = [arg for arg in argv if not arg.startswith(prefix)]
    args, unknown = _parser().parse_known_args(rest)
    if unknown:
        flags = ["--" + name for name in vars(args)]
        hint = nearest(unknown[0].partition("=")[0], flags)
        raise ConfigError(f"{unknown[0]}: no such flag of lmjax {args.verb}{hint}")
    if args.version:
        from lmjax import __version__

        print(__version__)
        return 0
    if args.verb is None:
        raise ConfigError("which verb? see lmjax --help")
    if overrides and args.verb not in TAKE_OVERRIDES:
        raise ConfigError(f"--config.{overrides[0]}: lmjax {args.verb} takes none")
    args.overrides = overrides
    return args.run(args)


def _after(argv: Sequence[str], prefix: str) -> list[str]:
    """Return what stands after each argument with a prefix; flags are no values."""
    pairs = zip(argv, [*argv[1:], ""], strict=False)
    after = [following for arg, following in pairs if arg.startswith(prefix)]
    return ["VALUE" if v.startswith("--") or not v else v for v in after]


def _profile(text: str | None) -> range:
    if text is None:
        return range(0)
    try:
        first, count = (int(part) for part in text.split(":"))
    except ValueError as error:
        raise ConfigError(
            f"--profile={text}: must be STEP:STEPS, as in 20:5"
        ) from error
    if first < 1 or count < 1:
        raise ConfigError(f"--profile={text}: steps count from 1, and one is the least")
    return range(first, first + count)


def _step(text: str) -> int | str:
    if text == "best":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: not a number, nor best") from error


def _job(text: str) -> tuple[int, int]:
    try:
        job, num_jobs = (int(part) for part in text.split("/"))
    except ValueError as error:
        raise ConfigError(f"--job={text}: must be I/N, as in 0/4") from error
    if not 0 <= job < num_jobs:
        raise ConfigError(f"--job={text}: I must be from 0 to N - 1")
    return job, num_jobs


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
