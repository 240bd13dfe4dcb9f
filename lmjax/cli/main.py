"""The command line, `lmjax VERB`: one thin function for each verb.

Exit codes: 0: done; 2: an error of the user, explained in one line on stderr; 75: a
training run that was stopped and has saved a checkpoint, run it again to continue;
anything else: a bug in lmjax.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmjax.cli import flags, process_exit, streams
from lmjax.cli.parser import Verb, parse_args
from lmjax.config.experiment import Config, load
from lmjax.errors import UserError
from lmjax.storage.paths import is_remote, open_path

# jax, and the packages that import it, are imported by the verbs: an error in a config
# or a flag is reported at once, before any device is used.


def train(args: argparse.Namespace) -> int:
    """Train an experiment in a workdir; run it again to resume."""
    config = load(args.config, args.overrides, defaults=_init_from(args.workdir))
    from lmjax.cli import report
    from lmjax.parallel import join, processes
    from lmjax.training import loop
    from lmjax.training.stop_signal import EXIT_STOPPED

    seconds = args.join_timeout or join.JOIN_SECONDS
    join.join_processes(detect=args.distributed, seconds=seconds)
    with _log_file(args, part=processes.index()), _explain_out_of_memory(config):
        finished = loop.train(
            config,
            open_path(args.workdir),
            profile=args.profile,
            leave_now=process_exit.leave_now,
        )
    if not processes.is_first():
        return 0 if finished else EXIT_STOPPED
    if not finished:
        _print_error(f"stopped and saved: {args.workdir}; run it again to resume")
        return EXIT_STOPPED
    report.after_training(config, open_path(args.workdir))
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Print the metrics of each held-out split, one JSON object per line."""
    from lmjax.run.metric_log import json_line
    from lmjax.training.evaluate_workdir import evaluate_workdir

    for metrics in evaluate_workdir(
        open_path(args.workdir), step=args.step, overrides=args.overrides
    ):
        print(json_line(metrics), flush=True)
    return 0


def generate(args: argparse.Namespace) -> int:
    """Print the continuation of a prompt, sampled or found by beam search."""
    from lmjax.config.decoding import choose_decoding
    from lmjax.inference.language_model import load as load_model

    way = {name: getattr(args, name) for name in DECODING_FLAGS}
    way["stop"] = tuple(args.stop) if args.stop else None
    choose_decoding(**way)  # report wrong values before the model is loaded
    lm = load_model(args.workdir, step=args.step)
    common = {"max_tokens": args.max_tokens, "seed": args.seed}
    if args.draft is not None:
        try:
            draft = load_model(args.draft)
        except UserError as error:  # it names the flag of the model
            text = str(error).removeprefix(f"--workdir={args.draft}: ")
            raise UserError(f"--draft={args.draft}: {text}") from error
        common |= {"draft": draft, "num_draft": args.num_draft}
    for piece in lm.stream(args.prompt, **common, **way):
        print(piece, end="", flush=True)
    print()
    return 0


def chat(args: argparse.Namespace) -> int:
    """Talk with a model; each line of a piped input is a turn."""
    from lmjax.cli import conversation
    from lmjax.config.decoding import choose_decoding
    from lmjax.inference.chat import Conversation, choose_template
    from lmjax.inference.language_model import load as load_model

    way = {name: getattr(args, name) for name in DECODING_FLAGS}
    way["stop"] = tuple(args.stop) if args.stop else None
    choose_decoding(**way)  # report wrong values before the model is loaded
    lm = load_model(args.workdir, step=args.step)
    choose_template(lm, args.chat_template)
    options = {"chat_template": args.chat_template, "max_tokens": args.max_tokens}
    talk = Conversation(lm, system=args.system, seed=args.seed, **options, **way)
    return conversation.run(talk)


def score(args: argparse.Namespace) -> int:
    """Print the log-probability of each line of a file, one JSON object per line."""
    from lmjax.inference.score_file import score_file
    from lmjax.run.metric_log import json_line

    for line in score_file(
        open_path(args.workdir),
        open_path(args.input),
        step=args.step,
        eos=args.eos,
        per_token=args.per_token,
        whole=args.whole,
        window=args.window,
        stride=args.stride,
    ):
        print(json_line(line), flush=True)
    return 0


