"""Tokenizers without a model: bytes, and texts that are ids already."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.tokenizers.files import write_manifest
from lmjax.data.tokenizers.offsets import Encoding, byte_offsets, make_encoding
from lmjax.data.tokenizers.special_ids import SpecialIds, not_none
from lmjax.errors import UserError

_EOS = 256


class Bytes(SpecialIds):
    """Each byte of the UTF-8 text is a token.

    The ids after the 256 bytes are EOS, then BOS, the mask and the sentinels if asked
    for.
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

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode several texts; each byte covers its character."""
        return [Encoding(self.encode(text), byte_offsets(text)) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text; bytes that are not UTF-8 become U+FFFD."""
        array = np.asarray(ids, np.int64)
        return array[array < 256].astype(np.uint8).tobytes().decode(errors="replace")

    def id_to_piece(self, index: int) -> str:
        """Return a byte as in `<0x41>`, or the name of a special token."""
        names = {_EOS: "</s>", self.bos_id: "<s>", self.mask_id: "<mask>"}
        names |= {id_: f"<extra_id_{i}>" for i, id_ in enumerate(self.sentinel_ids)}
        return names.get(index, f"<0x{index:02X}>")

    def word_starts(self) -> np.ndarray:
        """Return True for every byte: it does not depend on the bytes before it."""
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
        """Return the kind and the sizes, which decide everything."""
        mask, sentinels = self.mask_id is not None, len(self.sentinel_ids)
        options = f"-{mask:d}-{sentinels}" if mask or sentinels else ""
        return f"bytes-{self.vocab_size}{options}"


class Ids(SpecialIds):
    """A text is ids already, separated by white space.

    No id is special, except those that an imported model without tokenizer names.
    """

    separates_words = True

    def __init__(self, vocab_size: int, **special: Any) -> None:
        super().__init__(**special)
        self.vocab_size = vocab_size

    def encode(self, text: str) -> np.ndarray:
        """Return the ids that a text spells, int32.

        Raises:
          UserError: a word is not an id.
        """
        return np.array([self._parse(word) for word in text.split()], np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode several texts."""
        return [self.encode(text) for text in texts]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode several texts; each token covers a word."""
        spans = ([word.span() for word in re.finditer(r"\S+", t)] for t in texts)
        return [
            make_encoding(self.encode(t), s) for t, s in zip(texts, spans, strict=True)
        ]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the ids separated by spaces."""
        return " ".join(str(int(i)) for i in ids)

    def id_to_piece(self, index: int) -> str:
        """Return the number."""
        return str(int(index))

    def word_starts(self) -> np.ndarray:
        """Return True for every id."""
        return np.ones(self.vocab_size, bool)

    def save(self, directory: str | Path) -> None:
        """Write the manifest."""
        special = self.special_ids()
        write_manifest(
            directory, kind="ids", vocab_size=self.vocab_size, special=special
        )

    def fingerprint(self) -> str:
        """Return the kind, the size, and EOS if there is one."""
        return f"ids-{self.vocab_size}" + (f"-{self.eos_id}" if self.stop_ids else "")

    def _parse(self, word: str) -> int:
        if re.fullmatch("[0-9]{1,10}", word) and int(word) < self.vocab_size:
            return int(word)
        last = self.vocab_size - 1
        raise UserError(f"text: {word!r} is not a token id from 0 to {last}")
