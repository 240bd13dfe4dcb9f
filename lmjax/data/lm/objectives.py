"""Training objectives on running text: from windows of tokens to rows of a batch.

Shapes: B rows, N tokens of one row's window, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lmjax.config.experiment import Config
from lmjax.config.text_task import (
    CausalLMConfig,
    InfillingConfig,
    MaskedLMConfig,
    SpanCorruptionConfig,
    WordVectorsTaskConfig,
    num_predictions,
    span_counts,
)
from lmjax.data.lm import transforms
from lmjax.data.lm.word_contexts import build_word_contexts
from lmjax.data.padding import pad_rows, segment_positions
from lmjax.data.stores.token_store import TokenStore
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError

if TYPE_CHECKING:
    from lmjax.types import HostBatch

# From a window and its random generator to the source and the target.
Corruption = Callable[..., tuple[np.ndarray, np.ndarray]]

# Purposes of random numbers: a training sample and a held-out row of one number differ.
TRAIN, HELD_OUT = "noise", "heldout"


class Objective(Protocol):
    """Makes rows of a batch; small to pickle, for loader processes."""

    @property
    def window(self) -> int:
        """Return how many tokens of the stream a row takes."""

    def make_batch(
        self, windows: "HostBatch", samples: np.ndarray, *, purpose: str
    ) -> "HostBatch":
        """Return the batch that a task's loss takes.

        Args:
          windows: of `packing.cut_windows`: int32 `targets` (the stream) and
            `segments` (0 = padding), (B, N).
          samples: (B,) the number of each row's sample, the seed of its random
            choices.
          purpose: TRAIN or HELD_OUT: what `samples` counts.
        """


def build(
    config: Config, tokenizer: Tokenizer, stores: Sequence[TokenStore] = ()
) -> Objective:
    """Return the objective of a config.

    Args:
      config: the experiment.
      tokenizer: of the text.
      stores: the text, of which some objectives count the words.

    Raises:
      ConfigError: the tokenizer lacks an id that the objective needs.
    """
    if isinstance(config.task, WordVectorsTaskConfig):
        return build_word_contexts(config, config.task, tokenizer, stores)
    return OBJECTIVES[config.task.kind](config, config.task, tokenizer)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CausalLMObjective:
    """Next-token prediction: windows are rows already."""

    window: int

    def make_batch(
        self, windows: "HostBatch", samples: np.ndarray, *, purpose: str
    ) -> "HostBatch":
        """Return the windows; nothing is random."""
        return windows


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MaskedLMObjective:
    """A window between its special tokens, some of it masked (Devlin et al. 2019).

    Adds `predict_positions`, the places in a row of `targets` and `weights`, all three
    (B, K); and for the order of sentences `token_types` (B, T), `pair_labels` (B,).
    """

    window: int
    length: int
    seed: int
    task: MaskedLMConfig
    prefix: np.ndarray
    between: np.ndarray  # two texts
    suffix: np.ndarray
    mask_id: int
    pad_id: int
    is_text_V: np.ndarray  # ids of text, not special ones
    starts_word_V: np.ndarray

    def make_batch(
        self, windows: "HostBatch", samples: np.ndarray, *, purpose: str
    ) -> "HostBatch":
        """Return the batch; padding is as in `packing.cut_windows`."""
        rows = [
            self._make_row(ids_N, segments_N, rng) if len(ids_N) else {}
            for ids_N, segments_N, rng in _unpad(windows, samples, self.seed, purpose)
        ]
        num_targets = num_predictions(self.length, rate=self.task.mask_rate)
        lengths = {
            **dict.fromkeys(("tokens", "segments", "positions"), self.length),
            **dict.fromkeys(("targets", "weights", "predict_positions"), num_targets),
        }
        if not self.task.sentence_order:
            return _stack_rows(rows, lengths, pad_id=self.pad_id)
        lengths |= {"token_types": self.length, "pair_labels": 1}
        batch = _stack_rows(rows, lengths, pad_id=self.pad_id)
        return batch | {"pair_labels": batch["pair_labels"][:, 0]}

    @functools.cached_property
    def _text_ids(self) -> np.ndarray:
        return np.flatnonzero(self.is_text_V)

    def _make_row(
        self, ids_N: np.ndarray, segments_N: np.ndarray, rng: np.random.Generator
    ) -> dict[str, Any]:
        if self.task.sentence_order:
            row = self._make_pair(ids_N, rng)
        else:
            # The prefix belongs to the first document, the suffix to the last.
            ends = len(self.prefix), len(self.suffix)
            row = {
                "tokens": np.concatenate([self.prefix, ids_N, self.suffix]),
                "segments": np.pad(segments_N, ends, mode="edge"),
            }
        ids = row["tokens"]
        maskable, rate = self.is_text_V[ids], self.task.mask_rate
        if self.task.whole_words:
            starts = self.starts_word_V[ids]
            places = transforms.choose_words(maskable, starts, rate=rate, rng=rng)
        else:
            places = transforms.choose_tokens(maskable, rate=rate, rng=rng)
        tokens = transforms.mask_tokens(
            ids,
            places,
            mask_id=self.mask_id,
            mask_share=self.task.mask_share,
            random_share=self.task.random_share,
            random_ids=self._text_ids,
            rng=rng,
        )
        return row | {
            "tokens": tokens,
            "positions": segment_positions(row["segments"]),
            "predict_positions": places,
            "targets": ids[places],
            "weights": np.ones(len(places), np.float32),
        }

    def _make_pair(self, ids_N: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        first, second, swapped = transforms.order_pair(ids_N, rng=rng)
        parts = [self.prefix, first, self.between, second, self.suffix]
        types = np.repeat([0, 0, 0, 1, 1], [len(part) for part in parts])
        return {
            "tokens": np.concatenate(parts),
            "segments": np.ones_like(types),
            "token_types": types,
            "pair_labels": [swapped],
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WindowPairObjective:
    """A source and a target made from one window, both ended by EOS.

    `source`, `source_segments`, `source_positions` are (B, S); `tokens` (the targets
    one place later, after the decoder's prefix), `targets`, `weights`, `segments`,
    `positions` are (B, T).
    """

    window: int
    length: int
    target_length: int
    seed: int
    decoder_prefix_ids: tuple[int, ...]
    eos_id: int
    pad_id: int
    corrupt: Corruption

    def make_batch(
        self, windows: "HostBatch", samples: np.ndarray, *, purpose: str
    ) -> "HostBatch":
        """Return the batch; padding is as in `packing.cut_windows`."""
        rows = [
            self._make_row(*self.corrupt(ids_N, rng=rng)) if len(ids_N) else {}
            for ids_N, _, rng in _unpad(windows, samples, self.seed, purpose)
        ]
        source = ("source", "source_segments", "source_positions")
        target = ("tokens", "targets", "weights", "segments", "positions")
        lengths = {
            **dict.fromkeys(source, self.length),
            **dict.fromkeys(target, self.target_length),
        }
        return _stack_rows(rows, lengths, pad_id=self.pad_id)

    def _make_row(self, source: np.ndarray, target: np.ndarray) -> dict[str, Any]:
        inputs = np.concatenate([self.decoder_prefix_ids, target])
        source_length, length = len(source) + 1, len(inputs)
        return {
            "source": np.append(source, self.eos_id),
            "source_segments": np.ones(source_length, np.int32),
            "source_positions": np.arange(source_length),
            "tokens": inputs,
            "targets": np.append(inputs[1:], self.eos_id),
            "weights": np.ones(length, np.int32),
            "segments": np.ones(length, np.int32),
            "positions": np.arange(length),
        }


def _build_causal_lm(
    config: Config, task: CausalLMConfig, tokenizer: Tokenizer
) -> CausalLMObjective:
    return CausalLMObjective(window=config.data.length)


def _build_masked_lm(
    config: Config, task: MaskedLMConfig, tokenizer: Tokenizer
) -> MaskedLMObjective:
    between = tokenizer.pair_ids if task.sentence_order else ()
    num_special = len(tokenizer.prefix_ids) + len(between) + len(tokenizer.suffix_ids)
    return MaskedLMObjective(
        window=config.data.length - num_special,
        length=config.data.length,
        seed=config.seed,
        task=task,
        prefix=np.array(tokenizer.prefix_ids, np.int32),
        between=np.array(between, np.int32),
        suffix=np.array(tokenizer.suffix_ids, np.int32),
        mask_id=_find_mask_id(config, tokenizer),
        pad_id=_find_pad_id(tokenizer),
        is_text_V=_is_text(tokenizer),
        starts_word_V=tokenizer.word_starts(),
    )


def _build_window_pair(
    config: Config, task: Any, tokenizer: Tokenizer
) -> WindowPairObjective:
    window, _ = task.lengths(config.data.length)
    if tokenizer.eos_id is None:
        raise ConfigError(
            f"config.task.kind = {task.kind!r}: needs a token that ends a text, and "
            "the tokenizer has none"
        )
    return WindowPairObjective(
        window=window,
        length=config.data.length,
        target_length=config.data.target_length,
        seed=config.seed,
        decoder_prefix_ids=config.model.decoder_prefix_ids,
        eos_id=tokenizer.eos_id,
        pad_id=_find_pad_id(tokenizer),
        corrupt=CORRUPTIONS[task.kind](config, task, tokenizer, window=window),
    )


def _build_span_corruption(
    config: Config, task: SpanCorruptionConfig, tokenizer: Tokenizer, *, window: int
) -> Corruption:
    needed, found = span_counts(window, task)[1], len(tokenizer.sentinel_ids)
    if found < needed:
        raise ConfigError(
            f"config.tokenizer.num_sentinels: the tokenizer has {found} sentinels; "
            f"config.task.kind = {task.kind!r} needs {needed} for "
            f"config.data.length = {config.data.length}"
        )
    sentinels = np.array(tokenizer.sentinel_ids, np.int32)
    return functools.partial(
        transforms.corrupt_spans, config=task, sentinel_ids=sentinels
    )


def _build_infilling(
    config: Config, task: InfillingConfig, tokenizer: Tokenizer, *, window: int
) -> Corruption:
    mask_id = _find_mask_id(config, tokenizer)
    ends_V = _ends_sentence(tokenizer) if task.sentence_permutation else None
    return functools.partial(
        _corrupt_by_infilling, task=task, mask_id=mask_id, ends_V=ends_V
    )


def _corrupt_by_infilling(
    ids_N: np.ndarray,
    *,
    task: InfillingConfig,
    mask_id: int,
    ends_V: np.ndarray | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a text with spans masked, and the text (Lewis et al. 2020)."""
    source = ids_N
    if ends_V is not None:
        source = transforms.permute_sentences(ids_N, ends_V[ids_N], rng=rng)
    source = transforms.infill(
        source,
        mask_rate=task.mask_rate,
        mean_span_length=task.mean_span_length,
        mask_id=mask_id,
        rng=rng,
    )
    return source, ids_N


def _unpad(
    windows: "HostBatch", samples: np.ndarray, seed: int, purpose: str
) -> Iterator[tuple[np.ndarray, np.ndarray, np.random.Generator]]:
    """Yield the tokens and segments of each row, and its random generator."""
    for ids, segments, sample in zip(
        windows["targets"], windows["segments"], samples, strict=True
    ):
        real = segments > 0
        rng = transforms.sample_rng(sample, seed=seed, purpose=purpose)
        yield ids[real], segments[real], rng


def _stack_rows(
    rows: Sequence[Mapping[str, Any]], lengths: Mapping[str, int], *, pad_id: int
) -> "HostBatch":
    """Return rows as a batch: ids are padded with `pad_id`, other arrays with 0.

    A name that a row lacks is padding throughout.
    """
    return {
        name: pad_rows(
            [row.get(name, ()) for row in rows],
            length=length,
            fill=pad_id if name in ("tokens", "targets", "source") else 0,
            dtype=np.float32 if name == "weights" else np.int32,
        )
        for name, length in lengths.items()
    }


def _is_text(tokenizer: Tokenizer) -> np.ndarray:
    """Return whether each id is text, not special, bool (V,)."""
    single = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id
    special = [i for i in single if i is not None]
    for ids in (tokenizer.prefix_ids, tokenizer.suffix_ids, tokenizer.pair_ids):
        special += ids
    is_text_V = np.ones(tokenizer.vocab_size, bool)
    is_text_V[[*special, *tokenizer.sentinel_ids]] = False
    return is_text_V


def _ends_sentence(tokenizer: Tokenizer) -> np.ndarray:
    """Return whether each id ends a sentence, a line or a document, bool (V,)."""
    texts = [tokenizer.decode([i]).rstrip(" ") for i in range(tokenizer.vocab_size)]
    ends_V = np.array([text.endswith((".", "!", "?", "\n")) for text in texts])
    ends_V[tokenizer.eos_id] = True
    return ends_V


def _find_mask_id(config: Config, tokenizer: Tokenizer) -> int:
    if tokenizer.mask_id is None:
        raise ConfigError(
            f"config.tokenizer.mask: config.task.kind = {config.task.kind!r} needs a "
            "mask token, and the tokenizer has none"
        )
    return tokenizer.mask_id


def _find_pad_id(tokenizer: Tokenizer) -> int:
    """Return the id that rows are padded with; attention and losses leave it out."""
    ids = (tokenizer.pad_id, tokenizer.eos_id, 0)
    return next(i for i in ids if i is not None)


# By `config.task.kind`: builders of the objective, and of the part of it that makes a
# source and a target of a window.
OBJECTIVES: dict[str, Callable[[Config, Any, Tokenizer], Objective]] = {
    "causal_lm": _build_causal_lm,
    "masked_lm": _build_masked_lm,
    "span_corruption": _build_window_pair,
    "prefix_lm": _build_window_pair,
    "infilling": _build_window_pair,
}
CORRUPTIONS: dict[str, Callable[..., Corruption]] = {
    "span_corruption": _build_span_corruption,
    "prefix_lm": lambda config, task, tokenizer, window: transforms.cut_prefix,
    "infilling": _build_infilling,
}
