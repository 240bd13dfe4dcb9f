"""Text of tokens that come one by one, each decoded a fixed number of times."""

from collections.abc import Sequence

from lmjax.data.tokenizers.tokenizer import Tokenizer

_CONTEXT = 32  # tokens of the prompt that say how its continuation begins
_PATIENCE = 8  # tokens to wait for the rest of a character; it has 4 bytes at most
_UNFINISHED = "\ufffd"


class TextStream:
    """Decodes a window: the tokens that last gave text, and those that came since.

    The window's own beginning may be decoded otherwise than within a longer text (a
    tokenizer may take a leading space away), so what counts is what a token adds to
    the text of those before it. For that they must hold more than spaces, and a window
    never begins within a character.

    Args:
      tokenizer: of the tokens.
      prompt: what the text goes on from; not given again.
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
        """Return the text that a token completes; "" within a character."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith(_UNFINISHED):
            waiting = len(self._ids) - self._num_shown
            return self._settled(text) if waiting > _PATIENCE else ""
        added = text[len(self._shown) :]
        since = self._ids[self._num_shown :]
        alone = self._tokenizer.decode(since)
        if alone.strip(" "):
            self._ids, text = since, alone
        self._shown, self._num_shown = text, len(self._ids)
        return added

    def rest(self) -> str:
        """Return what is left when no more tokens come."""
        return self._tokenizer.decode(self._ids)[len(self._shown) :]

    def _settled(self, text: str) -> str:
        """Give up on bytes that are no character, and go on after them.

        No character that begins before the last four tokens is unfinished; none is cut
        where both sides alone give the text of the whole.
        """
        for stop in range(len(self._ids) - 4, self._num_shown, -1):
            head = self._tokenizer.decode(self._ids[:stop])
            if head + self._tokenizer.decode(self._ids[stop:]) == text:
                added = head[len(self._shown) :]
                self._ids, self._shown, self._num_shown = self._ids[stop:], "", 0
                return added
        return ""
