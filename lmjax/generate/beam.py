"""Beam search.

B prompts, K beams, R rows (B times K), S slots of a text, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.config.decoding import ConstraintConfig, DecodingConfig
from lmjax.generate.constraints import apply_constraints, penalize_repetition
from lmjax.generate.decode import Generator
from lmjax.generate.texts import PromptState, slots_for
from lmjax.models import Model
from lmjax.parallel import sharding
from lmjax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """A text found by a search."""

    tokens: list[int]  # without the end of text
    log_prob: float  # in nats, of the end of text too where it was written
    score: float  # log_prob / length ** length_penalty, which ranks texts

    def to_dict(self, text: str) -> dict[str, Any]:
        """Return the hypothesis as JSON, given its tokens as text."""
        return {"text": text, "score": self.score, "log_prob": self.log_prob}


@dataclasses.dataclass(frozen=True, eq=False)
class BeamSearch:
    """Beam search, compiled once for each shape, number of beams and constraint.

    It calls a model's `prefill` and `decode_step`, and `take` of its decode state, so
    that all models that generate are searched alike.
    """

    generator: Generator

    def search(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        *,
        config: DecodingConfig,
        stop_ids: Collection[int],
        sources: Sequence[Sequence[int]] | None = None,
    ) -> list[list[Hypothesis]]:
        """Return the `num_return` best continuations of each prompt, best first.

        The result for a prompt does not depend on the other prompts. There are fewer
        than `num_return` only if no more texts of at most `max_tokens` exist.

        Args:
          params: the model's.
          prompts: ids to continue; `decoder_prefix_ids` for an encoder-decoder.
          config: of the search; a text of `max_tokens` is finished without a stop id.
          stop_ids: ids that end a text.
          sources: of an encoder-decoder, one for each prompt.

        Raises:
          ConfigError: as `Generator.check` does.
        """
        most, least = config.max_tokens, config.min_tokens
        self.generator.check(
            prompts, max_tokens=most, min_tokens=least, sources=sources
        )
        size = slots_for(prompts, sources, most)
        finished = self._search(
            params,
            self.generator.prefill(
                params, prompts, num_slots=size, cache_length=size, sources=sources
            ),
            self.generator.stop_mask(stop_ids),
            most,
            float(config.length_penalty),
            num_beams=config.num_beams,
            early_finish=config.early_finish,
            exhaustive=config.exhaustive,
            renormalize=config.renormalize,
            constraints=config.constraints(
                self.generator.model.config.decoder_prefix_ids
            ),
        )
        finished = jax.device_get(finished)
        return [
            [
                finished.hypothesis(row, beam, start=len(prompt), stop_ids=stop_ids)
                for beam in range(config.num_return)
                if np.isfinite(finished.scores_BK[row, beam])
            ]
            for row, prompt in enumerate(prompts)
        ]

    @functools.cached_property
    def _search(self) -> Any:
        search = functools.partial(_search, self.generator.model)
        flags = ("early_finish", "exhaustive", "renormalize")
        static = ("num_beams", "constraints", *flags)
        return jax.jit(search, static_argnames=static)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _RunningBeams:
    """Unfinished texts, most probable first; those of log P = -inf do not exist."""

    text_BKS: Array
    log_probs_BK: Array
    tokens_BK: Array  # the last of each text
    parents_BK: Array  # the beam of the step before that each text extends


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _FinishedBeams:
    """Finished texts, best first; those of score -inf do not exist."""

    text_BKS: Array
    log_probs_BK: Array
    lengths_BK: Array  # generated tokens, the stop id included
    scores_BK: Array

    def hypothesis(
        self, row: int, beam: int, *, start: int, stop_ids: Collection[int]
    ) -> Hypothesis:
        """Return one text on the host, without its prompt of `start` tokens."""
        stop = start + int(self.lengths_BK[row, beam])
        tokens = [int(token) for token in self.text_BKS[row, beam, start:stop]]
        if tokens[-1] in stop_ids:
            tokens.pop()
        return Hypothesis(
            tokens,
            float(self.log_probs_BK[row, beam]),
            float(self.scores_BK[row, beam]),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _SearchState:
    """The searches of all prompts after `num_steps` tokens each."""

    running: _RunningBeams
    finished: _FinishedBeams
    open_B: Array  # true while a better text may still be found
    num_steps: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SearchStep:
    """One step of all searches; its fields stay the same throughout."""

    lengths_B: Array  # of the prompts
    is_stop_V: Array
    max_tokens: Array
    length_penalty: Array
    num_beams: int
    early_finish: bool
    exhaustive: bool
    renormalize: bool
    constraints: ConstraintConfig

    def init(self, text_BS: Array) -> _SearchState:
        """Return the state before the first token, in which one beam exists."""
        K, shape_BK = self.num_beams, (len(text_BS), self.num_beams)
        text_BKS = jnp.repeat(text_BS[:, None], K, axis=1)
        none, zeros = jnp.full(shape_BK, -jnp.inf), jnp.zeros(shape_BK, jnp.int32)
        return _SearchState(
            running=_RunningBeams(text_BKS, none.at[:, 0].set(0.0), zeros, zeros),
            finished=_FinishedBeams(text_BKS, none, zeros, none),
            open_B=jnp.ones(len(text_BS), bool),
            num_steps=jnp.zeros((), jnp.int32),
        )

    def advance(self, state: _SearchState, logits_RV: Array) -> _SearchState:
        """Choose the next token of every beam, and move out the texts that it ends."""
        totals_BKV = self._totals(state, logits_RV)
        num_steps = state.num_steps + 1
        # Stop ids compete with all others: only texts among the K best may end.
        best = self._choose(state, totals_BKV)
        ends_BK = self.is_stop_V[best.tokens_BK] | (num_steps == self.max_tokens)
        ends_BK &= state.open_B[:, None]
        finished = self._finish(state.finished, best, ends_BK, num_steps)
        running = self._choose(state, jnp.where(self.is_stop_V, -jnp.inf, totals_BKV))
        # The maximum, not element 0: slicing the sorted result makes XLA on the CPU
        # replace its fast top_k by a full sort.
        longest = self.max_tokens if self.exhaustive else num_steps
        longest = jnp.where(self.length_penalty > 0, longest, num_steps)
        best_B = running.log_probs_BK.max(axis=1) / self._norm(longest)
        open_B = state.open_B & (best_B > finished.scores_BK[:, -1])
        if self.early_finish:
            open_B &= jnp.isneginf(finished.scores_BK[:, -1])
        return _SearchState(running, finished, open_B, num_steps)

    def is_running(self, state: _SearchState) -> Array:
        """Return whether the search of any prompt continues."""
        return jnp.any(state.open_B) & (state.num_steps < self.max_tokens)

    def _totals(self, state: _SearchState, logits_RV: Array) -> Array:
        """Return log P of every text with every next token, (B, K, V)."""
        running, K = state.running, self.num_beams
        text_RS = running.text_BKS.reshape(-1, running.text_BKS.shape[-1])
        lengths_R = jnp.repeat(self.lengths_B + state.num_steps, K)
        # Normalized over all ids, as in scoring, also those that are never generated.
        norm_R1 = jax.nn.logsumexp(logits_RV, axis=1, keepdims=True)
        # Repetition makes logits worse, as in greedy decoding, but log-probabilities
        # of several beams, as transformers does.
        scores_RV = logits_RV - (0 if K == 1 else norm_R1)
        scores_RV = penalize_repetition(
            scores_RV[:, : len(self.is_stop_V)],
            text_RS,
            lengths_R,
            penalty=self.constraints.repetition_penalty,
        )
        log_probs_RV = apply_constraints(
            scores_RV - (norm_R1 if K == 1 else 0),
            constraints=self.constraints,
            text_BS=text_RS,
            lengths_B=lengths_R,
            is_stop_V=self.is_stop_V,
            num_steps=state.num_steps,
            max_tokens=self.max_tokens,
        )
        if self.renormalize:
            log_probs_RV = jax.nn.log_softmax(log_probs_RV)
        shape_BK = running.log_probs_BK.shape
        return running.log_probs_BK[..., None] + log_probs_RV.reshape(*shape_BK, -1)

    def _choose(self, state: _SearchState, totals_BKV: Array) -> _RunningBeams:
        """Return the K most probable extended texts of each prompt."""
        B, K, V = totals_BKV.shape
        log_probs_BK, indices_BK = _top_k(totals_BKV.reshape(B, K * V), k=K)
        parents_BK, tokens_BK = jnp.divmod(indices_BK, V)
        text_BKS = _take(state.running.text_BKS, parents_BK)
        lengths_B = self.lengths_B + state.num_steps
        text_BKS = text_BKS.at[jnp.arange(B), :, lengths_B].set(tokens_BK)
        return _RunningBeams(text_BKS, log_probs_BK, tokens_BK, parents_BK)

    def _finish(
        self,
        finished: _FinishedBeams,
        best: _RunningBeams,
        ends_BK: Array,
        num_steps: Array,
    ) -> _FinishedBeams:
        """Return the K best of the texts finished before and in this step."""
        scores_BK = best.log_probs_BK / self._norm(num_steps)
        new = _FinishedBeams(
            best.text_BKS,
            best.log_probs_BK,
            jnp.full_like(finished.lengths_BK, num_steps),
            jnp.where(ends_BK, scores_BK, -jnp.inf),
        )
        both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), finished, new)
        _, order_BK = _top_k(both.scores_BK, k=self.num_beams)
        return jax.tree.map(lambda x: _take(x, order_BK), both)

    def _norm(self, length: Array) -> Array:
        return length.astype(jnp.float32) ** self.length_penalty


def _search(
    model: Model,
    params: Params,
    prompts: PromptState,
    is_stop_V: Array,
    max_tokens: Array,
    length_penalty: Array,
    *,
    num_beams: int,
    **static: Any,
) -> _FinishedBeams:
    """Search from all prompts at once, in one loop on the device."""
    search = _SearchStep(
        lengths_B=prompts.lengths_B,
        is_stop_V=is_stop_V,
        max_tokens=max_tokens,
        length_penalty=length_penalty,
        num_beams=num_beams,
        **static,
    )

    def step(carry: tuple[_SearchState, Any]) -> tuple[_SearchState, Any]:
        state, decode_state = carry
        running = state.running
        decode_state = decode_state.take(running.parents_BK)
        positions_R = jnp.repeat(search.lengths_B + state.num_steps - 1, num_beams)
        logits_RV, decode_state = model.decode_step(
            params, running.tokens_BK.reshape(-1), positions_R, decode_state
        )
        return search.advance(state, logits_RV), decode_state

    state = search.init(sharding.constrain(prompts.text_BS, "batch", "length"))
    logits_RV = jnp.repeat(prompts.logits_BV, num_beams, axis=0)
    decode_state = prompts.decode_state.take(state.running.parents_BK)
    carry = (search.advance(state, logits_RV), decode_state)
    state, _ = jax.lax.while_loop(lambda c: search.is_running(c[0]), step, carry)
    return sharding.replicate(state.finished)


def _top_k(x_BN: Array, *, k: int) -> tuple[Array, Array]:
    """Return the k largest of each row, and their indices, (B, K)."""
    return sharding.map_row_shards(functools.partial(jax.lax.top_k, k=k), x_BN)


def _take(x: Array, beams_BK: Array) -> Array:
    """Select beams of each row: (B, J, ...) -> (B, K, ...)."""
    indices = beams_BK.reshape(*beams_BK.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, indices, axis=1)
