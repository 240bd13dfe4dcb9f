"""Rows of a batch from windows of a token stream, as each objective wants them.

Shapes: B rows, N tokens of one row's window, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lmjax.config.experiment import Config
from lmjax.config.text_task import (
    InfillingConfig,
    MaskedLMConfig,
    SpanCorruptionConfig,
    WindowPairConfig,
    num_predictions,
    span_counts,
)
from lmjax.data.lm import transforms
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError

if TYPE_CHECKING:
    from lmjax.types import HostBatch

# The source and the target that become of a window, by the sample's chances.
Corruption = Callable[..., tuple[np.ndarray, np.ndarray]]

TRAIN, HELD_OUT = "noise", "heldout"  # whose numbers say what is drawn


class Objective(Protocol):
    """Makes rows of a batch; small to pickle, for loader processes."""

    @property
    def window(self) -> int:
        """Return how many tokens of the stream go into a row."""

    def rows(
        self, windows: "HostBatch", index_B: np.ndarray, *, purpose: str
    ) -> "HostBatch":
        """Return the batch of windows that `packing.cut_windows` cut.

        Args:
          windows: int32 `targets` (the stream) and `segments` (0 = padding), (B, N).
          index_B: the number of each row's sample, from which all chance comes.
          purpose: TRAIN or HELD_OUT: what `index_B` counts.
        """


def build(config: Config, tokenizer: Tokenizer) -> Objective:
    """Return the objective of a config.

    Raises:
      ConfigError: the tokenizer lacks an id that the objective needs.
    """
    task = config.task
    if isinstance(task, MaskedLMConfig):
        return _masked_lm(config, task, tokenizer)
    if isinstance(task, WindowPairConfig):
        return _window_pair(config, task, tokenizer)
    return CausalLM(window=config.data.length)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CausalLM:
    """Windows are rows already."""

    window: int

    def rows(
        self, windows: "HostBatch", index_B: np.ndarray, *, purpose: str
    ) -> "HostBatch":
        """Return the windows; nothing is drawn."""
        return windows


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MaskedLM:
    """A window between its special tokens, some of it masked (Devlin et al. 2019).

    Adds `predict_positions`, the places in a row of `targets` and `weights`, all three
    (B, K); and for the order of sentences `token_types` (B, T), `pair_labels` (B,).
    """

    window: int
    length: int
    seed: int
    task: MaskedLMConfig
    prefix: np.ndarray
    between: np.ndarray  # of two texts
    suffix: np.ndarray
    mask_id: int
    fill_id: int
    is_text_V: np.ndarray  # ids that are text, not special
    starts_word_V: np.ndarray

    def rows(
        self, windows: "HostBatch", index_B: np.ndarray, *, purpose: str
    ) -> "HostBatch":
        """Return the batch; padding is as in `packing.cut_windows`."""
        each = _each(windows, index_B, self.seed, purpose)
        rows = [self._row(*window) if len(window[0]) else {} for window in each]
        count = num_predictions(self.length, rate=self.task.mask_rate)
        lengths = {
            **dict.fromkeys(("tokens", "segments", "positions"), self.length),
            **dict.fromkeys(("targets", "weights", "predict_positions"), count),
        }
        if not self.task.sentence_order:
            return _stacked(rows, lengths, fill_id=self.fill_id)
        lengths |= {"token_types": self.length, "pair_labels": 1}
        batch = _stacked(rows, lengths, fill_id=self.fill_id)
        return batch | {"pair_labels": batch["pair_labels"][:, 0]}

    @functools.cached_property
    def _text_ids(self) -> np.ndarray:
        return np.flatnonzero(self.is_text_V)

    def _row(
        self, ids_N: np.ndarray, segments_N: np.ndarray, rng: np.random.Generator
    ) -> dict[str, Any]:
        if self.task.sentence_order:
            return self._masked(self._pair(ids_N, rng), rng)
        # What stands before a window is of its first document, and so at its end.
        ends = len(self.prefix), len(self.suffix)
        row = {
            "tokens": np.concatenate([self.prefix, ids_N, self.suffix]),
            "segments": np.pad(segments_N, ends, mode="edge"),
        }
        return self._masked(row, rng)

    def _pair(self, ids_N: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        first, second, swapped = transforms.order_pair(ids_N, rng=rng)
        parts = [self.prefix, first, self.between, second, self.suffix]
        types = np.repeat([0, 0, 0, 1, 1], [len(part) for part in parts])
        return {
            "tokens": np.concatenate(parts),
            "segments": np.ones_like(types),
            "token_types": types,
            "pair_labels": [swapped],
        }

    def _masked(self, row: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
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
            "positions": _positions(row["segments"]),
            "predict_positions": places,
            "targets": ids[places],
            "weights": np.ones(len(places), np.float32),
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class WindowPair:
    """A source and a target made of one window, the target opened and both ended.

    `source`, `source_segments`, `source_positions` are (B, S); `tokens` (the targets
    one place later, after the start), `targets`, `weights`, `segments`, `positions`
    are (B, T).
    """

    window: int
    length: int
    target_length: int
    seed: int
    decoder_prefix_ids: tuple[int, ...]
    eos_id: int
    fill_id: int
    corrupt: Corruption

    def rows(
        self, windows: "HostBatch", index_B: np.ndarray, *, purpose: str
    ) -> "HostBatch":
        """Return the batch; padding is as in `packing.cut_windows`."""
        rows = [
            self._row(*self.corrupt(ids_N, rng=rng)) if len(ids_N) else {}
            for ids_N, _, rng in _each(windows, index_B, self.seed, purpose)
        ]
        source = ("source", "source_segments", "source_positions")
        target = ("tokens", "targets", "weights", "segments", "positions")
        lengths = {
            **dict.fromkeys(source, self.length),
            **dict.fromkeys(target, self.target_length),
        }
        return _stacked(rows, lengths, fill_id=self.fill_id)

    def _row(self, source: np.ndarray, target: np.ndarray) -> dict[str, Any]:
        read = np.concatenate([self.decoder_prefix_ids, target])
        ends = np.ones(len(source) + 1, np.int32), np.ones(len(read), np.int32)
        return {
            "source": np.append(source, self.eos_id),
            "source_segments": ends[0],
            "source_positions": np.arange(len(ends[0])),
            "tokens": read,
            "targets": np.append(read[1:], self.eos_id),
            "weights": ends[1],
            "segments": ends[1],
            "positions": np.arange(len(ends[1])),
        }


def _masked_lm(config: Config, task: MaskedLMConfig, tokenizer: Tokenizer) -> MaskedLM:
    between = tokenizer.pair_ids if task.sentence_order else ()
    num_special = len(tokenizer.prefix_ids) + len(between) + len(tokenizer.suffix_ids)
    return MaskedLM(
        window=config.data.length - num_special,
        length=config.data.length,
        seed=config.seed,
        task=task,
        prefix=np.array(tokenizer.prefix_ids, np.int32),
        between=np.array(between, np.int32),
        suffix=np.array(tokenizer.suffix_ids, np.int32),
        mask_id=_mask_id(config, tokenizer),
        fill_id=_fill_id(tokenizer),
        is_text_V=_is_text(tokenizer),
        starts_word_V=tokenizer.word_starts(),
    )


def _window_pair(
    config: Config, task: WindowPairConfig, tokenizer: Tokenizer
) -> WindowPair:
    window, _ = task.lengths(config.data.length)
    if tokenizer.eos_id is None:
        raise ConfigError(
            f"config.task.kind = {config.task.kind!r}: the tokenizer has no end of a "
            "text"
        )
    return WindowPair(
        window=window,
        length=config.data.length,
        target_length=config.data.target_length,
        seed=config.seed,
        decoder_prefix_ids=config.model.decoder_prefix_ids,
        eos_id=tokenizer.eos_id,
        fill_id=_fill_id(tokenizer),
        corrupt=_corruption(config, task, tokenizer, window=window),
    )


def _corruption(
    config: Config, task: WindowPairConfig, tokenizer: Tokenizer, *, window: int
) -> Corruption:
    if isinstance(task, SpanCorruptionConfig):
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
    if isinstance(task, InfillingConfig):
        mask_id = _mask_id(config, tokenizer)
        ends_V = _sentence_ends(tokenizer) if task.sentence_permutation else None
        return functools.partial(_infilled, task=task, mask_id=mask_id, ends_V=ends_V)
    return transforms.cut_prefix


def _infilled(
    ids_N: np.ndarray,
    *,
    task: InfillingConfig,
    mask_id: int,
    ends_V: np.ndarray | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return a text with holes, and the text."""
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


