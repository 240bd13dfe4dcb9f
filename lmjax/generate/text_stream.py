"""Incremental detokenization: text from tokens that arrive one by one."""

from collections.abc import Sequence

from lmjax.data.tokenizers.spaces import UNSETTLED
from lmjax.data.tokenizers.tokenizer import Tokenizer

_CONTEXT = 32  # last tokens of the prompt, which decide how its continuation begins
_PATIENCE = 8  # tokens to wait for the rest of a character; it has 4 bytes at most
_UNFINISHED = "\ufffd"


class TextStream:
    """Decodes a window of tokens: those that last gave text, and those after them.

    Each token is thereby decoded a bounded number of times. The text of a token is what
    it adds to the text of the window before it, since a tokenizer may decode the first
    token differently (without its leading space). For that the window must hold more
    than spaces. It never begins within a character.

    Args:
      tokenizer: of the tokens.
      prompt: the tokens before the stream; their text is not repeated.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-_CONTEXT:])
        self._shown = tokenizer.decode(self._ids)
        if not self._shown.strip(" "):
            self._ids = list(prompt)
            self._shown = tokenizer.decode(self._ids)
        self._num_shown = len(self._ids)

    def add(self, token: int) -> str:
        """Return the text that a token adds; "" while a character is incomplete."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        changes = self._tokenizer.cleans_up and text.endswith(UNSETTLED)
        if text.endswith(_UNFINISHED) or changes:
            waiting = len(self._ids) - self._num_shown
            return self._skip_invalid(text) if waiting > _PATIENCE else ""
        added = text[len(self._shown) :]
        since = self._ids[self._num_shown :]
        alone = self._tokenizer.decode(since)
        if alone.strip(" "):
            self._ids, text = since, alone
        self._shown, self._num_shown = text, len(self._ids)
        return added

    def rest(self) -> str:
        """Return the remaining text after the last token."""
        return self._tokenizer.decode(self._ids)[len(self._shown) :]

    def _skip_invalid(self, text: str) -> str:
        """Return text up to bytes that are no character, and continue after them.

        No character that begins before the last four tokens is incomplete. A cut is
        between two characters if both sides, decoded alone, give the text of the whole.
        """
        for stop in range(len(self._ids) - 4, self._num_shown, -1):
            head = self._tokenizer.decode(self._ids[:stop])
            if head + self._tokenizer.decode(self._ids[stop:]) == text:
                added = head[len(self._shown) :]
                self._ids, self._shown, self._num_shown = self._ids[stop:], "", 0
                return added
        return ""


def cut_text(text: str, stop: Sequence[str]) -> str:
    """Return a text up to where the first of some texts begins in it."""
    found = (index for s in stop if (index := text.find(s)) >= 0)
    return text[: min(found, default=len(text))]


class StoppedText:
    """A text that comes in pieces, and ends before the first of some texts.

    What may be the beginning of one of them is held back until more has come.

    Args:
      stop: texts, none of them empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.is_over = False

    def add(self, piece: str) -> str:
        """Return what is certain to belong to the text; "" once it is over."""
        if self.is_over:
            return ""
        self._held += piece
        text = cut_text(self._held, self._stop)
        # A longer text to stop at may have begun before the one that was found.
        size = min(len(text), len(self._held) - self._num_begun())
        self.is_over = len(text) < len(self._held) and size == len(text)
        text, self._held = self._held[:size], self._held[size:]
        return text

    def rest(self) -> str:
        """Return what is left when no more comes."""
        text, self._held = cut_text(self._held, self._stop), ""
        return "" if self.is_over else text

    def _num_begun(self) -> int:
        """Return how many last characters may begin a text to stop at."""
        held = self._held
        return max(
            (
                size
                for s in self._stop
                for size in range(1, min(len(s), len(held) + 1))
                if held.endswith(s[:size])
            ),
            default=0,
        )


class StoppedStream:
    """Text from tokens that arrive one by one, up to a text to stop at.

    Args:
      stream: of the tokens.
      stopped: of the text.
      forced: a first token to leave out; -1: none.
    """

    def __init__(
        self, stream: TextStream, stopped: StoppedText, *, forced: int
    ) -> None:
        self._stream, self._stopped, self._forced = stream, stopped, forced

    @property
    def is_over(self) -> bool:
        """Return whether a text to stop at has come."""
        return self._stopped.is_over

    def add(self, token: int) -> str:
        """Return the text that a token adds, as far as it is certain."""
        forced, self._forced = self._forced, -1
        if token == forced:
            return ""
        return self._stopped.add(self._stream.add(token))

    def rest(self) -> str:
        """Return the remaining text after the last token."""
        return self._stopped.add(self._stream.rest()) + self._stopped.rest()
