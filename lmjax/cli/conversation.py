"""A conversation in a terminal, or of the lines of a pipe."""

import contextlib
import re
import sys
from collections.abc import Iterator

from lmjax.errors import UserError, nearest
from lmjax.inference.chat import Conversation

_COMMANDS = ("/reset", "/exit")
_HELP = "/reset forgets the chat, /exit or ctrl-D ends it, ctrl-C stops an answer"


def run(talk: Conversation) -> int:
    """Read turns from stdin and print the answers, until the input or the user ends.

    In a terminal a turn that cannot be answered is explained, and the next one read.

    Raises:
      UserError: a turn of a pipe cannot be answered.
    """
    in_terminal = sys.stdin.isatty()
    if in_terminal:
        _tell(_HELP)
    for line in _read_lines(in_terminal=in_terminal):
        text = line.strip()
        if text == "/exit":
            break
        if text == "/reset":
            talk.reset()
        elif text:
            try:
                _answer(talk, text)
            except UserError as error:
                if not in_terminal:
                    raise
                _tell(f"error: {' '.join(str(error).split())}")
    return 0


def _answer(talk: Conversation, text: str) -> None:
    """Print the answer to a turn as it comes; an interrupt ends it.

    Raises:
      UserError: it cannot be answered, or is no command.
    """
    if re.fullmatch(r"/\w+", text):
        hint = nearest(text, _COMMANDS)
        raise UserError(f"{text}: must be one of {', '.join(_COMMANDS)}{hint}")
    with contextlib.closing(talk.answer(text)) as pieces:
        try:
            for piece in pieces:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            _tell(" (stopped)")
            return
    print(flush=True)


def _read_lines(*, in_terminal: bool) -> Iterator[str]:
    """Yield lines of stdin; an interrupt at the prompt is no end.

    Raises:
      UserError: they are not text.
    """
    if in_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # arrow keys and the lines before
    while True:
        try:
            yield input("> ") if in_terminal else _next_line()
        except EOFError:
            if in_terminal:
                print()
            return
        except KeyboardInterrupt:
            if not in_terminal:
                raise
            _tell(f"\n{_HELP}")
        except UnicodeDecodeError as error:
            raise UserError(f"stdin: not text: {error}") from error


def _next_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
