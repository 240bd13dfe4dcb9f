"""Log-probabilities of given texts, by the chain rule. B batch, T length."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.model import ModelConfig
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError
from lmjax.generate.prompts import (
    check_sources,
    check_utf8,
    encode_prompts,
    pad_sources,
)
from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.tasks.losses import cross_entropy
from lmjax.types import Array, Batch, HostBatch, Params

# Of a batch. Its largest array are the logits, tokens x vocabulary.
MAX_ROWS = 16
MAX_TOKENS = 8192


@dataclasses.dataclass(frozen=True)
class Window:
    """A window of a text and its context."""

    text: int  # its index
    tokens: Sequence[int]
    num_scored: int  # the last so many tokens; those before are their context


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """Computes log-probabilities of texts, compiled once for each padded length."""

    model: Model

    def log_probs(
        self,
        params: Params,
        texts: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        sources: Sequence[Sequence[int]] | None = None,
    ) -> list[tuple[float, int]]:
        """Return log P(text | context) in nats and the number of scored tokens.

        Without a context the first token of a text is not scored. A text longer than
        the model's positions is cut into windows that overlap by half: each token is
        scored once, given at least that many tokens before it. A recurrent network
        reads a text of any length from its beginning.

        Args:
          params: the model's.
          texts: pairs of token ids, (context, text); either may be empty. The context
            of an encoder-decoder is its `decoder_prefix_ids`.
          sources: of an encoder-decoder, one for each text.

        Raises:
          ConfigError: the model generates no text, or a source is empty or longer than
            its positions.
        """
        config, totals = self.model.config, [0.0] * len(texts)
        if not config.can_generate:
            obstacle = config.generation_obstacle
            raise ConfigError(f"config.model.{obstacle}: it scores no texts")
        if config.has_carry:
            return self._log_probs_with_carry(params, texts)
        check_sources(sources, config=config, name="context")
        counts = [0] * len(texts)
        for (num_rows, length, source_length), group in self._groups(texts, sources):
            batch = _make_batch(group, shape=(num_rows, length))
            if sources is not None:
                group_sources = [sources[window.text] for window in group]
                batch |= pad_sources(group_sources, shape=(num_rows, source_length))
            sums = np.asarray(self._score(params, batch))
            for window, total in zip(group, sums, strict=False):
                totals[window.text] += float(total)
                counts[window.text] += window.num_scored
        return list(zip(totals, counts, strict=True))

    def _groups(
        self,
        texts: Sequence[tuple[Sequence[int], Sequence[int]]],
        sources: Sequence[Sequence[int]] | None,
    ) -> Iterator[tuple[tuple[int, int, int], list[Window]]]:
        """Yield windows of one padded length, after (rows, length, source length)."""
        config = self.model.config
        limit, source_limit = config.longest_text, config.longest_source
        groups: dict[tuple[int, int], list[Window]] = {}
        for i, (context, text) in enumerate(texts):
            num = 0 if sources is None else len(sources[i])
            source_length = num and padded_length(num, limit=source_limit)
            for window in cut_windows(i, context, text, length=limit):
                length = padded_length(len(window.tokens) - 1, limit=limit)
                groups.setdefault((length, source_length), []).append(window)
        for (length, source_length), windows in groups.items():
            num_tokens = max(length, source_length)
            num_rows = max(1, min(MAX_ROWS, MAX_TOKENS // num_tokens))
            for first in range(0, len(windows), num_rows):
                group = windows[first : first + num_rows]
                yield (num_rows, length, source_length), group

    def _log_probs_with_carry(
        self, params: Params, texts: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, int]]:
        """Return the same as `log_probs`, with a carry between the parts of a text."""
        counts = [max(len(text) - (not context), 0) for context, text in texts]
        scored = [i for i, count in enumerate(counts) if count]
        windows = [Window(i, [*texts[i][0], *texts[i][1]], counts[i]) for i in scored]
        windows.sort(key=lambda window: len(window.tokens), reverse=True)
        totals = [0.0] * len(texts)
        while windows:
            longest = len(windows[0].tokens) - 1
            length = padded_length(longest, limit=self.model.config.max_length)
            num_rows = max(1, min(MAX_ROWS, MAX_TOKENS // length))
            group, windows = windows[:num_rows], windows[num_rows:]
            batch = _make_batch(group, shape=(num_rows, -(-longest // length) * length))
            carry = self.model.init_carry(num_rows)
            for start in range(0, longest, length):
                stop = start + length
                part = {name: x[:, start:stop] for name, x in batch.items()}
                sums, carry = self._score_with_carry(params, part, carry)
                for window, total in zip(group, np.asarray(sums), strict=False):
                    totals[window.text] += float(total)
        return list(zip(totals, counts, strict=True))

    @functools.cached_property
    def _score(self) -> Any:
        return jax.jit(
            lambda params, batch: _sum_log_probs(self.model.apply(params, batch), batch)
        )

    @functools.cached_property
    def _score_with_carry(self) -> Any:
        def score(params: Params, batch: Batch, carry: State) -> tuple[Array, State]:
            logits, carry = self.model.apply_with_carry(params, batch, carry)
            return _sum_log_probs(logits, batch), carry

        return jax.jit(score)


def _sum_log_probs(logits_BTV: Array, batch: Batch) -> Array:
    """Return the summed log-probability of each row's weighted targets, (B,)."""
    nll_BT, _ = cross_entropy(logits_BTV, batch["targets"])
    return -jnp.sum(nll_BT * batch["weights"], axis=-1)


