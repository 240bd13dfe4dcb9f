"""The ids of a text that continues another one: those of the whole.

Many tokenizers put something before a text, such as a space, or merge the characters at
the seam. So a text is not encoded alone, but with its context; what belongs to it is
the rest of the whole, as in lm-evaluation-harness.
"""

from collections.abc import Sequence

import numpy as np

from lmjax.data.tokenizers.tokenizer import Tokenizer

_BORDERS = ("\n", ".", "1")  # after which most tokenizers begin a piece

Pair = tuple[np.ndarray, np.ndarray]  # the ids of a context, and of the text after it


def encode_continuations(
    tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], *, keep_context: bool
) -> list[Pair]:
    """Return the ids of contexts, and of the texts that continue them.

    Where a piece of the whole crosses the seam, it belongs to the text: "import " and
    "sys" are "import" and " sys". Pieces of whole words cross no seam.

    Args:
      tokenizer: of the texts.
      pairs: contexts and texts; either may be empty.
      keep_context: the context has the ids that it has alone, as where its text is
        still to be generated; where a piece of the whole crosses the seam, the text is
        encoded by itself, without what the tokenizer puts before a text.
    """
    space = " " if tokenizer.separates_words else ""
    contexts = tokenizer.encode_batch([context for context, _ in pairs])
    wholes = tokenizer.encode_batch([context + space + text for context, text in pairs])
    encoded = []
    for (context, text), before, whole in zip(pairs, contexts, wholes, strict=True):
        before = before if context else before[:0]
        size = _common_prefix(before, whole) if text else len(before)
        if size == len(before):
            encoded.append((before, whole[size:] if text else before[:0]))
        elif keep_context:
            encoded.append((before, _encode_inside(tokenizer, text)))
        else:
            encoded.append((whole[:size], whole[size:]))
    return encoded


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Return the number of ids with which both begin."""
    size = min(len(a), len(b))
    (differ,) = np.nonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size


def _encode_inside(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Return the ids of a text as within another one, if a piece can begin there."""
    for border in _BORDERS:
        before, whole = tokenizer.encode_batch([border, border + text])
        if len(before) and _common_prefix(before, whole) == len(before):
            return whole[len(before) :]
    return tokenizer.encode(text)
