"""Attention of recurrent decoders to the states of an encoder.

B batch, R rows of queries, T queries, S places of the source, M memory, H hidden,
A attention.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.nn.linear import Linear
from lmjax.nn.recurrent.scan import preload_kernel
from lmjax.parallel.sharding import constrain
from lmjax.types import Array

# From queries (B, T, H) to the float32 scores (B, T, S) of the places of a source.
Scores = Callable[[Array], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What an encoder has left of sources, and the keys that find it.

    There may be several rows of queries for each row, side by side, such as the beams
    of a search.
    """

    states_BSM: Array
    keys_BSA: Array
    real_BS: Array  # false where there is padding


class Additive(nnx.Module):
    """v . tanh(W query + U state), of Bahdanau et al. 2015."""

    def __init__(self, key: Array, hidden_dim: int, *, memory_dim: int) -> None:
        keys, dims = jax.random.split(key, 3), {"mlp": hidden_dim}
        self.query = Linear(keys[0], {"embed": hidden_dim}, dims, bias=False)
        self.key = Linear(keys[1], {"embed": memory_dim}, dims, bias=False)
        self.score = Linear(keys[2], dims, {"features": 1}, bias=False)

    def scores(self, memory: Memory) -> Scores:
        """Return what scores the places of a memory."""
        keys_BSA = memory.keys_BSA
        query = preload_kernel(self.query, keys_BSA.dtype)
        score = preload_kernel(self.score, keys_BSA.dtype)

        def scores(query_BTH: Array) -> Array:
            q_BTA = query(query_BTH).astype(keys_BSA.dtype)
            both_BTSA = jnp.tanh(q_BTA[:, :, None] + keys_BSA[:, None])
            return score(both_BTSA)[..., 0]

        # Else training would keep what is of every step and place, (B, T, S, A).
        return jax.checkpoint(scores)


class General(nnx.Module):
    """query W state, of Luong et al. 2015."""

    def __init__(self, key: Array, hidden_dim: int, *, memory_dim: int) -> None:
        dims = {"embed": memory_dim}, {"mlp": hidden_dim}
        self.key = Linear(key, *dims, bias=False)

    def scores(self, memory: Memory) -> Scores:
        """Return what scores the places of a memory."""
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
    """Return a memory of an encoder's states: its keys are made here, once."""
    keys_BSA = constrain(attention.key(states_BSM), "batch", "length", "mlp")
    return Memory(states_BSM, keys_BSA, real_BS)


def attend(query_RTH: Array, memory: Memory, *, scores: Scores) -> Array:
    """Return the mean of a source's places for each query, float32 (R, T, M).

    They are weighed by the softmax of their scores, in float32.
    """
    num_rows, dtype = len(memory.states_BSM), memory.states_BSM.dtype
    # Beams of one source are queries of one row, which is read once for all.
    query_BTH = query_RTH.reshape(num_rows, -1, query_RTH.shape[-1])
    lowest = jnp.finfo(jnp.float32).min
    real_B1S = memory.real_BS[:, None]
    weights_BTS = jax.nn.softmax(jnp.where(real_B1S, scores(query_BTH), lowest))
    context_BTM = jnp.einsum(
        "BTS,BSM->BTM",
        weights_BTS.astype(dtype),
        memory.states_BSM,
        preferred_element_type=jnp.float32,
    )
    return context_BTM.reshape(*query_RTH.shape[:2], -1)