def predict(args: argparse.Namespace) -> int:
    """Apply a fine-tuned model to a file of examples; run it again to resume."""
    from lmjax.inference.predict_file import predict_file

    predict_file(
        open_path(args.workdir),
        open_path(args.input),
        open_path(args.output),
        step=args.step,
        skip_bad=args.skip_bad,
        format=args.format,
        keep=args.keep,
        explain=args.explain,
        overrides=args.overrides,
    )
    return 0


def compare(args: argparse.Namespace) -> int:
    """Print what models differ by on one file: quality, bytes and time."""
    from lmjax.cli import comparison
    from lmjax.inference.compare import compare as compare_models

    output = open_path(args.output) if args.output else None
    if output is not None:
        comparison.check_output(output)
    found = compare_models(
        args.workdirs, args.input, format=args.format, overrides=args.overrides
    )
    comparison.show(found, as_json=args.json, output=output)
    return 0


def lm_eval(args: argparse.Namespace) -> int:
    """Judge a language model on tasks of lm-evaluation-harness."""
    from lmjax.inference import harness
    from lmjax.inference.language_model import load as load_model

    if args.num_fewshot is not None and args.num_fewshot < 0:
        raise UserError(f"--num_fewshot={args.num_fewshot}: must be >= 0")
    found = harness.evaluate(
        load_model(args.workdir, step=args.step),
        args.tasks.split(","),
        include_path=open_path(args.include_path) if args.include_path else None,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        seed=args.seed,
    )
    print(found["table"])
    if args.output:
        harness.write_results(open_path(args.output), found)
    return 0


def report(args: argparse.Namespace) -> int:
    """Write a page about one or more runs: curves, samples, configs."""
    from lmjax.report.report import write_report

    print(write_report(args.runs, open_path(args.output), predictions=args.predictions))
    return 0


def prepare(args: argparse.Namespace) -> int:
    """Train the tokenizer and encode the data ahead of training."""
    config = load(args.config, args.overrides, defaults=_init_from(args.workdir))
    from lmjax.data import pipeline

    job, num_jobs = args.job
    with _log_file(args, part=job):
        datasets = pipeline.prepare_job(
            config, workdir=open_path(args.workdir), job=job, num_jobs=num_jobs
        )
    if datasets is None:
        _print_error(f"job {job}/{num_jobs} is done; waiting for the others")
        return 0
    for split, stores in datasets.stores.items():
        for store in stores:
            print(f"{split}: {store.describe()}")
    return 0


def clean(args: argparse.Namespace) -> int:
    """Clean a corpus: duplicates, poor text, personal data, held-out texts."""
    from lmjax.cli import cleaning
    from lmjax.data.clean import clean as cleaner
    from lmjax.data.clean.settings import choose

    names = lambda text: tuple(
        filter(None, (n for n in text.split(",") if n != "none"))
    )
    settings = choose(
        rules=names(args.rules),
        limits=args.limit,
        languages=names(args.language),
        personal=names(args.personal),
        patterns=args.pattern,
        ngram=args.ngram,
        duplicates=args.duplicates,
        similarity=args.similarity,
        skip_bad=args.skip_bad,
    )
    if args.report:
        cleaner.check_report(open_path(args.report))
    cleaned = cleaner.clean(
        args.input,
        open_path(args.output),
        settings,
        overrides=args.overrides,
        held_out=args.decontaminate,
        num_workers=args.num_workers,
    )
    cleaning.show(cleaned)
    if args.report:
        cleaner.write_report(open_path(args.report), cleaned)
    return 0


def describe(args: argparse.Namespace) -> int:
    """Print the parameters, their shardings, and FLOPs, without allocating any."""
    config = load(args.config, args.overrides, defaults=_init_from())
    if args.devices < 0:
        raise UserError(f"--devices={args.devices}: must be >= 0")
    from lmjax.cli import report

    report.describe(config, num_devices=args.devices)
    return 0


def plan(args: argparse.Namespace) -> int:
    """Say what a run would need on a machine: memory, time, collectives, dollars."""
    from lmjax.plan.target import parse_target

    target = parse_target(args.topology)
    if args.search and args.fit:
        raise UserError("--fit: the batch stays as it is with --search; give one")
    config = load(args.config, args.overrides, defaults=_init_from())
    from lmjax.cli import plans

    return plans.run(
        config,
        target,
        tokens=args.tokens,
        price=args.price,
        way="search" if args.search else "fit" if args.fit else "plan",
        as_json=args.json,
        plot=open_path(args.plot) if args.plot else None,
    )


