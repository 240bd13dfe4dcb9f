"""The tokenizer of a Hugging Face directory, on its way to a workdir and back.

The formats themselves are read and written in `lmjax/data/tokenizers`.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmjax.config.experiment import Config
from lmjax.data.tokenizers.plain import Ids
from lmjax.data.tokenizers.sentencepiece import SentencePiece
from lmjax.data.tokenizers.tokenizer import Tokenizer, make_tokenizer
from lmjax.errors import UserError
from lmjax.fileio import read_json

log = logging.getLogger(__name__)

# Settings of transformers' generate() that lmjax does not have.
_UNSUPPORTED = (
    "forced_bos_token_id",
    "forced_eos_token_id",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
)


def open_tokenizer(config: Config, directory: Path) -> Tokenizer:
    """Open the tokenizer of a Hugging Face directory.

    If it has none, the text is token ids; the ids that end a text are those of the
    model's settings.

    Args:
      config: of the model in this directory.
      directory: of the tokenizer's files, config.json and generation_config.json.

    Raises:
      UserError: the tokenizer cannot be read, or has more ids than the model.
    """
    size = config.model.vocab_size
    if config.tokenizer.kind == "ids":
        return Ids(size, stop_ids=_read_stop_ids(directory, size))
    tokenizer = make_tokenizer(config.tokenizer, documents=None, seed=0)
    if tokenizer.vocab_size > size:
        raise UserError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} ids, but "
            f"config.json has vocab_size = {size}"
        )
    return tokenizer


def warn_unsupported(directory: Path) -> None:
    """Log the settings of generation that are ignored."""
    for name, values in _read_settings(directory):
        for key in _UNSUPPORTED:
            if values.get(key):
                log.warning("%s: %s = %s: ignored", name, key, values[key])


def _read_stop_ids(directory: Path, vocab_size: int) -> tuple[int, ...]:
    for _, values in _read_settings(directory):
        value = values.get("eos_token_id")
        listed = value if isinstance(value, list) else [value]
        if ids := [i for i in listed if type(i) is int and 0 <= i < vocab_size]:
            return tuple(ids)
    return ()


def _read_settings(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the files that have settings of generation; the first has precedence."""
    for name in ("generation_config.json", "config.json"):
        if (directory / name).is_file():
            yield name, read_json(directory / name)


def export_files(tokenizer: Tokenizer) -> Mapping[str, bytes]:
    """Return the files of a tokenizer in a Hugging Face directory, by their names."""
    if isinstance(tokenizer, SentencePiece):
        return {"tokenizer.model": tokenizer.model}
    return getattr(tokenizer, "files", {})


def export_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the special ids as keys of config.json."""
    stop = [int(i) for i in tokenizer.stop_ids]
    values = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stop[0] if len(stop) == 1 else stop or None,
        "pad_token_id": tokenizer.pad_id,
    }
    return {key: value for key, value in values.items() if value is not None}
