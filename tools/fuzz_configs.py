"""Try random configs and wrong command lines; report whatever is not one clear line.

    python tools/fuzz_configs.py [--num_configs=5000] [--num_commands=100] [--seed=0]

A config is made of random leaves with right, extreme and wrong values, names with a
letter changed, sections that are no sections, and files that fail. Each goes through
`lmjax describe`, which trains nothing; one of `--describe_every` also builds its
model's shapes. A fault is a traceback, an exit code other than 0 and 2, an error of
more or fewer lines than one, or a leaf that was accepted but is not in the resolved
config. The exit code is the number of kinds of faults.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import logging
import os
import random
import sys
import tempfile
import time
import traceback
import types
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from lmjax.cli import main as cli
from lmjax.config import experiment

VERBS = [*cli.VERBS]
ODD_TEXTS = [
    "",
    " ",
    "\n",
    "\0",
    "é",
    "a" * 5000,
    "None",
    "1e999",
    "~nobody/x",
    "[1",
    "{}",
]
ODD = [
    "None",
    "-1",
    "0",
    "1",
    "2**31",
    "10**400",
    "10**5000",
    "-0.5",
    "1e-12",
    "0.3",
    "1e308",
    "float('nan')",
    "float('inf')",
    "True",
    "()",
    "[]",
    "{}",
    "set()",
    "b'x'",
    "(1, 'a', None)",
    "{'kind': 5}",
    "{'kind': {}}",
    "{1: 2}",
    "{None: {}}",
    "object()",
    "print",
    "range(3)",
    "1j",
    "__import__('numpy').float32(0.5)",
    "__import__('numpy').int64(7)",
    "__import__('numpy').zeros(3)",
    "__import__('pathlib').Path('x')",
    "LOOP",
    "[LOOP_LIST]",
    *map(repr, ODD_TEXTS),
]
HEAD = """
from ml_collections import ConfigDict
LOOP = {}
LOOP["dim"] = LOOP
LOOP_LIST = []
LOOP_LIST.append(LOOP_LIST)
"""
# Files whose get_config does something else than to return a config.
BODIES = [
    "def get_config(): return config()",
    "def get_config(): return ConfigDict(config())",
    "def get_config(): return config()",
    "def get_config(): return config()",
    "def get_config(): return [config()]",
    "def get_config(): raise ValueError('two\\nlines')",
    "def get_config(): raise SystemExit",
    "import sys\ndef get_config(): sys.exit(3)",
    "import sys\nsys.exit('a word')",
    "def get_config(): return get_config()",
    "def get_config(a, b): return config()",
    "get_config = config()",
    "def get_config(): return None",
    "raise BaseException('x')",
    "def get_config(:",
    "import no_such_module",
    "class Odd(dict):\n  def items(self): raise OSError(5, 'odd')\n"
    "def get_config(): return Odd()",
]


def fields_of(kind: Any, rng: random.Random) -> dict[str, Any]:
    """Return the names and types of the fields of a section."""
    if isinstance(kind, types.UnionType):
        kind = rng.choice(typing.get_args(kind))
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def is_section(kind: Any) -> bool:
    """Return whether a type is a dataclass, or a union of them."""
    return dataclasses.is_dataclass(kind) or isinstance(kind, types.UnionType)


def likely_value(kind: Any, rng: random.Random) -> str:
    """Return the source of a value that a leaf probably allows."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is typing.Literal:
        return repr(rng.choice(typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return rng.choice(["()", "('a',)", "('a', 'b')"])
    choices: dict[Any, list[str]] = {
        int: ["0", "1", "2", "4", "8", "64", "1000", "8.0"],
        float: ["0", "0.1", "0.5", "1", "2.0", "1e-3"],
        bool: ["True", "False"],
        str: ["''", "'text'", "'*'", "'nowhere/*.txt'"],
    }
    return rng.choice(choices.get(kind, ["0"]))


def misspell(name: str, rng: random.Random) -> str:
    """Return a name with one letter changed."""
    i = rng.randrange(len(name))
    return name[:i] + rng.choice("xyz_ .") + name[i + 1 :]


def make_section(kind: Any, rng: random.Random, *, oddity: float) -> Iterator[str]:
    """Yield `name: value` of some leaves of a section, in Python."""
    fields = fields_of(kind, rng)
    for name, leaf in rng.sample(
        [*fields.items()], rng.randint(0, min(5, len(fields)))
    ):
        key = misspell(name, rng) if rng.random() < oddity / 2 else name
        if rng.random() < oddity:
            yield f"{key!r}: {rng.choice(ODD)}"
        elif is_section(leaf):
            inner = ", ".join(make_section(leaf, rng, oddity=oddity))
            yield f"{key!r}: {{{inner}}}"
        else:
            yield f"{key!r}: {likely_value(leaf, rng)}"


# Sections of a config that works, so that most leaves are not refused for others.
GOOD = [
    "'tokenizer': {'kind': 'bytes'}",
    "'data': {'source': 'python_stdlib', 'length': 64}",
    "'model': {'dim': 32, 'num_layers': 2, 'num_heads': 2}",
    "'optim': {'name': 'muon'}",
]


def make_file(path: Path, rng: random.Random) -> None:
    """Write a random experiment file."""
    oddity = rng.choice([0.0, 0.02, 0.1, 0.5])
    body = rng.choice(BODIES) if rng.random() < 0.2 else BODIES[0]
    random_leaves = [*make_section(experiment.Config, rng, oddity=oddity)]
    given = {leaf.partition(":")[0] for leaf in random_leaves}
    good = [leaf for leaf in GOOD if leaf.partition(":")[0] not in given]
    source = ", ".join(good + random_leaves)
    content = f"{HEAD}\ndef config():\n    return {{{source}}}\n{body}\n"
    path.write_text(content, encoding="utf-8")


def make_overrides(rng: random.Random) -> list[str]:
    """Return random `--config.a.b=VALUE`."""
    overrides = []
    for _ in range(rng.choice([0, 0, 1, 2])):
        kind, names = experiment.Config, []
        while is_section(kind):
            fields = fields_of(kind, rng)
            name = rng.choice([*fields])
            kind = fields[name]
            names.append(misspell(name, rng) if rng.random() < 0.05 else name)
            if rng.random() < 0.05:
                break
        odd = ["9" * 5000, "[" * 999, "{1:", "'", "\\", "==", "\t", "{'a': {'b': 1}}"]
        usual = is_section(kind) or rng.random() < 0.3
        value = rng.choice(odd + ODD_TEXTS) if usual else likely_value(kind, rng)
        overrides.append(f"--config.{'.'.join(names)}={value.strip(chr(39))}")
    return overrides


def make_command(directory: Path, rng: random.Random) -> list[str]:
    """Return a command line with something wrong in it."""
    config = str(directory / "config.py")
    flags = [flag for verb in cli.VERBS.values() for flag in verb.flags]
    values = [
        *ODD_TEXTS,
        *("-1", "x", "1/0", "0/0", "3:", "best", "9" * 5000, "/dev/null", "/", config),
        *("none.txt", f"{config}:a:b", str(directory), "\udcff", "--step", "😀"),
    ]
    verb = rng.choice([*VERBS, "", "--", "trian", "-v", "--version=1", "\n"])
    known = cli.VERBS.get(verb)
    # Nothing may be trained, imported or downloaded: a required flag is wrong.
    argv = [verb] if verb else []
    own = [*known.flags] if known else rng.sample(flags, 2)
    for flag in own:
        required = flag.options.get("required", False)
        if rng.random() < (0.8 if required else 0.3):
            name = misspell(flag.name, rng) if rng.random() < 0.15 else flag.name
            value = rng.choice(values)
            if flag.name == "--workdir":
                value = str(directory / "nothing" / "here")
            if flag.name == "--from":
                value = str(directory / "none")
            spelled = [name] if rng.random() < 0.15 else [f"{name}={value}"]
            argv += spelled if rng.random() < 0.9 else [name, value]
    if rng.random() < 0.3:
        argv += [rng.choice(["extra", "--debugg", "--config.", "--config.a", "-"])]
    if verb in ("train", "prepare"):
        argv += ["--config.model.dims=1"]  # whatever else is right, this is not
    return argv


class Fault(Exception):
    """Something that a user should not see."""


def run(argv: list[str]) -> tuple[int, str, str]:
    """Run `lmjax` in this process; return its exit code, and what it printed.

    Raises:
      Fault: it raised, or its error is not one line.
    """
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    for handler in [*root.handlers]:
        root.removeHandler(handler)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(argv)
    except SystemExit as error:
        if error.code not in (0, None):  # 0: of --help
            raise Fault(f"SystemExit({error.code!r}), and no word") from error
        code = 0
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        raise Fault(f"{type(error).__name__} at {place}: {str(error)[:200]}") from error
    lines = err.getvalue().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if code == 2 and (len(errors) != 1 or lines[-1] != errors[-1]):
        raise Fault(f"{len(lines)} lines of error: {err.getvalue()[:300]!r}")
    if code == 2 and len(errors[0]) > 20_000:
        raise Fault(f"an error of {len(errors[0])} characters")
    if code not in (0, 2) or (code == 0 and errors):
        raise Fault(f"exit code {code}: {err.getvalue()[:300]!r}")
    return code, out.getvalue(), err.getvalue()


def check_leaves(spec: str, overrides: list[str]) -> None:
    """Check that each leaf of an accepted config is in the resolved one, or told.

    Raises:
      Fault: one is not.
    """
    source = experiment.load_module(spec).get_config()
    logging.disable()
    resolved = experiment.load(spec, [o.removeprefix("--config.") for o in overrides])
    logging.disable(logging.NOTSET)
    wanted = dict(experiment.leaves(experiment.to_builtins(source), "config"))
    for override in overrides:
        wanted.pop(override.partition("=")[0].removeprefix("--"), None)
    found = dict(experiment.leaves(experiment.to_dict(resolved), "config"))
    for path, value in wanted.items():
        if path not in found and value not in ((), {}):
            raise Fault(f"{path} = {value!r} was accepted, and is nowhere")
        # 0, "" and "auto" stand for what follows from other leaves; others stay.
        if (
            value
            and value != "auto"
            and json.dumps(found[path], default=str) != json.dumps(value, default=str)
        ):
            numbers = isinstance(value, int | float) and float(value) == found[path]
            extended = path in ("config.optim.trainable", "config.optim.frozen")
            if not (numbers or extended):
                raise Fault(f"{path} = {value!r} became {found[path]!r}")


def main(argv: list[str] | None = None) -> int:
    """Try all of them, and print each kind of fault with its first case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num_configs", type=int, default=5000)
    parser.add_argument("--num_commands", type=int, default=100)
    parser.add_argument("--describe_every", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    counts: Counter[str] = Counter()
    faults: dict[str, str] = {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        directory = Path(name)
        for i in range(args.num_configs + args.num_commands):
            rng = random.Random(f"{args.seed}-{i}")
            make_file(directory / "config.py", rng)
            argv = []
            try:
                if i < args.num_configs:
                    argv = try_config(directory, rng, counts, args.describe_every)
                else:
                    argv = make_command(directory, rng)
                    code, _, _ = run(argv)
                    counts[f"command lines with exit {code}"] += 1
            except Fault as fault:
                kind = str(fault)
                counts["faults"] += 1
                source = (directory / "config.py").read_text()
                faults.setdefault(
                    kind, f"{i}: {argv}\n{source.partition('def config')[2]}"
                )
    seconds = time.monotonic() - start
    for kind, case in faults.items():
        print(f"FAULT {kind}\n{case[:2000]}\n")
    print(", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())))
    print(f"{len(faults)} kinds of faults, seed {args.seed}, {seconds:.0f} s")
    return min(len(faults), 100)


def try_config(
    directory: Path, rng: random.Random, counts: Counter[str], describe_every: int
) -> list[str]:
    """Describe, or only parse, one random config.

    Raises:
      Fault: as of `run` and `check_leaves`.
    """
    spec, overrides = str(directory / "config.py"), make_overrides(rng)
    verb = "describe" if rng.randrange(describe_every) == 0 else "parse"
    argv = [verb, f"--config={spec}", *overrides]
    with parse_only(verb == "parse"):
        code, _, _ = run(["describe", *argv[1:]])
    counts["configs refused" if code else f"configs accepted ({verb})"] += 1
    if code == 0:
        check_leaves(spec, overrides)
    return argv


@contextlib.contextmanager
def parse_only(only: bool) -> Iterator[None]:
    """Let `describe` end after it has parsed a config."""
    from lmjax.cli import report

    describe = report.describe
    if only:
        report.describe = lambda *_, **__: None
    try:
        yield
    finally:
        report.describe = describe


if __name__ == "__main__":
    sys.exit(main())
