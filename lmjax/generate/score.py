"""Log-probabilities of given texts, by the chain rule. B batch, T length."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.model import UNLIMITED
from lmjax.errors import ConfigError, UserError
from lmjax.generate.prompts import check_sources, pad_sources
from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.parallel.sharding import fill_shards
from lmjax.tasks.losses import cross_entropy
from lmjax.types import Array, Batch, HostBatch, Params

# Of a batch. Its largest array are the logits, tokens x vocabulary.
MAX_ROWS = 16
MAX_TOKENS = 8192
MAX_LOGITS = 1 << 27  # 512 MiB

TokenPairs = Sequence[tuple[Sequence[int], Sequence[int]]]  # contexts and texts


@dataclasses.dataclass(frozen=True)
class Window:
    """A window of a text and its context."""

    text: int  # its index
    tokens: Sequence[int] | np.ndarray
    num_scored: int  # the last so many tokens; those before are their context
    first: int = 0  # how many scored tokens of the text are in windows before


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a text that is longer than what a model reads at once is cut.

    Each token is scored once, given at least `length - stride` tokens before it.
    """

    length: int  # tokens that are read at once
    stride: int  # how many of them are scored; of the first window all


def choose_windows(
    length: int | None, stride: int | None, *, longest: int
) -> Windows | None:
    """Return windows of a length and a stride; None if neither is given.

    Args:
      length: in tokens; None: `longest`.
      stride: None: half of the length.
      longest: that the model can read.

    Raises:
      UserError: they are not between 1 and what is possible.
    """
    if length is None and stride is None:
        return None
    if length is None:
        if longest >= UNLIMITED:
            raise UserError(
                f"stride = {stride}: needs a window: the model has no limit"
            )
        length = longest
    if not 1 <= length <= longest:
        raise UserError(f"window = {length}: must be between 1 and {longest} tokens")
    stride = length - length // 2 if stride is None else stride
    if not 1 <= stride <= length:
        raise UserError(
            f"stride = {stride}: must be between 1 and {length}, the window"
        )
    return Windows(length, stride)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenScores:
    """The scored tokens of a text, the last ones of it: N of them."""

    log_probs: np.ndarray  # float32 (N,), in nats
    is_greedy: np.ndarray  # bool (N,): no token is more likely
    best: np.ndarray  # int32 (N,): the token that is most likely

    @property
    def log_prob(self) -> float:
        """Return the log-probability of all tokens, in nats."""
        return float(self.log_probs.sum(dtype=np.float64))


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
    """Computes log-probabilities of texts, in batches of similar length.

    Lengths and numbers of rows are padded to a few sizes, each compiled once.
    """

    model: Model

    def log_probs(
        self,
        params: Params,
        texts: TokenPairs,
        *,
        sources: Sequence[Sequence[int]] | None = None,
    ) -> list[tuple[float, int]]:
        """Return log P(text | context) in nats and the number of scored tokens.

        Arguments and errors as of `score_tokens`.
        """
        scores = self.score_tokens(params, texts, sources=sources)
        return [(score.log_prob, len(score.log_probs)) for score in scores]

    def score_tokens(
        self,
        params: Params,
        texts: TokenPairs,
        *,
        sources: Sequence[Sequence[int]] | None = None,
        windows: Windows | None = None,
    ) -> list[TokenScores]:
        """Return the log-probability of each token of the texts, given all before it.

        Without a context the first token of a text is not scored. A text longer than
        the model's positions is cut into windows that overlap by half, or as `windows`
        says. A recurrent network reads a text of any length from its beginning.

        Args:
          params: the model's.
          texts: pairs of token ids, (context, text); either may be empty. The context
            of an encoder-decoder is its `decoder_prefix_ids`.
          sources: of an encoder-decoder, one for each text.
          windows: of texts longer than them.

        Raises:
          ConfigError: the model generates no text, has no windows, or a source is empty
            or longer than its positions.
        """
        config = self.model.config
        if not config.can_generate:
            obstacle = config.generation_obstacle
            raise ConfigError(f"config.model.{obstacle}: it scores no texts")
        counts = [max(len(text) - (not context), 0) for context, text in texts]
        scores = [
            TokenScores(
                np.zeros(count, np.float32),
                np.zeros(count, bool),
                np.zeros(count, np.int32),
            )
            for count in counts
        ]
        if config.has_carry:
            if windows is not None:
                raise ConfigError(
                    f"config.model.kind = {config.kind!r}: reads a text from its "
                    "beginning, not in windows"
                )
            self._score_with_carries(params, texts, scores)
            return scores
        check_sources(sources, config=config, name="context")
        for (num_rows, length, source_length), group in self._groups(
            texts, sources, windows
        ):
            batch = _make_batch(group, shape=(num_rows, length))
            if sources is not None:
                group_sources = [sources[window.text] for window in group]
                batch |= pad_sources(group_sources, shape=(num_rows, source_length))
            _fill(scores, group, self._score(params, batch), start=0)
        return scores

    def _groups(
        self,
        texts: TokenPairs,
        sources: Sequence[Sequence[int]] | None,
        windows: Windows | None,
    ) -> Iterator[tuple[tuple[int, int, int], list[Window]]]:
        """Yield windows of one padded length, after (rows, length, source length)."""
        config = self.model.config
        limit, source_limit = config.longest_text, config.longest_source
        windows = windows or Windows(limit, limit - limit // 2)
        groups: dict[tuple[int, int], list[Window]] = {}
        for i, (context, text) in enumerate(texts):
            num = 0 if sources is None else len(sources[i])
            source_length = num and padded_length(num, limit=source_limit)
            for window in cut_windows(i, context, text, windows):
                length = padded_length(len(window.tokens) - 1, limit=limit)
                groups.setdefault((length, source_length), []).append(window)
        for (length, source_length), alike in groups.items():
            most = self._max_rows(length, source_length=source_length)
            for first in range(0, len(alike), most):
                group = alike[first : first + most]
                num_rows = fill_shards(_power_of_two(len(group)))
                yield (num_rows, length, source_length), group

    def _max_rows(self, length: int, *, source_length: int = 0) -> int:
        """Return how many rows of a length a batch has at most.

        A power of two for each device that has rows of its own.
        """
        tokens = max(length, source_length)
        logits = length * self.model.config.vocab_size
        most = min(MAX_ROWS, MAX_TOKENS // tokens, MAX_LOGITS // logits)
        return (1 << max(most, 1).bit_length() - 1) * fill_shards(1)

    def _score_with_carries(
        self, params: Params, texts: TokenPairs, scores: Sequence[TokenScores]
    ) -> None:
        """Fill in the scores, with a carry between the parts of a text."""
        windows = [
            Window(i, [*context, *text], len(score.log_probs))
            for i, ((context, text), score) in enumerate(
                zip(texts, scores, strict=True)
            )
            if len(score.log_probs)
        ]
        windows.sort(key=lambda window: len(window.tokens), reverse=True)
        while windows:
            longest = len(windows[0].tokens) - 1
            length = padded_length(longest, limit=self.model.config.max_length)
            group = windows[: self._max_rows(length)]
            windows = windows[len(group) :]
            num_rows = fill_shards(_power_of_two(len(group)))
            batch = _make_batch(group, shape=(num_rows, -(-longest // length) * length))
            carry = self.model.init_carry(num_rows)
            for start in range(0, longest, length):
                stop = start + length
                part = {name: x[:, start:stop] for name, x in batch.items()}
                *found, carry = self._score_with_carry(params, part, carry)
                _fill(scores, group, found, start=start)

    @functools.cached_property
    def _score(self) -> Any:
        return jax.jit(
            lambda params, batch: _score_targets(self.model.apply(params, batch), batch)
        )

    @functools.cached_property
    def _score_with_carry(self) -> Any:
        def score(
            params: Params, batch: Batch, carry: State
        ) -> tuple[Array, Array, Array, State]:
            hidden, carry = self.model.hidden_with_carry(params, batch, carry)
            logits = self.model.token_logits(params, hidden)
            return *_score_targets(logits, batch), carry

        return jax.jit(score)


def _score_targets(logits_BTV: Array, batch: Batch) -> tuple[Array, Array, Array]:
    """Return (B, T): log-probabilities, whether they are greedy, and the best ids."""
    targets_BT = batch["targets"]
    nll_BT, _ = cross_entropy(logits_BTV, targets_BT)
    best_BT = jnp.argmax(logits_BTV, axis=-1)
    logit = lambda ids_BT: jnp.take_along_axis(logits_BTV, ids_BT[..., None], axis=-1)
    is_greedy_BT = (logit(targets_BT) >= logit(best_BT))[..., 0]
    return -nll_BT, is_greedy_BT, best_BT


def _fill(
    scores: Sequence[TokenScores], windows: Sequence[Window], found: Any, *, start: int
) -> None:
    """Put what was found for a part of some windows in its place.

    Args:
      scores: of each text, filled in.
      windows: the rows.
      found: of `_score_targets`.
      start: of the part, in tokens of the windows.
    """
    log_probs_BT, is_greedy_BT, best_BT = map(np.asarray, found)
    length = log_probs_BT.shape[1]
    for row, window in enumerate(windows):
        stop = len(window.tokens) - 1  # of the targets; the last ones are scored
        begin = stop - window.num_scored
        low, high = max(begin, start), min(stop, start + length)
        if low < high:
            here = slice(window.first + low - begin, window.first + high - begin)
            part = slice(low - start, high - start)
            scores[window.text].log_probs[here] = log_probs_BT[row, part]
            scores[window.text].is_greedy[here] = is_greedy_BT[row, part]
            scores[window.text].best[here] = best_BT[row, part]


def cut_windows(
    text: int, context: Sequence[int], tokens: Sequence[int], windows: Windows
) -> Iterator[Window]:
    """Yield windows that score each token once; each has its target beside it."""
    # Windows are views: many that overlap take no more memory than the text.
    ids = np.array([*context, *tokens], np.int32)
    length, overlap = windows.length, windows.length - windows.stride
    first = scored_from = max(len(context), 1)
    start = max(0, scored_from - 1 - overlap) if scored_from > length else 0
    while scored_from < len(ids):
        stop = min(start + length + 1, len(ids))
        yield Window(text, ids[start:stop], stop - scored_from, scored_from - first)
        scored_from = stop
        start = stop - 1 - overlap


def padded_length(length: int, *, limit: int) -> int:
    """Round up to 32, 48, 64, 96, 128, ..., at most `limit`: few shapes are compiled.

    At most a third of a padded text is padding, but for very short ones.
    """
    power = _power_of_two(max(length, 32))
    return min(
        power if length > power * 3 // 4 or power == 32 else power * 3 // 4, limit
    )


def _power_of_two(count: int) -> int:
    """Return the power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()


def _make_batch(windows: Sequence[Window], *, shape: tuple[int, int]) -> HostBatch:
    """Return windows as a batch, padded on the right and below."""
    length = shape[1]
    batch = {
        name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segments")
    }
    batch["positions"] = np.broadcast_to(np.arange(length, dtype=np.int32), shape)
    for row, window in enumerate(windows):
        n = len(window.tokens) - 1
        batch["tokens"][row, :n] = window.tokens[:-1]
        batch["targets"][row, :n] = window.tokens[1:]
        batch["segments"][row, :n] = 1
    return batch


def describe_score(
    text: Sequence[int], scores: TokenScores, *, per_token: bool
) -> dict[str, Any]:
    """Return the scores of a text as JSON; see `LanguageModel.score`."""
    count, log_prob = len(scores.log_probs), scores.log_prob
    row: dict[str, Any] = {
        "log_prob": log_prob,
        "num_tokens": count,
        "perplexity": float(np.exp(-log_prob / count)) if count else None,
    }
    if not per_token:
        return row
    return row | {
        "tokens": [*text[len(text) - count :]],
        "token_log_probs": scores.log_probs.tolist(),
        "token_is_greedy": scores.is_greedy.tolist(),
        "is_greedy": bool(scores.is_greedy.all()),
    }