def _each(
    windows: "HostBatch", index_B: np.ndarray, seed: int, purpose: str
) -> Sequence[tuple[np.ndarray, np.ndarray, np.random.Generator]]:
    """Return each row's tokens and segments without padding, and its chances."""
    real_BN = windows["segments"] > 0
    return [
        (ids[real], segments[real], transforms.chances(i, seed=seed, purpose=purpose))
        for ids, segments, real, i in zip(
            windows["targets"], windows["segments"], real_BN, index_B, strict=True
        )
    ]


def _stacked(
    rows: Sequence[Mapping[str, Any]], lengths: Mapping[str, int], *, fill_id: int
) -> "HostBatch":
    """Return the rows as one batch, each filled up: ids with `fill_id`, others with 0.

    A row that lacks a name is padding throughout.
    """
    batch = {}
    for name, length in lengths.items():
        fill = fill_id if name in ("tokens", "targets", "source") else 0
        dtype = np.float32 if name == "weights" else np.int32
        batch[name] = np.full((len(rows), length), fill, dtype)
        for b, row in enumerate(rows):
            values = row.get(name, ())
            batch[name][b, : len(values)] = values
    return batch


def _positions(segments_N: np.ndarray) -> np.ndarray:
    """Number the tokens of each segment from 0."""
    place_N = np.arange(len(segments_N))
    begins_N = np.diff(segments_N, prepend=0) != 0
    return place_N - np.maximum.accumulate(np.where(begins_N, place_N, 0))


