"""Settings of transformers' generate(): generation_config.json in and out.

Where that file is missing they are those of config.json, as in transformers.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmjax.config.decoding import DecodingConfig, SamplingConfig
from lmjax.config.model import ModelConfig
from lmjax.config.parse import build, to_builtins
from lmjax.errors import UserError
from lmjax.fileio import read_json

log = logging.getLogger(__name__)

FILE = "generation_config.json"
IGNORE_FLAG = "--ignore_generation"

# The leaf of `DecodingConfig` for each setting of the same meaning.
_LEAVES = {
    "max_new_tokens": "max_tokens",
    "max_length": "max_length",
    "min_new_tokens": "min_tokens",
    "min_length": "min_length",
    "num_beams": "num_beams",
    "num_return_sequences": "num_return",
    "length_penalty": "length_penalty",
    "renormalize_logits": "renormalize",
    "no_repeat_ngram_size": "no_repeat_ngram",
    "repetition_penalty": "repetition_penalty",
    "bad_words_ids": "bad_words",
    "suppress_tokens": "suppress",
    "begin_suppress_tokens": "suppress_first",
    "forced_bos_token_id": "force_first",
    "forced_eos_token_id": "force_last",
    "eos_token_id": "stop_ids",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "stop_strings": "stop",
}
_LISTS = ("force_last", "stop_ids", "stop")  # in transformers also a single value
_TOP_K = 50  # of sampling, where it is not given
# Settings that lmjax has not, and their values that change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "constraints": (None, []),
    "diversity_penalty": (None, 0.0),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None, []),
    "forced_decoder_ids": (None, []),
    "guidance_scale": (None, 1.0),
    "max_time": (None,),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0.0),
    "sequence_bias": (None, {}, []),
    "token_healing": (None, False),
    "watermarking_config": (None,),
}
_UNSUPPORTED_SAMPLING: dict[str, tuple[Any, ...]] = {
    "epsilon_cutoff": (None, 0.0, 1.0),
    "eta_cutoff": (None, 0.0, 1.0),
    "top_h": (None,),
    "typical_p": (None, 1.0),
}
# Settings that decide on speed, memory or what else is returned, not on the text.
_WITHOUT_EFFECT = (
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind"),
    *("bos_token_id", "cache_config", "cache_implementation", "compile_config"),
    *("continuous_batching_config", "decoder_start_token_id", "disable_compile"),
    *("do_sample", "early_stopping", "is_assistant", "low_memory", "max_cache_len"),
    *("max_matching_ngram_size", "num_assistant_tokens", "output_attentions"),
    *("num_assistant_tokens_schedule", "output_hidden_states", "output_logits"),
    *("output_scores", "pad_token_id", "prefill_chunk_size", "remove_invalid_values"),
    *("prompt_lookup_num_tokens", "return_dict_in_generate", "speculation_type"),
    *("target_lookbehind", "temperature", "transformers_version", "use_cache"),
    *("use_mtp", "assistant_ensemble_weight", "_from_model_config", "_commit_hash"),
)


def read_decoding(directory: Path, *, model: ModelConfig) -> SamplingConfig:
    """Return how transformers generates texts with the model of a directory.

    Args:
      directory: of config.json and generation_config.json.
      model: of the directory.

    Raises:
      UserError: a setting has a value that no leaf allows.
    """
    file, values = _read_settings(directory)
    leaves = {
        leaf: _to_leaf(leaf, values[key])
        for key, leaf in _LEAVES.items()
        if values.get(key) is not None
    }
    size = model.vocab_size
    if "stop_ids" in leaves:  # ids that the model cannot write end nothing
        leaves["stop_ids"] = tuple(
            i for i in leaves["stop_ids"] if not isinstance(i, int) or 0 <= i < size
        )
    if "force_first" not in leaves and len(model.decoder_prefix_ids) == 2:
        leaves["force_first"] = -2  # none, even if targets were trained with one
    samples = values.get("do_sample") is True
    temperature = values.get("temperature")
    temperature = 1.0 if temperature is None else temperature
    leaves |= {"temperature": temperature} if samples else {"temperature": 0.0}
    if samples:
        leaves.setdefault("top_k", _TOP_K)
    early = values.get("early_stopping")
    leaves |= {"early_finish": early is True, "exhaustive": early == "never"}
    problems: list[str] = []
    config = build(SamplingConfig, to_builtins(leaves), file, problems)
    if not problems:
        problems += config.validate(file)
        problems += (
            f"{file}.{leaf}: holds {max(ids)}; vocab_size = {size}"
            for leaf, ids in config.ids.items()
            if ids and max(ids) >= size
        )
    if problems:
        raise UserError(f"{directory}/{'; '.join(problems)}")
    assert isinstance(config, SamplingConfig)
    return config


def check_supported(directory: Path, *, ignore: bool) -> None:
    """Check that lmjax has the settings of generation of a directory.

    Args:
      directory: of config.json and generation_config.json.
      ignore: warn of those that it has not.

    Raises:
      UserError: it has not; each is named, with its value.
    """
    file, values = _read_settings(directory)
    problems = [f"{key} = {values[key]!r}" for key in _find_unsupported(values)]
    if problems and not ignore:
        raise UserError(
            f"{directory / file}: {', '.join(problems)}: not supported when texts are "
            f"generated; {IGNORE_FLAG} imports the model without"
        )
    for problem in problems:
        log.warning("%s: %s: ignored", file, problem)
    if file == FILE:
        known = {*_LEAVES, *_UNSUPPORTED, *_UNSUPPORTED_SAMPLING, *_WITHOUT_EFFECT}
        for key in values.keys() - known:
            log.warning("%s: %s = %r: not known, ignored", file, key, values[key])


def _find_unsupported(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the settings that would change a text, and that lmjax has not."""
    samples = values.get("do_sample") is True
    table = _UNSUPPORTED | (_UNSUPPORTED_SAMPLING if samples else {})
    yield from (key for key in table if values.get(key) not in table[key])
    counts = ("num_beams", "num_return_sequences")
    several = [k for k in counts if type(values.get(k)) is int and values[k] > 1]
    if samples and several:
        yield from ("do_sample", *several)


