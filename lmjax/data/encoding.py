"""Documents to tokens, a bounded stretch of text at a time."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from lmjax.data.documents import Documents, chunks
from lmjax.data.special_ids import present
from lmjax.data.token_store import Counts
from lmjax.data.tokenizer import Tokenizer

# Characters encoded at once; a document of twice as many is cut. SentencePiece takes
# 30 to 100 bytes of memory for each. The ids of what is cut depend on it, so the
# store's version changes with it.
CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Part:
    """A document, or a chunk of one that is too long to be encoded whole."""

    text: str
    first: bool  # of its document
    last: bool
    inside_word: bool  # it begins within a word


def cut(text: str) -> Iterator[Part]:
    """Yield a document's parts: one, unless it is long; `documents.chunks` cuts it."""
    start, before = 0, " "
    for chunk in chunks(text, size=CHUNK):
        stop = start + len(chunk)
        inside_word = not (before.isspace() or chunk[:1].isspace())
        yield Part(chunk, start == 0, stop == len(text), inside_word)
        start, before = stop, chunk[-1:]


def batches(documents: Documents, indices: range) -> Iterator[list[Part]]:
    """Yield parts in order, few enough at a time that they fit the memory."""
    batch: list[Part] = []
    num_characters = 0
    for part in (part for i in indices for part in cut(documents[i])):
        if batch and num_characters + len(part.text) > CHUNK:
            yield batch
            batch, num_characters = [], 0
        batch.append(part)
        num_characters += len(part.text) + 1
    yield batch


def join(
    parts: Sequence[Part], *, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of parts, any EOS after a document, and where documents begin.

    Each part is encoded for itself, so neither batches nor workers change the ids.
    """
    eos = np.array(present(tokenizer.eos_id), np.int32)
    nothing = np.zeros(0, np.int32)
    encoded = [
        np.concatenate([ids, eos if part.last else nothing])
        for part, ids in zip(
            parts, tokenizer.encode_batch([part.text for part in parts]), strict=True
        )
    ]
    ends = np.cumsum([len(ids) for ids in encoded])
    starts = np.concatenate([[0], ends[:-1]])[[part.first for part in parts]]
    return np.concatenate(encoded), starts.astype(np.int64)


def count(parts: Sequence[Part], *, num_tokens: int) -> Counts:
    """Count documents, bytes and words of parts, as if no document were cut."""
    return Counts(
        num_documents=sum(part.first for part in parts),
        num_tokens=num_tokens,
        num_bytes=sum(len(part.text.encode()) for part in parts),
        num_words=sum(len(part.text.split()) - part.inside_word for part in parts),
    )