def _is_text(tokenizer: Tokenizer) -> np.ndarray:
    """Return which ids stand for text, bool (V,)."""
    single = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.mask_id
    special = [i for i in single if i is not None]
    for ids in (tokenizer.prefix_ids, tokenizer.suffix_ids, tokenizer.pair_ids):
        special += ids
    is_text_V = np.ones(tokenizer.vocab_size, bool)
    is_text_V[[*special, *tokenizer.sentinel_ids]] = False
    return is_text_V


def _sentence_ends(tokenizer: Tokenizer) -> np.ndarray:
    """Return which ids end a sentence, a line or a document, bool (V,)."""
    texts = [tokenizer.decode([i]).rstrip(" ") for i in range(tokenizer.vocab_size)]
    ends_V = np.array([text.endswith((".", "!", "?", "\n")) for text in texts])
    ends_V[tokenizer.eos_id] = True
    return ends_V


def _mask_id(config: Config, tokenizer: Tokenizer) -> int:
    if tokenizer.mask_id is None:
        raise ConfigError(
            f"config.tokenizer.mask: config.task.kind = {config.task.kind!r} needs a "
            "mask token, and the tokenizer has none"
        )
    return tokenizer.mask_id


def _fill_id(tokenizer: Tokenizer) -> int:
    """Return what padding is filled with; nothing sees it."""
    ids = (tokenizer.pad_id, tokenizer.eos_id, 0)
    return next(i for i in ids if i is not None)
