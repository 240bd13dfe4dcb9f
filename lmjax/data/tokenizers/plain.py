"""Tokenizers that need no model: bytes, and texts that are ids already."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.tokenizers.files import write_manifest
from lmjax.data.tokenizers.offsets import Encoded, encoded, of_bytes
from lmjax.data.tokenizers.special_ids import SpecialIds, not_none
from lmjax.errors import ConfigError

_EOS = 256


class Bytes(SpecialIds):
    """Each byte of the UTF-8 text is a token.

    After the 256 bytes come EOS, then BOS, the mask and the sentinels, those there are.
    """

    def __init__(self, *, bos: bool, mask: bool = False, num_sentinels: int = 0):
        first = _EOS + 1 + bos + mask
        bos_id = _EOS + 1 if bos else None
        super().__init__(
            bos_id=bos_id,
            eos_id=_EOS,
            mask_id=first - 1 if mask else None,
            sentinel_ids=tuple(range(first, first + num_sentinels)),
            prefix_ids=not_none(bos_id),
            suffix_ids=(_EOS,),
            pair_ids=(_EOS,),
        )
        self.vocab_size = first + num_sentinels

    def encode(self, text: str) -> np.ndarray:
        """Return the bytes of a text as int32 ids."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode several texts."""
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode several texts; each byte stands for its character."""
        return [Encoded(self.encode(text), of_bytes(text)) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text; bytes that are not UTF-8 become U+FFFD."""
        array = np.asarray(ids, np.int64)
        return array[array < 256].astype(np.uint8).tobytes().decode(errors="replace")

    def id_to_piece(self, index: int) -> str:
        """Return `<0x41>` and the like."""
        names = {_EOS: "</s>", self.bos_id: "<s>", self.mask_id: "<mask>"}
        names |= {id_: f"<extra_id_{i}>" for i, id_ in enumerate(self.sentinel_ids)}
        return names.get(index, f"<0x{index:02X}>")

    def word_starts(self) -> np.ndarray:
        """Say that every byte begins a word: none tells what came before it."""
        return np.ones(self.vocab_size, bool)

    def save(self, directory: str | Path) -> None:
        """Write the manifest."""
        write_manifest(
            directory,
            kind="bytes",
            bos=self.bos_id is not None,
            mask=self.mask_id is not None,
            num_sentinels=len(self.sentinel_ids),
        )

    def fingerprint(self) -> str:
        """Return the kind and the sizes, which say all."""
        mask, sentinels = self.mask_id is not None, len(self.sentinel_ids)
        more = f"-{mask:d}-{sentinels}" if mask or sentinels else ""
        return f"bytes-{self.vocab_size}{more}"


class Ids(SpecialIds):
    """A text is ids already, written with white space between them.

    None is special but those that a model without tokenizer names.
    """

    def __init__(self, vocab_size: int, **special: Any) -> None:
        super().__init__(**special)
        self.vocab_size = vocab_size

    def encode(self, text: str) -> np.ndarray:
        """Return the ids that a text spells, int32.

        Raises:
          ConfigError: a word is not an id; it is named.
        """
        return np.array([self._read(word) for word in text.split()], np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode several texts."""
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoded]:
        """Encode several texts; each word is a token."""
        spans = ([word.span() for word in re.finditer(r"\S+", t)] for t in texts)
        return [encoded(self.encode(t), s) for t, s in zip(texts, spans, strict=True)]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the ids with a space between them."""
        return " ".join(str(int(i)) for i in ids)

    def id_to_piece(self, index: int) -> str:
        """Return the number."""
        return str(int(index))

    def word_starts(self) -> np.ndarray:
        """Say that every id is a word."""
        return np.ones(self.vocab_size, bool)

    def save(self, directory: str | Path) -> None:
        """Write the manifest."""
        special = self.special_ids()
        write_manifest(
            directory, kind="ids", vocab_size=self.vocab_size, special=special
        )

    def fingerprint(self) -> str:
        """Return the kind, the size, and what ends a document."""
        return f"ids-{self.vocab_size}" + (f"-{self.eos_id}" if self.stop_ids else "")

    def _read(self, word: str) -> int:
        if re.fullmatch("[0-9]{1,10}", word) and int(word) < self.vocab_size:
            return int(word)
        last = self.vocab_size - 1
        raise ConfigError(f"text: {word!r} is not a token id from 0 to {last}")
