"""Beam search with a cache.

B batch, K beams, R rows (B times K), S places of a text, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.decoding import DecodingConfig
from lmjax.generate.constraints import constrained
from lmjax.generate.decode import Generator, Written
from lmjax.models import Model
from lmjax.parallel import sharding
from lmjax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A text that a search has found."""

    tokens: list[int]  # without the end of text
    log_prob: float  # in nats, of the end of text too where it was written
    score: float  # what texts are compared by

    def told(self, text: str) -> dict[str, Any]:
        """Return JSON of what was found, with its tokens as text."""
        return {"text": text, "score": self.score, "log_prob": self.log_prob}


@dataclasses.dataclass(frozen=True, eq=False)
class BeamSearch:
    """A model's beam search, compiled once for each shape, width and constraint.

    It asks of a model `prefill` and `decode_step`, and of their cache what `take`
    does: recurrent networks, whose cache is their state, are searched as Transformers.
    """

    generator: Generator

    def hypotheses(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        *,
        write: DecodingConfig,
        stop_ids: Collection[int],
        sources: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return the `num_return` best continuations of each prompt that were found.

        What is found for a prompt does not depend on the prompts beside it. There are
        fewer only where not so many texts of `max_tokens` exist.

        Args:
          params: the model's.
          prompts: ids to continue; `decoder_prefix_ids` for an encoder-decoder.
          write: how; after `max_tokens` a text is finished, its end not counted.
          stop_ids: what ends a text.
          sources: what an encoder-decoder reads, one for each prompt.

        Raises:
          ConfigError: as `Generator.check` does.
        """
        most, least = write.max_tokens, write.min_tokens
        self.generator.check(
            prompts, max_tokens=most, min_tokens=least, sources=sources
        )
        found = self._search(
            params,
            self.generator.begin(params, prompts, max_tokens=most, sources=sources),
            self.generator.ends(stop_ids),
            most,
            float(write.length_penalty),
            num_beams=write.num_beams,
            early_finish=write.early_finish,
            min_tokens=least,
            no_repeat_ngram=write.no_repeat_ngram,
        )
        found, ends = jax.device_get(found), set(stop_ids)
        return [
            [
                found.hypothesis(row, beam, start=len(prompt), ends=ends)
                for beam in range(write.num_return)
                if np.isfinite(found.scores_BK[row, beam])
            ]
            for row, prompt in enumerate(prompts)
        ]

    @functools.cached_property
    def _search(self) -> Any:
        search = functools.partial(_search, self.generator.model)
        static = ("num_beams", "early_finish", "min_tokens", "no_repeat_ngram")
        return jax.jit(search, static_argnames=static)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Running:
    """Texts that go on, the most probable first; log P of -inf: there is none."""

    text_BKS: Array
    log_probs_BK: Array
    tokens_BK: Array  # the last of each text
    parents_BK: Array  # which beam it was of


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Finished:
    """Texts that have ended, the best first; a score of -inf: there is none."""

    text_BKS: Array
    log_probs_BK: Array
    lengths_BK: Array  # tokens written, the end of text included
    scores_BK: Array

    def hypothesis(
        self, row: int, beam: int, *, start: int, ends: Collection[int]
    ) -> Hypothesis:
        stop = start + int(self.lengths_BK[row, beam])
        tokens = [int(token) for token in self.text_BKS[row, beam, start:stop]]
        if tokens[-1] in ends:
            tokens.pop()
        return Hypothesis(
            tokens,
            float(self.log_probs_BK[row, beam]),
            float(self.scores_BK[row, beam]),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """Where the searches stand, all after as many steps."""

    running: _Running
    finished: _Finished
    open_B: Array  # whether a better text may still be found
    num_steps: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rules:
    """What stays the same while searching."""

    lengths_B: Array  # of the prompts
    ends_V: Array
    max_tokens: Array
    length_penalty: Array
    num_beams: int
    early_finish: bool
    min_tokens: int
    no_repeat_ngram: int

    def begin(self, text_BS: Array) -> _State:
        """Return the state before the first token: one beam is alive."""
        K, shape_BK = self.num_beams, (len(text_BS), self.num_beams)
        text_BKS = jnp.repeat(text_BS[:, None], K, axis=1)
        none, zeros = jnp.full(shape_BK, -jnp.inf), jnp.zeros(shape_BK, jnp.int32)
        return _State(
            running=_Running(text_BKS, none.at[:, 0].set(0.0), zeros, zeros),
            finished=_Finished(text_BKS, none, zeros, none),
            open_B=jnp.ones(len(text_BS), bool),
            num_steps=jnp.zeros((), jnp.int32),
        )

    def advance(self, state: _State, logits_RV: Array) -> _State:
        """Choose the next token of every beam, and put finished texts aside."""
        totals_BKV = self._totals(state, logits_RV)
        num_steps = state.num_steps + 1
        # Ends compete with what would go on: no text ends that is not among the best.
        best = self._choose(state, totals_BKV)
        ends = self.ends_V[best.tokens_BK] | (num_steps == self.max_tokens)
        ends &= state.open_B[:, None]
        finished = self._finish(state.finished, best, ends, num_steps)
        running = self._choose(state, jnp.where(self.ends_V, -jnp.inf, totals_BKV))
        # Not the first of each row: XLA on the CPU would cut it out of the sort that
        # top_k stands for, which it then does in full.
        best_B = running.log_probs_BK.max(axis=1) / self._norm(num_steps)
        open_B = state.open_B & (best_B > finished.scores_BK[:, -1])
        if self.early_finish:
            open_B &= jnp.isneginf(finished.scores_BK[:, -1])
        return _State(running, finished, open_B, num_steps)

    def unfinished(self, state: _State) -> Array:
        """Return whether any search goes on."""
        return jnp.any(state.open_B) & (state.num_steps < self.max_tokens)

    def _totals(self, state: _State, logits_RV: Array) -> Array:
        """Return log P of every text with every next token, (B, K, V)."""
        running, K = state.running, self.num_beams
        # Over all ids, as where texts are scored, also those that are never drawn.
        log_probs_RV = jax.nn.log_softmax(logits_RV)[:, : len(self.ends_V)]
        log_probs_RV = constrained(
            log_probs_RV,
            min_tokens=self.min_tokens,
            no_repeat_ngram=self.no_repeat_ngram,
            text_BS=running.text_BKS.reshape(-1, running.text_BKS.shape[-1]),
            lengths_B=jnp.repeat(self.lengths_B + state.num_steps, K),
            ends_V=self.ends_V,
            num_steps=state.num_steps,
        )
        shape_BK = running.log_probs_BK.shape
        return running.log_probs_BK[..., None] + log_probs_RV.reshape(*shape_BK, -1)

    def _choose(self, state: _State, totals_BKV: Array) -> _Running:
        """Return the K most probable texts of each search."""
        B, K, V = totals_BKV.shape
        log_probs_BK, places_BK = _top_k(totals_BKV.reshape(B, K * V), k=K)
        parents_BK, tokens_BK = jnp.divmod(places_BK, V)
        text_BKS = _take(state.running.text_BKS, parents_BK)
        ends_B = self.lengths_B + state.num_steps
        text_BKS = text_BKS.at[jnp.arange(B), :, ends_B].set(tokens_BK)
        return _Running(text_BKS, log_probs_BK, tokens_BK, parents_BK)

    def _finish(
        self, finished: _Finished, best: _Running, ends_BK: Array, num_steps: Array
    ) -> _Finished:
        """Return the K best of the texts finished before and now."""
        scores_BK = best.log_probs_BK / self._norm(num_steps)
        now = _Finished(
            best.text_BKS,
            best.log_probs_BK,
            jnp.full_like(finished.lengths_BK, num_steps),
            jnp.where(ends_BK, scores_BK, -jnp.inf),
        )
        both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), finished, now)
        _, order_BK = _top_k(both.scores_BK, k=self.num_beams)
        return jax.tree.map(lambda x: _take(x, order_BK), both)

    def _norm(self, length: Array) -> Array:
        return length.astype(jnp.float32) ** self.length_penalty


def _search(
    model: Model,
    params: Params,
    written: Written,
    ends_V: Array,
    max_tokens: Array,
    length_penalty: Array,
    *,
    num_beams: int,
    **static: Any,
) -> _Finished:
    """Search from every prompt at once, without a look from the host."""
    rules = _Rules(
        lengths_B=written.lengths_B,
        ends_V=ends_V,
        max_tokens=max_tokens,
        length_penalty=length_penalty,
        num_beams=num_beams,
        **static,
    )

    def step(carry: tuple[_State, Any]) -> tuple[_State, Any]:
        state, cache = carry
        running = state.running
        cache = cache.take(running.parents_BK)
        positions_R = jnp.repeat(rules.lengths_B + state.num_steps - 1, num_beams)
        logits_RV, cache = model.decode_step(
            params, running.tokens_BK.reshape(-1), positions_R, cache
        )
        return rules.advance(state, logits_RV), cache

    state = rules.begin(sharding.constrain(written.text_BS, "batch", "length"))
    logits_RV = jnp.repeat(written.logits_BV, num_beams, axis=0)
    cache = written.cache.take(state.running.parents_BK)
    carry = (rules.advance(state, logits_RV), cache)
    state, _ = jax.lax.while_loop(lambda c: rules.unfinished(c[0]), step, carry)
    return sharding.replicate(state.finished)


def _top_k(x_BN: Array, *, k: int) -> tuple[Array, Array]:
    """Return the k largest of each row, and their places, (B, K)."""
    return sharding.map_row_shards(functools.partial(jax.lax.top_k, k=k), x_BN)


def _take(x: Array, places_BK: Array) -> Array:
    """Return the beams (B, K, ...) at these places of each row."""
    places = places_BK.reshape(*places_BK.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, places, axis=1)