def override_config(values: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """Return a config.json with the start of the decoder that generation has."""
    file, settings = _read_settings(directory)
    start = settings.get("decoder_start_token_id") if file == FILE else None
    return {**values, **({} if start is None else {"decoder_start_token_id": start})}


def _to_leaf(leaf: str, value: Any) -> Any:
    return (value,) if leaf in _LISTS and not isinstance(value, list) else value


def _read_settings(directory: Path) -> tuple[str, dict[str, Any]]:
    """Return the name of the file that has the settings, and its values."""
    if (directory / FILE).is_file():
        return FILE, read_json(directory / FILE)
    values = read_json(directory / "config.json")
    if values.get("force_bos_token_to_be_generated"):  # of old files
        values["forced_bos_token_id"] = values.get("bos_token_id")
    return "config.json", values


def write_settings(
    write: DecodingConfig, *, model: ModelConfig, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a generation_config.json, by which transformers writes the same texts.

    Args:
      write: how the model writes texts.
      model: of the run.
      values: of its config.json, which has the special ids.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    settings = {name: values[name] for name in names if name in values}
    constraints = write.constraints(model.decoder_prefix_ids)
    searches = write.num_beams > 1
    samples = not searches and write.temperature > 0
    for key, leaf in _LEAVES.items():
        value = getattr(write, leaf)
        if leaf == "force_first":
            value = max(constraints.force_first, -1)
        neutral = {"num_beams": 1, "force_first": -1}.get(
            leaf, getattr(DecodingConfig, leaf)
        )
        if value == neutral or (leaf in ("top_k", "top_p", "min_p") and not samples):
            continue
        settings[key] = value[0] if leaf in _LISTS and len(value) == 1 else value
    if searches and (write.early_finish or write.exhaustive):
        settings["early_stopping"] = True if write.early_finish else "never"
    chosen = (write.temperature, write.top_k, write.top_p, write.min_p)
    default = SamplingConfig()
    usual = (default.temperature, default.top_k, default.top_p, default.min_p)
    if samples and chosen != usual:
        settings |= {"do_sample": True, "temperature": write.temperature}
        settings["top_k"] = write.top_k  # 0: else it would be 50
    return settings