def import_model(args: argparse.Namespace) -> int:
    """Import a Hugging Face model as a workdir."""
    from lmjax.interop import dry_run, hf, hub, peft_import

    adapts = hub.is_adapter(args.source)
    if args.base and not adapts:
        raise UserError(f"--base={args.base}: is for PEFT's adapters, not --from")
    if args.dry_run:
        describe = dry_run.describe_adapters if adapts else dry_run.describe_import
        print(describe(args.source))
        return 0
    if args.workdir is None:
        raise UserError("--workdir: must be given, unless --dry_run is")
    if adapts:
        workdir = open_path(args.workdir)
        print(peft_import.import_adapters(args.source, workdir, base=args.base))
        return 0
    print(
        hf.import_hf(
            args.source,
            open_path(args.workdir),
            ignore_generation=args.ignore_generation,
        )
    )
    return 0


def export_model(args: argparse.Namespace) -> int:
    """Export the model of a workdir: Hugging Face's files, GGUF, or its words."""
    from lmjax.interop import hf, peft, publish, word_vectors
    from lmjax.interop.gguf import reading, writing

    workdir, target = open_path(args.workdir), open_path(args.to)
    if args.private and not args.push:
        raise UserError("--private: needs --push=ORG/NAME")
    if args.push:
        publish.check_push(args.push)
        if is_remote(target):
            raise UserError(f"--push={args.push}: needs a local directory, --to")
        if args.adapters or target.suffix in (*word_vectors.FORMATS, reading.SUFFIX):
            raise UserError(f"--push={args.push}: is for a directory of a model alone")
    if target.suffix in word_vectors.FORMATS and not args.adapters:
        print(word_vectors.export_word_vectors(workdir, target, step=args.step))
        return 0
    if args.adapters:
        print(peft.export_adapters(workdir, target, step=args.step))
        return 0
    export = writing.export_gguf if target.suffix == reading.SUFFIX else hf.export_hf
    print(export(workdir, target, step=args.step, dtype=args.dtype))
    if args.push:
        print(publish.push(workdir, target, args.push, private=args.private))
    return 0


def compress(args: argparse.Namespace) -> int:
    """Make the model of a workdir smaller, as another workdir."""
    from lmjax.compress import workdir
    from lmjax.compress.choose import choose_steps

    steps = choose_steps(
        prune=args.prune,
        low_rank=args.low_rank,
        quantize=args.quantize,
        method=args.method,
        embeddings=args.embeddings,
        activations=args.activations,
        cache=args.cache,
        calibrate=open_path(args.calibrate) if args.calibrate else None,
        num_windows=args.windows,
    )
    source, target = open_path(args.workdir), open_path(args.to)
    print(workdir.compress(source, target, steps, step=args.step))
    return 0


@contextlib.contextmanager
def _explain_out_of_memory(config: Config) -> Iterator[None]:
    """Print what the step would need, if the devices have no memory for it.

    Raises:
      UserError: in place of the error of the device.
    """
    import jax

    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        from lmjax.cli import plans

        plans.explain_out_of_memory(config)
        raise UserError(
            f"the devices are out of memory: {str(error).splitlines()[0][:300]} (lmjax "
            "plan --search finds layouts that fit; config.num_microbatches and "
            "config.model.remat take less memory)"
        ) from error


def _log_file(
    args: argparse.Namespace, *, part: int
) -> contextlib.AbstractContextManager[None]:
    """Send what libraries print to WORKDIR/log.txt, unless all is to be seen.

    Several processes or jobs append to one file; on object storage, which cannot do
    that, the others have log.PART.txt.
    """
    if args.debug:
        return contextlib.nullcontext()
    directory = open_path(args.workdir)
    name = f"log.{part}.txt" if part and is_remote(directory) else "log.txt"
    return streams.log_file(directory / name)


def _init_from(workdir: str | None = None) -> Callable[[str], dict[str, Any]]:
    """Return the `defaults` of `load`: the sections of what `init_from` names.

    A run that has begun has its own copy of them in `workdir`.
    """

    def sections(path: str) -> dict[str, Any]:
        from lmjax.training import init_from

        return init_from.sections(
            path, workdir=None if workdir is None else open_path(workdir)
        )

    return sections


