"""The tokenizer of a Hugging Face directory, on its way to a workdir and back.

The formats themselves are read and written in `lmjax/data/tokenizers`.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmjax.config.decoding import DecodingConfig
from lmjax.config.experiment import Config
from lmjax.data.tokenizers import chat_template
from lmjax.data.tokenizers.hf.export import choose_pad_id, export, unknown_id
from lmjax.data.tokenizers.hf.special import Template
from lmjax.data.tokenizers.named_templates import NAMED_TEMPLATES
from lmjax.data.tokenizers.plain import Ids
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.data.tokenizers.tokenizer import Tokenizer, make_tokenizer
from lmjax.errors import UserError
from lmjax.fileio import read_json

log = logging.getLogger(__name__)

# Tasks whose texts have no end: it is to be written.
_WITHOUT_END = ("causal_lm", "prompted_lm")


def open_tokenizer(config: Config, directory: Path) -> Tokenizer:
    """Open the tokenizer of a Hugging Face directory.

    If it has none, the text is token ids; the ids of the end and of padding are those
    of the model's settings.

    Args:
      config: of the model in this directory.
      directory: of the tokenizer's files, config.json and generation_config.json.

    Raises:
      UserError: the tokenizer cannot be read, or has more ids than the model.
    """
    size = config.model.vocab_size
    if config.tokenizer.kind == "ids":
        _warn_of_class(directory)
        eos = _read_ids(directory, "eos", size)
        pad = _read_ids(directory, "pad", size)
        return Ids(
            size,
            eos_id=next(iter(eos), None),
            stop_ids=eos,
            pad_id=next(iter(pad), None),
        )
    tokenizer = make_tokenizer(config.tokenizer, documents=None, seed=0)
    if tokenizer.vocab_size > size:
        raise UserError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} ids, but "
            f"config.json has vocab_size = {size}"
        )
    return tokenizer


def _warn_of_class(directory: Path) -> None:
    """Log that a directory has a tokenizer which cannot be read."""
    file = directory / "tokenizer_config.json"
    name = read_json(file).get("tokenizer_class") if file.is_file() else None
    if name is not None:
        log.warning(
            "%s: tokenizer_class = %r: has no file that lmjax reads; texts are token "
            "ids",
            file,
            name,
        )


def _read_ids(directory: Path, role: str, vocab_size: int) -> tuple[int, ...]:
    for _, values in _read_settings(directory):
        value = values.get(f"{role}_token_id")
        listed = value if isinstance(value, list) else [value]
        if ids := [i for i in listed if type(i) is int and 0 <= i < vocab_size]:
            return tuple(ids)
    return ()


def _read_settings(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the files that have settings of generation; the first has precedence."""
    for name in ("generation_config.json", "config.json"):
        if (directory / name).is_file():
            yield name, read_json(directory / name)


def export_files(
    tokenizer: Tokenizer, config: Config, *, model_config: Mapping[str, Any]
) -> Mapping[str, bytes]:
    """Return the files of a tokenizer in a Hugging Face directory, by their names.

    What transformers would read otherwise is logged.

    Args:
      tokenizer: of the workdir.
      config: of the workdir.
      model_config: the config.json of the directory.

    Raises:
      UserError: the directory cannot hold the tokenizer.
    """
    if isinstance(tokenizer, Ids):
        return {}
    _check_padding(tokenizer, config)
    exported = export(
        tokenizer,
        template=find_template(tokenizer, config),
        model_config=model_config,
        token_types=getattr(config.model, "num_token_types", 0) > 1,
    )
    for texts in exported.differences:
        log.warning("tokenizer: transformers splits differently: %s", texts)
    if model_config["model_type"] == "qwen2" and exported.is_generic:
        log.warning(
            "tokenizer: AutoTokenizer reads every tokenizer of a qwen2 model as Qwen's "
            "byte-level BPE, which this is not; read it with "
            "transformers.PreTrainedTokenizerFast.from_pretrained"
        )
    return {**exported.files, **_named_template(config)}


def _named_template(config: Config) -> dict[str, bytes]:
    """Return the file of a chat template that is not the tokenizer's own."""
    text = NAMED_TEMPLATES.get(config.tokenizer.chat_template)
    return {} if text is None else {chat_template.FILE: text.encode()}


def end_turns(
    write: DecodingConfig, tokenizer: Tokenizer, config: Config
) -> DecodingConfig:
    """Return how texts are written, which in a chat end with the assistant's turn."""
    if config.data.source != "chat":
        return write
    chosen = config.tokenizer.chat_template
    template = chat_template.find_template(tokenizer, chosen)
    ids = chat_template.end_chat_decoding(write, template, tokenizer).stop_ids
    return dataclasses.replace(write, stop_ids=ids)


def find_template(tokenizer: Tokenizer, config: Config) -> Template:
    """Return the ids around texts, as the model reads them.

    A language model reads a text after a BOS, and it ends where it ends.
    """
    t = tokenizer
    if config.model.kind == "decoder" and config.task.kind in _WITHOUT_END:
        bos = not_none(t.bos_id)
        if not getattr(t, "files", {}):  # trained here
            return Template(bos, (), bos)
    return Template(t.prefix_ids, t.suffix_ids, t.pair_ids)


def _check_padding(tokenizer: Tokenizer, config: Config) -> None:
    """Raise if RoBERTa would count a token of the text as padding.

    Raises:
      UserError: it numbers positions from the padding on, and texts have that id.
    """
    offset = getattr(config.model, "position_offset", 0)
    if config.model.kind != "encoder" or not offset:
        return
    pad = offset - 1
    if pad not in (choose_pad_id(tokenizer), unknown_id(tokenizer)):
        raise UserError(
            f"config.model.position_offset = {offset}: transformers' RoBERTa has its "
            f"padding at id {pad}, which is {tokenizer.id_to_piece(pad)!r} of this "
            "tokenizer"
        )


def export_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the special ids as keys of config.json."""
    stop = [int(i) for i in tokenizer.stop_ids]
    values = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stop[0] if len(stop) == 1 else stop or None,
        "pad_token_id": choose_pad_id(tokenizer),
    }
    return {key: value for key, value in values.items() if value is not None}
