"""`python -m lmjax.cli`, and the command `lmjax`."""

import sys

from lmjax.cli import process_exit


def main() -> int:
    """Run one verb and return its exit code."""
    process_exit.handle_early_signals(sys.argv[1] if len(sys.argv) > 1 else "")
    from lmjax.cli.main import main as run_verb

    code = run_verb()
    process_exit.restore_default_signals()
    return code


if __name__ == "__main__":
    sys.exit(main())