DECODING_FLAGS = tuple(flag.name.removeprefix("--") for flag in flags.DECODING)
VERBS = {
    "train": Verb(
        train,
        flags.EXPERIMENT,
        flags.RUN,
        flags.PROFILE,
        flags.DISTRIBUTED,
        flags.JOIN_TIMEOUT,
        takes_overrides=True,
    ),
    "prepare": Verb(
        prepare, flags.EXPERIMENT, flags.RUN, flags.JOB, takes_overrides=True
    ),
    "clean": Verb(clean, *flags.CLEAN, takes_overrides=True),
    "describe": Verb(describe, flags.EXPERIMENT, flags.DEVICES, takes_overrides=True),
    "plan": Verb(
        plan,
        flags.EXPERIMENT,
        flags.TOPOLOGY,
        flags.SEARCH,
        flags.FIT,
        flags.TOKENS,
        flags.PRICE,
        flags.JSON,
        flags.PLOT,
        takes_overrides=True,
    ),
    "eval": Verb(evaluate, flags.WORKDIR, flags.STEP, takes_overrides=True),
    "generate": Verb(
        generate,
        flags.WORKDIR,
        flags.PROMPT,
        flags.MAX_TOKENS,
        *flags.DECODING,
        flags.SEED,
        *flags.DRAFT,
        flags.STEP,
    ),
    "chat": Verb(
        chat,
        flags.WORKDIR,
        flags.SYSTEM,
        flags.MAX_TOKENS,
        *flags.DECODING,
        flags.SEED,
        flags.CHAT_TEMPLATE,
        flags.STEP,
    ),
    "score": Verb(
        score,
        flags.WORKDIR,
        flags.TEXTS,
        flags.EOS,
        flags.PER_TOKEN,
        *flags.LONG_TEXTS,
        flags.STEP,
    ),
    "predict": Verb(
        predict,
        flags.WORKDIR,
        flags.EXAMPLES,
        flags.OUTPUT,
        flags.FORMAT,
        flags.SKIP_BAD,
        flags.KEEP,
        flags.EXPLAIN,
        flags.STEP,
        takes_overrides=True,
    ),
    "compare": Verb(
        compare,
        flags.WORKDIRS,
        flags.HELD_OUT,
        flags.COMPARISON,
        flags.JSON,
        flags.FORMAT,
        takes_overrides=True,
    ),
    "lm_eval": Verb(
        lm_eval,
        flags.WORKDIR,
        flags.HARNESS_TASKS,
        flags.INCLUDE_PATH,
        flags.NUM_FEWSHOT,
        flags.LIMIT,
        flags.SEED,
        flags.RESULTS,
        flags.STEP,
    ),
    "report": Verb(report, flags.RUNS, flags.REPORT, flags.PREDICTIONS),
    "import": Verb(
        import_model,
        flags.HF_SOURCE,
        flags.IMPORTED,
        flags.DRY_RUN,
        flags.IGNORE_GENERATION,
        flags.BASE,
    ),
    "export": Verb(
        export_model,
        flags.WORKDIR,
        flags.HF_TARGET,
        flags.STEP,
        flags.DTYPE,
        flags.ADAPTERS,
        flags.PUSH,
        flags.PRIVATE,
    ),
    "compress": Verb(
        compress,
        flags.WORKDIR,
        flags.COMPRESSED,
        flags.PRUNE,
        flags.LOW_RANK,
        *flags.QUANTIZE,
        flags.CALIBRATE,
        flags.WINDOWS,
        flags.STEP,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    streams.configure_logging(debug="--debug" in argv)
    try:
        args = parse_args(argv, VERBS)
        if args.version:
            from lmjax import __version__

            print(__version__)
            return 0
        if args.verb != "train":  # it handles signals itself
            process_exit.raise_interrupts()
        return VERBS[args.verb].run(args)
    except BrokenPipeError:
        # The reader of our output has closed it. Python would fail again at exit, when
        # it flushes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        if "--debug" in argv:
            raise
        _print_error("interrupted")
        process_exit.leave_now(128 + signal.SIGINT)
    except (UserError, FloatingPointError, OSError, MemoryError) as error:
        if "--debug" in argv:
            raise
        _print_error(f"error: {' '.join(_format_error(error).split())}")
        return 2


def _format_error(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        file = f"{error.filename}: " if error.filename else ""
        return f"{file}{error.strerror}"
    return f"out of memory: {error}" if isinstance(error, MemoryError) else str(error)


def _print_error(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
