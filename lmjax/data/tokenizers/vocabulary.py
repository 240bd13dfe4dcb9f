"""The words of a vocabulary, without special tokens."""

import numpy as np

from lmjax.data.tokenizers.sentencepiece import SPACE_MARK
from lmjax.data.tokenizers.tokenizer import Tokenizer

_UNKNOWN = ("<unk>", "[UNK]", "<UNK>", "\u2047")


def read_words(tokenizer: Tokenizer) -> list[str]:
    """Return the word of each id, without SentencePiece's mark of a space."""
    pieces = map(tokenizer.id_to_piece, range(tokenizer.vocab_size))
    return [piece.removeprefix(SPACE_MARK) for piece in pieces]


def is_word(tokenizer: Tokenizer) -> np.ndarray:
    """Return whether each id is text that is known, not special, bool (V,)."""
    single = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id
    special = [i for i in single if i is not None]
    for ids in (tokenizer.prefix_ids, tokenizer.suffix_ids, tokenizer.pair_ids):
        special += ids
    is_word_V = np.array([word not in _UNKNOWN for word in read_words(tokenizer)])
    is_word_V[[*special, *tokenizer.sentinel_ids]] = False
    return is_word_V


def list_words(tokenizer: Tokenizer) -> tuple[list[str], np.ndarray]:
    """Return the words that files of word vectors can hold, each once, and their ids.

    A file separates words by white space.
    """
    first: dict[str, int] = {}
    known = is_word(tokenizer)
    for i, word in enumerate(read_words(tokenizer)):
        if known[i] and word and not any(map(str.isspace, word)):
            first.setdefault(word, i)
    return [*first], np.array([*first.values()], np.int64)
