"""Benchmarks that run lmjax and a reference in turns, on the same work.

    python -m tools.bench decode [--model=DIR|gpt10m] [--batch=1,16] [--json=FILE]

Each pair of runs is one of lmjax and one of the reference, one after the other, in the
same process; which is first alternates. Printed are the medians, and the median of the
ratios pair by pair with the smallest and the largest. Without PyTorch and transformers
lmjax runs alone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lmjax.errors import UserError

from . import decode
from .report import machine, print_rows

BENCHMARKS: dict[str, Any] = {"decode": decode}


class _Parser(argparse.ArgumentParser):
    """Raises an error in place of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark and return the exit code."""
    try:
        args = parse_args(sys.argv[1:] if argv is None else argv)
        rows = BENCHMARKS[args.benchmark].run(args)
        print_rows(rows)
        if args.json:
            result = {"benchmark": args.benchmark, "machine": machine(), "rows": rows}
            args.json.write_text(json.dumps(result, indent=1) + "\n")
        return 0
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Return the flags.

    Raises:
      UserError: one is unknown or wrong.
    """
    parser = _Parser(prog="python -m tools.bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    benchmarks = parser.add_subparsers(dest="benchmark", required=True)
    for name, module in BENCHMARKS.items():
        own = benchmarks.add_parser(name, description=module.__doc__)
        own.formatter_class = argparse.RawDescriptionHelpFormatter
        own.add_argument("--pairs", type=positive, default=5, help="of runs")
        own.add_argument("--json", type=Path, help="write the results to this file")
        module.add_flags(own)
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """Parse a positive integer."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: must be an integer >= 1")
    return int(text)
