"""Tokenizers of the `tokenizers` library: WordPiece, byte-level BPE and their kin.

The library is an extra: it is imported where such a tokenizer is opened.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.tokenizers.files import read_file, write_files, write_manifest
from lmjax.data.tokenizers.hf.convert import tokenizer_json
from lmjax.data.tokenizers.hf.directory import Origin
from lmjax.data.tokenizers.hf.special import Wrap, special_ids
from lmjax.data.tokenizers.offsets import (
    Encoding,
    include_combining_marks,
    make_encoding,
)
from lmjax.data.tokenizers.special_ids import SpecialIds, not_none, without_bos
from lmjax.errors import ConfigError

FILE = "tokenizer.json"
# How byte-level pieces write the white space that a word may begin with.
_BYTE_LEVEL_SPACES = ("\u0120", "\u010a", "\u0109", "\u010d")
_SPACE_MARK = "\u2581"


class HuggingFace(SpecialIds):
    """A tokenizer of the `tokenizers` library.

    Args:
      core: the library's own object.
      serialized: the tokenizer.json that it was read from.
      special: its special ids.
      files: the files it came with, by name, to be exported again.
      made_from: a hash of what it was trained on; "" when it was given.
    """

    def __init__(
        self,
        core: Any,
        *,
        serialized: bytes,
        special: SpecialIds,
        files: Mapping[str, bytes],
        recipe: str = "",
    ) -> None:
        super().__init__(**special.special_ids())
        self.serialized = serialized
        self.files = files
        self.recipe = recipe
        self._core = core
        self._dropped = {*self.stop_ids, *not_none(self.bos_id, self.pad_id)}
        self.vocab_size = _size(core)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, int32, without special ones around it."""
        return np.array(self._core.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode several texts."""
        found = self._core.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in found]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode several texts, and say which characters each token stands for."""
        found = self._core.encode_batch(list(texts), add_special_tokens=False)
        located = (make_encoding(encoding.ids, encoding.offsets) for encoding in found)
        return [
            Encoding(ids, include_combining_marks(text, offsets))
            for text, (ids, offsets) in zip(texts, located, strict=True)
        ]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids; special ones are dropped."""
        array = np.asarray(ids, np.int64).tolist()
        kept = [i for i in array if i not in self._dropped]
        return self._core.decode(kept, skip_special_tokens=True)

    def id_to_piece(self, index: int) -> str:
        """Return how one id is written; "" where the vocabulary has a gap."""
        return self._core.id_to_token(int(index)) or ""

    def word_starts(self) -> np.ndarray:
        """Return which ids begin a word; all, where an id alone does not tell."""
        starts = np.ones(self.vocab_size, bool)
        continues = _continues(json.loads(self.serialized))
        for piece, index in self._core.get_vocab(with_added_tokens=False).items():
            starts[index] = not continues(piece)
        for index in self._core.get_added_tokens_decoder():
            starts[index] = True
        return starts

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and the files it came with, then the manifest."""
        write_files(directory, {**self.files, FILE: self.serialized})
        write_manifest(
            directory,
            kind="tokenizers",
            special=self.special_ids(),
            files=sorted(self.files),
            made_from=self.recipe,
        )

    def fingerprint(self) -> str:
        """Hash the vocabulary and the special ids, which stand around a text."""
        special = json.dumps(self.special_ids()).encode()
        return hashlib.sha256(self.serialized + special).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        # For a worker process, which encodes: what only exports need stays behind.
        return _rebuild, (self.serialized, self.special_ids())


def make(origin: Origin, *, bos: bool) -> HuggingFace:
    """Open the tokenizer of a Hugging Face directory.

    Args:
      origin: its files.
      bos: documents begin as its own model's do; else with nothing.

    Raises:
      ConfigError: a file is damaged or unknown, or the library is not installed.
    """
    serialized = tokenizer_json(origin)
    core = _core(serialized, name=str(origin.path / origin.layout[0]))
    _check_added(core, origin, serialized)
    special = special_ids(
        origin, token_to_id=core.token_to_id, wrap=_wrap(core), size=_size(core)
    )
    if not bos:
        special = without_bos(special)
    return HuggingFace(core, serialized=serialized, special=special, files=origin.files)


def load(directory: Path, manifest: Mapping[str, Any]) -> HuggingFace:
    """Load what `HuggingFace.save` wrote."""
    serialized = read_file(directory / FILE)
    special = SpecialIds(**manifest["special"])
    return HuggingFace(
        _core(serialized, name=str(directory / FILE)),
        serialized=serialized,
        special=special if manifest.get("bos", True) else without_bos(special),
        files={name: read_file(directory / name) for name in manifest["files"]},
        recipe=manifest.get("made_from", ""),
    )


def _rebuild(serialized: bytes, special: Mapping[str, Any]) -> HuggingFace:
    return HuggingFace(
        _core(serialized, name=FILE),
        serialized=serialized,
        special=SpecialIds(**special),
        files={},
    )


def library() -> Any:
    """Return the `tokenizers` library.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            "config.tokenizer.kind = 'tokenizers' or 'words': needs a package that is "
            "not installed: pip install 'lmjax[hf]'"
        ) from error
    return tokenizers


def _core(serialized: bytes, *, name: str) -> Any:
    tokenizer = library().Tokenizer
    try:
        core = tokenizer.from_buffer(serialized)
    except Exception as error:  # the library raises nothing narrower
        why = " ".join(str(error).split())
        raise ConfigError(
            f"{name}: not a tokenizer of Hugging Face's: {why}"
        ) from error
    core.no_truncation()
    core.no_padding()
    return core


def _check_added(core: Any, origin: Origin, serialized: bytes) -> None:
    """Raise if the library numbers tokens otherwise than the files that add them."""
    if origin.layout == (FILE,):
        return
    for token in json.loads(serialized)["added_tokens"]:
        found = core.token_to_id(token["content"])
        if found != token["id"]:
            why = f"{token['content']!r} has id {token['id']}, but would get {found}"
            raise origin.damaged(origin.layout[0], why)


def _size(core: Any) -> int:
    return 1 + max(core.get_vocab(with_added_tokens=True).values(), default=-1)


def _wrap(core: Any) -> Wrap:
    """Return what stands before, after and between texts, found by encoding some."""
    pieces = sorted(core.get_vocab(with_added_tokens=False), key=len)
    for text in ("a", "1", "的", *pieces[:100]):
        of_A, of_pair = core.encode(text), core.encode(text, text)
        if {0, 1} <= set(of_pair.sequence_ids) and 0 in of_A.sequence_ids:
            break
    else:
        return (), (), ()
    ids, place = of_A.ids, of_A.sequence_ids
    first, last = place.index(0), len(place) - place[::-1].index(0)
    pair = of_pair.sequence_ids
    gap = slice(len(pair) - pair[::-1].index(0), pair.index(1))
    return tuple(ids[:first]), tuple(ids[last:]), tuple(of_pair.ids[gap])


def _continues(parsed: Mapping[str, Any]) -> Any:
    """Return the test of whether a piece goes on with the word of the one before."""
    model = parsed["model"]
    if "max_input_chars_per_word" in model and "continuing_subword_prefix" in model:
        prefix = model["continuing_subword_prefix"]
        return lambda piece: piece.startswith(prefix)
    rest = [parsed.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    found = set(_strings(rest))
    if "ByteLevel" in found:
        return lambda piece: not piece.startswith(_BYTE_LEVEL_SPACES)
    if "Metaspace" in found or _SPACE_MARK in found:
        return lambda piece: not piece.startswith(_SPACE_MARK)
    return lambda piece: False


def _strings(value: Any) -> Iterator[str]:
    """Yield all texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
