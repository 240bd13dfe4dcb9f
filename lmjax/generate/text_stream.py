"""Incremental detokenization: text from tokens that arrive one by one."""

from collections.abc import Sequence

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
        if text.endswith(_UNFINISHED):
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
