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

from lmjax import sharding
from lmjax.config import ConfigError
from lmjax.generate.constraints import Constraints
from lmjax.generate.decode import Generator, Written
from lmjax.generate.sampling import Sampling
from lmjax.models.model import Model, take_rows
from lmjax.types import Array, Params

# Lengths to a higher power leave float32.
MAX_LENGTH_PENALTY = 5.0
MAX_BEAMS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beams:
    """How many texts are followed, how finished ones compare, and when to stop.

    The score of a text is log P / length ** length_penalty, as in transformers: the
    length is that of what was written, the end of text included. 0 prefers the most
    probable text, 1 the highest probability a token; higher powers prefer long texts.
    (Wu et al. 2016 divide by ((5 + length) / 6) ** length_penalty.)

    A search ends once `num_beams` texts are finished and no other has a better score
    at its present length, or with `early_finish` once they are finished: transformers'
    early_stopping False and True.
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    early_finish: bool = False
    num_return: int = 1  # of the finished texts, the best first

    def __post_init__(self) -> None:
        if not 1 <= self.num_beams <= MAX_BEAMS:
            raise ConfigError(
                f"num_beams = {self.num_beams}: must be from 1 to {MAX_BEAMS}"
            )
        if not -MAX_LENGTH_PENALTY <= self.length_penalty <= MAX_LENGTH_PENALTY:
            raise ConfigError(
                f"length_penalty = {self.length_penalty}: must be from "
                f"{-MAX_LENGTH_PENALTY:g} to {MAX_LENGTH_PENALTY:g}"
            )
        if not 1 <= self.num_return <= self.num_beams:
            raise ConfigError(
                f"num_return = {self.num_return}: must be from 1 to num_beams = "
                f"{self.num_beams}"
            )


def sampling_or_beams(
    *,
    temperature: float | None,
    top_k: int,
    top_p: float,
    default_temperature: float = 1.0,
    **beams: Any,
) -> Sampling | Beams:
    """Return how to continue: by a search of more than one beam, else by sampling.

    Raises:
      ConfigError: an option out of range, or one that asks for chance in a search.
    """
    search = Beams(**beams)
    if search.num_beams == 1:
        heat = default_temperature if temperature is None else temperature
        return Sampling(temperature=heat, top_k=top_k, top_p=top_p)
    given = {"temperature": temperature or 0, "top_k": top_k, "top_p": top_p}
    none = {"temperature": 0, "top_k": 0, "top_p": 1}
    for name, value in given.items():
        if value != none[name]:
            raise ConfigError(
                f"{name} = {value}: must be {none[name]} or left out with num_beams = "
                f"{search.num_beams}, which draws nothing"
            )
    return search


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
    """A model's beam search, compiled once for each shape, width and constraints.

    It asks of a model `prefill` and `decode_step`, and of their cache what `take_rows`
    does: recurrent networks, whose cache is their state, are searched as Transformers.
    """

    generator: Generator

    def hypotheses(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        beams: Beams,
        stop_ids: Collection[int],
        sources: Sequence[Sequence[int]] | None = None,
        constraints: Constraints = Constraints(),
    ) -> list[list[Hypothesis]]:
        """Return the `num_return` best continuations of each prompt that were found.

        What is found for a prompt does not depend on the prompts beside it. There are
        fewer only where not so many texts of `max_tokens` exist.

        Args:
          params: the model's.
          prompts: what the tokens follow; of an encoder-decoder its `start_id`.
          max_tokens: after which a text is finished, and its end is not counted.
          beams: of the search.
          stop_ids: what ends a text.
          sources: what an encoder-decoder reads, one for each prompt.
          constraints: on what may be written.

        Raises:
          ConfigError: an empty prompt, or more tokens than the model has positions.
        """
        constraints.check(max_tokens=max_tokens)
        written = self.generator.begin(
            params, prompts, max_tokens=max_tokens, sources=sources
        )
        found = self._search(
            params,
            written,
            self.generator.ends(stop_ids),
            max_tokens,
            float(beams.length_penalty),
            num_beams=beams.num_beams,
            early_finish=beams.early_finish,
            constraints=constraints,
        )
        found, ends = jax.device_get(found), set(stop_ids)
        return [
            [
                found.hypothesis(row, beam, start=len(prompt), ends=ends)
                for beam in range(beams.num_return)
                if np.isfinite(found.scores_BK[row, beam])
            ]
            for row, prompt in enumerate(prompts)
        ]

    @functools.cached_property
    def _search(self) -> Any:
        search = functools.partial(_search, self.generator.model)
        return jax.jit(
            search, static_argnames=("num_beams", "early_finish", "constraints")
        )


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
    constraints: Constraints

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
        log_probs_RV = self.constraints.apply(
            log_probs_RV,
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
        log_probs_BK, places_BK = jax.lax.top_k(totals_BKV.reshape(B, K * V), K)
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
        _, order_BK = jax.lax.top_k(both.scores_BK, self.num_beams)
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
    early_finish: bool,
    constraints: Constraints,
) -> _Finished:
    """Search from every prompt at once, without a look from the host."""
    rules = _Rules(
        lengths_B=written.lengths_B,
        ends_V=ends_V,
        max_tokens=max_tokens,
        length_penalty=length_penalty,
        num_beams=num_beams,
        early_finish=early_finish,
        constraints=constraints,
    )
    rows_B1 = jnp.arange(len(written.text_BS))[:, None]
    rows_R = jnp.repeat(rows_B1[:, 0], num_beams)

    def step(carry: tuple[_State, Any]) -> tuple[_State, Any]:
        state, cache = carry
        running = state.running
        parents_R = (rows_B1 * num_beams + running.parents_BK).reshape(-1)
        cache = take_rows(cache, parents_R)
        positions_R = jnp.repeat(rules.lengths_B + state.num_steps - 1, num_beams)
        logits_RV, cache = model.decode_step(
            params, running.tokens_BK.reshape(-1), positions_R, cache
        )
        return rules.advance(state, logits_RV), cache

    state = rules.begin(written.text_BS)
    state = rules.advance(state, written.logits_BV[rows_R])
    carry = (state, take_rows(written.cache, rows_R))
    state, _ = jax.lax.while_loop(lambda c: rules.unfinished(c[0]), step, carry)
    return sharding.whole(state.finished)


def _take(x: Array, places_BK: Array) -> Array:
    """Return the beams (B, K, ...) at these places of each row."""
    places = places_BK.reshape(*places_BK.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, places, axis=1)
