"""The parser of `lmjax VERB ...`: flags, overrides of the config, and its errors.

Other programs whose first argument chooses what they do use it, too.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from lmjax.errors import UserError, nearest

OVERRIDE = "--config."


class Flag:
    """A flag of a verb.

    Args:
      name: with its dashes.
      help: its text in --help.
      options: more arguments of `ArgumentParser.add_argument`.
    """

    def __init__(self, name: str, help: str, **options: Any) -> None:
        self.name = name
        self.help = help
        self.options = options


class Verb:
    """A verb: the function that runs it, and its flags.

    Args:
      run: gets the parsed flags and returns the exit code.
      flags: those of this verb.
      takes_overrides: it takes --config.a.b=VALUE.
    """

    def __init__(
        self,
        run: Callable[[argparse.Namespace], int],
        *flags: Flag,
        takes_overrides: bool = False,
    ) -> None:
        self.run = run
        self.flags = flags
        self.takes_overrides = takes_overrides


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What a program and its verbs are called."""

    name: str = "lmjax"
    verb: str = "verb"
    summary: str = "Train language models with JAX and Flax, and use them."


LMJAX = Program()


def parse_args(
    argv: Sequence[str], verbs: Mapping[str, Verb], *, program: Program = LMJAX
) -> argparse.Namespace:
    """Parse a command line.

    Returns:
      The flags; `overrides` has the "a.b=VALUE" of all --config.a.b=VALUE.

    Raises:
      UserError: a verb, a flag or a value that is wrong.
    """
    overrides = _find_overrides(argv)
    rest = [arg for arg in argv if not arg.startswith(OVERRIDE)]
    verb = next((arg for arg in rest if not arg.startswith("-")), None)
    noun, names = program.verb, ", ".join(verbs)
    if verb is not None and verb not in verbs:
        hint = nearest(verb, list(verbs))
        raise UserError(f"{verb}: no such {noun}{hint}; must be one of {names}")
    args, unknown = _build_parser(verbs, program).parse_known_args(rest)
    if args.verb is None and not args.version:
        raise UserError(f"expected a {noun}: {names}; see {program.name} --help")
    if unknown:
        raise UserError(_describe_unknown(unknown[0], args.verb, verbs, program))
    if overrides and not (args.verb and verbs[args.verb].takes_overrides):
        name = overrides[0].partition("=")[0]
        raise UserError(
            f"{OVERRIDE}{name}: {program.name} {args.verb} takes no overrides"
        )
    args.overrides = overrides
    return args


def _find_overrides(argv: Sequence[str]) -> list[str]:
    """Return the overrides without their prefix.

    Raises:
      UserError: one has no "=".
    """
    overrides = []
    for arg, following in zip(argv, [*argv[1:], ""], strict=False):
        if not arg.startswith(OVERRIDE):
            continue
        if "=" not in arg:
            value = following if following[:2] not in ("", "--") else "VALUE"
            raise UserError(f"{arg}: expected {arg}={value}")
        overrides.append(arg.removeprefix(OVERRIDE))
    return overrides


def _describe_unknown(
    arg: str, verb: str | None, verbs: Mapping[str, Verb], program: Program
) -> str:
    command = f"{program.name} {verb}" if verb else program.name
    if not arg.startswith("-"):
        return f"{arg}: unexpected argument of {command}; see {command} --help"
    flags = [flag.name for flag in verbs[verb].flags] if verb else []
    hint = nearest(arg.partition("=")[0], flags)
    if not hint and verb and verbs[verb].takes_overrides:
        hint = f" (leaves of the config are set by {OVERRIDE}a.b=VALUE)"
    return f"{arg}: no such flag of {command}{hint}; see {command} --help"


class _Parser(argparse.ArgumentParser):
    """Raises an error, where `argparse` would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        # argparse says "argument --flag: =VALUE: why" when a type of flags.py fails.
        message = re.sub(r"^argument (\S+): =", r"\1=", message)
        message = message.removeprefix("argument ")
        message = message.replace("ignored explicit argument", "takes no value, not")
        raise UserError(f"{message}; see {self.prog} --help")


def _build_parser(
    verbs: Mapping[str, Verb], program: Program
) -> argparse.ArgumentParser:
    noun, metavar = program.verb, program.verb.upper()
    parser = _Parser(
        prog=program.name,
        description=program.summary,
        epilog=f"{program.name} {metavar} --help describes the flags of a {noun}.",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    subparsers = parser.add_subparsers(metavar=metavar, dest="verb", title=f"{noun}s")
    for name, verb in verbs.items():
        summary = (verb.run.__doc__ or "").splitlines()[0]
        epilog = (
            f"{OVERRIDE}a.b=VALUE overrides a leaf of the config, as in "
            f"{OVERRIDE}data.length=512 (several may be given)."
        )
        sub = subparsers.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=epilog if verb.takes_overrides else None,
        )
        for flag in verb.flags:
            sub.add_argument(flag.name, help=flag.help, **flag.options)
        sub.add_argument(
            "--debug", action="store_true", help="show the traceback of an error"
        )
    return parser