def encode_pairs(
    tokenizer: Tokenizer,
    texts: Sequence[str | tuple[str, str]],
    *,
    config: ModelConfig,
    eos: bool,
) -> dict[str, Any]:
    """Return the ids of texts and their contexts: arguments of `Scorer.log_probs`.

    Args:
      tokenizer: of the model.
      texts: a text, or (context, text). An encoder-decoder needs pairs: the context is
        its source.
      config: of the model.
      eos: append the tokenizer's EOS to each text.

    Raises:
      ConfigError: a text is not UTF-8, or lacks the context that the model needs.
    """
    alone = [i for i, text in enumerate(texts) if isinstance(text, str)]
    if alone and config.is_encoder_decoder:
        raise ConfigError(
            f"score: text {alone[0]} has no context: config.model.kind = "
            f"{config.kind!r} takes pairs (context, text), its source and target"
        )
    pairs = [("", text) if isinstance(text, str) else text for text in texts]
    inputs = encode_prompts(tokenizer, [context for context, _ in pairs], config=config)
    tail = not_none(tokenizer.eos_id) if eos else ()
    ids = []
    for context, (_, text) in zip(inputs.pop("prompts"), pairs, strict=True):
        check_utf8(text, name="text")
        ids.append((context, [*map(int, tokenizer.encode(text)), *tail]))
    return {"texts": ids, **inputs}


def cut_windows(
    text: int, context: Sequence[int], tokens: Sequence[int], *, length: int
) -> Iterator[Window]:
    """Yield windows of at most `length + 1` tokens that score each token once."""
    ids = [*context, *tokens]
    scored_from = max(len(context), 1)
    stride = length // 2
    start = max(0, scored_from - 1 - stride) if scored_from > length else 0
    while scored_from < len(ids):
        stop = min(start + length + 1, len(ids))
        yield Window(text, ids[start:stop], stop - scored_from)
        scored_from = stop
        start = stop - 1 - stride


def padded_length(length: int, *, limit: int) -> int:
    """Round up to a power of two >= 32, at most `limit`: few shapes are compiled."""
    return min(max(32, 1 << (length - 1).bit_length()), limit)


def _make_batch(windows: Sequence[Window], *, shape: tuple[int, int]) -> HostBatch:
    """Return windows as a batch, padded on the right and below."""
    length = shape[1]
    batch = {
        name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segments")
    }
    batch["positions"] = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    batch["weights"] = np.zeros(shape, np.float32)
    for row, window in enumerate(windows):
        n = len(window.tokens) - 1
        batch["tokens"][row, :n] = window.tokens[:-1]
        batch["targets"][row, :n] = window.tokens[1:]
        batch["segments"][row, :n] = 1
        batch["weights"][row, n - window.num_scored : n] = 1.0
    return batch
