"""`python -m lmjax.cli`, and the command `lmjax`."""

import sys

from lmjax.cli import process_exit

_LEAVE_SECONDS = 3.0  # for which a process that failed waits for the others


def main() -> int:
    """Run one verb and return its exit code."""
    process_exit.handle_early_signals(sys.argv[1] if len(sys.argv) > 1 else "")
    from lmjax.cli.main import main as run_verb

    try:
        code = run_verb()
    except Exception:
        if not _is_one_of_several():
            raise
        sys.excepthook(*sys.exc_info())
        code = 1
    process_exit.restore_default_signals()
    if code not in (0, process_exit.EXIT_STOPPED) and _is_one_of_several():
        from lmjax.parallel import join

        join.leave_processes(seconds=_LEAVE_SECONDS)
        process_exit.leave_now(code)
    return code


def _is_one_of_several() -> bool:
    """Return whether this process has joined others; imports nothing if not."""
    join = sys.modules.get("lmjax.parallel.join")
    return join is not None and join.has_joined()


if __name__ == "__main__":
    sys.exit(main())
