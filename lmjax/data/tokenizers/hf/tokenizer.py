"""Tokenizers of the `tokenizers` library: WordPiece, byte-level BPE and others.

The library is an optional dependency, imported when such a tokenizer is opened.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.tokenizers.files import read_file, write_files, write_manifest
from lmjax.data.tokenizers.hf.convert import build_tokenizer_json
from lmjax.data.tokenizers.hf.directory import HFTokenizerFiles
from lmjax.data.tokenizers.hf.library import FILE, parse_tokenizer
from lmjax.data.tokenizers.hf.special import Template, find_special_ids
from lmjax.data.tokenizers.offsets import (
    Encoding,
    include_combining_marks,
    make_encoding,
)
from lmjax.data.tokenizers.spaces import clean_up
from lmjax.data.tokenizers.special_ids import SpecialIds, not_none, without_bos

# White space at the start of a word, as byte-level pieces write it.
_BYTE_LEVEL_SPACES = ("\u0120", "\u010a", "\u0109", "\u010d")
_SPACE_MARK = "\u2581"
_FLAGS = ("split_special_tokens", "cleans_up")  # of the manifest, if they are set


class HFTokenizer(SpecialIds):
    """A tokenizer of the `tokenizers` library.

    Args:
      core: the `tokenizers.Tokenizer`.
      serialized: its tokenizer.json.
      special: the special ids.
      files: the original files by name, for exports.
      recipe: a hash of what it was trained on; "" if it was not trained here.
      split_special_tokens: a text cannot spell special tokens.
      cleans_up: decoded texts lose spaces.
    """

    def __init__(
        self,
        core: Any,
        *,
        serialized: bytes,
        special: SpecialIds,
        files: Mapping[str, bytes],
        recipe: str = "",
        split_special_tokens: bool = False,
        cleans_up: bool = False,
    ) -> None:
        super().__init__(**special.special_ids())
        self._cleans_up = cleans_up
        self.split_special_tokens = split_special_tokens
        core.encode_special_tokens = split_special_tokens
        self.serialized = serialized
        self.files = files
        self.recipe = recipe
        self._core = core
        self._dropped = {*self.stop_ids, *not_none(self.bos_id, self.pad_id)}
        self.vocab_size = _count_ids(core)

    @property
    def separates_words(self) -> bool:  # type: ignore[override]
        """Return whether pieces are whole words."""
        return type(self._core.model).__name__ == "WordLevel"

    @property
    def cleans_up(self) -> bool:
        """Return whether decoded texts lose spaces."""
        return self._cleans_up

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of a text, int32, without special ids around it."""
        return np.array(self._core.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode several texts."""
        encodings = self._core.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode several texts, with the characters that each token covers."""
        encodings = self._core.encode_batch(list(texts), add_special_tokens=False)
        pairs = (
            make_encoding(encoding.ids, encoding.offsets) for encoding in encodings
        )
        return [
            Encoding(ids, include_combining_marks(text, offsets))
            for text, (ids, offsets) in zip(texts, pairs, strict=True)
        ]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids; special ids are dropped."""
        array = np.asarray(ids, np.int64).tolist()
        array = [i for i in array if i not in self._dropped]
        text: str = self._core.decode(array, skip_special_tokens=True)
        return clean_up(text) if self._cleans_up else text

    def common_pieces(self, names: Sequence[str]) -> dict[str, int]:
        """Return the ids of pieces that a text cannot spell as one: no added tokens."""
        added = self._core.get_added_tokens_decoder()
        ids = {name: self._core.token_to_id(name) for name in names}
        return {n: i for n, i in ids.items() if i is not None and i not in added}

    def id_to_piece(self, index: int) -> str:
        """Return the piece of an id; "" for an unused id."""
        return self._core.id_to_token(int(index)) or ""

    def word_starts(self) -> np.ndarray:
        """Return which ids begin a word, bool (vocab_size,).

        All of them if the pieces of this kind of tokenizer do not show it.
        """
        starts = np.ones(self.vocab_size, bool)
        continues = _continuation_test(json.loads(self.serialized))
        for piece, index in self._core.get_vocab(with_added_tokens=False).items():
            starts[index] = not continues(piece)
        for index in self._core.get_added_tokens_decoder():
            starts[index] = True
        return starts

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json, the original files and the manifest."""
        write_files(directory, {**self.files, FILE: self.serialized})
        flags = {name: True for name in _FLAGS if getattr(self, name)}
        write_manifest(
            directory,
            kind="tokenizers",
            special=self.special_ids(),
            files=sorted(self.files),
            made_from=self.recipe,
            **flags,
        )

    def fingerprint(self) -> str:
        """Return a hash of the tokenizer.json and the special ids."""
        special = json.dumps(self.special_ids()).encode()
        split = b"split" * self.split_special_tokens
        return hashlib.sha256(self.serialized + special + split).hexdigest()

    def encodes_like(self, other: "HFTokenizer") -> bool:
        """Return whether both have the same vocabulary and encode in the same way."""
        a, b = (json.loads(tokenizer._core.to_str()) for tokenizer in (self, other))
        a["post_processor"] = b["post_processor"] = None
        return a == b and self.split_special_tokens == other.split_special_tokens

    def __reduce__(self) -> tuple[Any, ...]:
        # For worker processes, which only encode: `files` stay behind.
        split = self.split_special_tokens
        return _rebuild, (self.serialized, self.special_ids(), split)


def build(files: HFTokenizerFiles, *, bos: bool) -> HFTokenizer:
    """Build the tokenizer of a Hugging Face directory.

    Args:
      files: of the tokenizer.
      bos: begin texts with BOS if the files say so; else never.

    Raises:
      UserError: a file is damaged, or the family is not known.
      ConfigError: the library is not installed.
    """
    serialized, tokens = build_tokenizer_json(files)
    core = parse_tokenizer(serialized, name=str(files.path / files.format[0]))
    special = find_special_ids(
        files,
        token_to_id=core.token_to_id,
        template=_find_template(core),
        size=_count_ids(core),
        defaults=tokens,
        padding=(json.loads(serialized).get("padding") or {}).get("pad_token"),
    )
    return HFTokenizer(
        core,
        serialized=serialized,
        special=special if bos else without_bos(special),
        files=files.contents,
        split_special_tokens=bool(files.config.get("split_special_tokens", False)),
        cleans_up=files.cleans_up(type(core.model).__name__),
    )


def load(directory: Path, manifest: Mapping[str, Any]) -> HFTokenizer:
    """Load what `HFTokenizer.save` wrote.

    Raises:
      UserError: a file is missing or damaged.
    """
    serialized = read_file(directory / FILE)
    special = SpecialIds(**manifest["special"])
    return HFTokenizer(
        parse_tokenizer(serialized, name=str(directory / FILE)),
        serialized=serialized,
        special=special if manifest.get("bos", True) else without_bos(special),
        files={name: read_file(directory / name) for name in manifest["files"]},
        recipe=manifest.get("made_from", ""),
        **{name: manifest.get(name, False) for name in _FLAGS},
    )


def _rebuild(serialized: bytes, special: Mapping[str, Any], split: bool) -> HFTokenizer:
    return HFTokenizer(
        parse_tokenizer(serialized, name=FILE),
        serialized=serialized,
        special=SpecialIds(**special),
        files={},
        split_special_tokens=split,
    )


def _count_ids(core: Any) -> int:
    return 1 + max(core.get_vocab(with_added_tokens=True).values(), default=-1)


def _find_template(core: Any) -> Template:
    """Return the ids around texts, found by encoding a text and a pair."""
    pieces = sorted(core.get_vocab(with_added_tokens=False), key=len)
    for text in ("a", "1", "的", *pieces[:100]):
        single, pair = core.encode(text), core.encode(text, text)
        if {0, 1} <= set(pair.sequence_ids) and 0 in single.sequence_ids:
            break
    else:
        return Template()
    # Special tokens belong to no sequence; texts are number 0 and 1.
    ids, sequence = single.ids, single.sequence_ids
    first, last = sequence.index(0), len(sequence) - sequence[::-1].index(0)
    sequence = pair.sequence_ids
    gap = slice(len(sequence) - sequence[::-1].index(0), sequence.index(1))
    return Template(tuple(ids[:first]), tuple(ids[last:]), tuple(pair.ids[gap]))


def _continuation_test(parsed: Mapping[str, Any]) -> Callable[[str], bool]:
    """Return a function that tells whether a piece continues a word.

    Args:
      parsed: the tokenizer.json.
    """
    model = parsed["model"]
    if "max_input_chars_per_word" in model and "continuing_subword_prefix" in model:
        prefix = model["continuing_subword_prefix"]
        return lambda piece: piece.startswith(prefix)
    rest = [parsed.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
    names = set(_find_strings(rest))
    if "ByteLevel" in names:
        return lambda piece: not piece.startswith(_BYTE_LEVEL_SPACES)
    if "Metaspace" in names or _SPACE_MARK in names:
        return lambda piece: not piece.startswith(_SPACE_MARK)
    if any(len(piece) > 1 and piece[0] == " " for piece in _list_pieces(model)):
        return lambda piece: not piece[:1].isspace()
    return lambda piece: False


def _list_pieces(model: Mapping[str, Any]) -> Iterator[str]:
    vocab = model["vocab"]
    return (piece if isinstance(piece, str) else piece[0] for piece in vocab)


def _find_strings(value: Any) -> Iterator[str]:
    """Yield all strings in a JSON value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _find_strings(item)
