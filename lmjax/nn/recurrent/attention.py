"""Attention of recurrent decoders to the states of an encoder.

B batch, R rows of queries (B, or B times beams), T queries, S source tokens, M size of
the memory, H hidden, A attention.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.nn import intermediates
from lmjax.nn.linear import Linear
from lmjax.nn.recurrent.scan import preload_kernel
from lmjax.parallel.sharding import constrain
from lmjax.types import Array

# From queries (B, T, H) to float32 scores (B, T, S) of the source tokens.
Scores = Callable[[Array], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """The encoded source: the encoder's states, and their keys for attention.

    Several rows of queries may attend to each row: the beams of a search, side by side.
    """

    states_BSM: Array
    keys_BSA: Array
    real_BS: Array  # false at padding


class Additive(nnx.Module):
    """v . tanh(W query + U state), of Bahdanau et al. 2015."""

    def __init__(self, key: Array, hidden_dim: int, *, memory_dim: int) -> None:
        keys, dims = jax.random.split(key, 3), {"mlp": hidden_dim}
        self.query = Linear(keys[0], {"embed": hidden_dim}, dims, bias=False)
        self.key = Linear(keys[1], {"embed": memory_dim}, dims, bias=False)
        self.score = Linear(keys[2], dims, {"features": 1}, bias=False)

    def scores(self, memory: Memory) -> Scores:
        """Return the function that scores the tokens of a memory."""
        keys_BSA = memory.keys_BSA
        query = preload_kernel(self.query, keys_BSA.dtype)
        score = preload_kernel(self.score, keys_BSA.dtype)

        def scores(query_BTH: Array) -> Array:
            q_BTA = query(query_BTH).astype(keys_BSA.dtype)
            both_BTSA = jnp.tanh(q_BTA[:, :, None] + keys_BSA[:, None])
            return score(both_BTSA)[..., 0]

        # Otherwise training would store an array (B, T, S, A).
        return jax.checkpoint(scores)


class General(nnx.Module):
    """query W state, of Luong et al. 2015."""

    def __init__(self, key: Array, hidden_dim: int, *, memory_dim: int) -> None:
        dims = {"embed": memory_dim}, {"mlp": hidden_dim}
        self.key = Linear(key, *dims, bias=False)

    def scores(self, memory: Memory) -> Scores:
        """Return the function that scores the tokens of a memory."""
        keys_BSA = memory.keys_BSA
        return lambda query_BTH: jnp.einsum(
            "BTA,BSA->BTS",
            query_BTH.astype(keys_BSA.dtype),
            keys_BSA,
            preferred_element_type=jnp.float32,
        )


SourceAttention = Additive | General


def make_memory(
    attention: SourceAttention, states_BSM: Array, real_BS: Array
) -> Memory:
    """Return the memory of an encoder's states; its keys are computed here, once."""
    keys_BSA = constrain(attention.key(states_BSM), "batch", "length", "mlp")
    return Memory(states_BSM, keys_BSA, real_BS)


def attend(query_RTH: Array, memory: Memory, *, scores: Scores) -> Array:
    """Return each query's weighted mean of the encoder's states, float32 (R, T, M).

    The weights are the softmax of the scores, in float32.
    """
    num_rows, dtype = len(memory.states_BSM), memory.states_BSM.dtype
    # Beams become queries of one row, so that its memory is read once for all.
    query_BTH = query_RTH.reshape(num_rows, -1, query_RTH.shape[-1])
    lowest = jnp.finfo(jnp.float32).min
    real_B1S = memory.real_BS[:, None]
    weights_BTS = jax.nn.softmax(jnp.where(real_B1S, scores(query_BTH), lowest))
    intermediates.record("cross_attention", weights_BTS)
    context_BTM = jnp.einsum(
        "BTS,BSM->BTM",
        weights_BTS.astype(dtype),
        memory.states_BSM,
        preferred_element_type=jnp.float32,
    )
    return context_BTM.reshape(*query_RTH.shape[:2], -1)
