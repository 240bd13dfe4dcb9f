"""From an encoder to a decoder, where both are recurrent.

B batch, S places of the source, H hidden, L layers.
"""

import jax.numpy as jnp
from flax import nnx

from lmjax.model_config import RecurrentEncoderDecoderConfig
from lmjax.nn.linear import Linear
from lmjax.nn.recurrent import CELLS, State
from lmjax.nn.source_attention import Memory
from lmjax.types import Array


class Bridge(nnx.Module):
    """A decoder's first states: tanh layers of an encoder's last hidden states.

    Those are the last layer's at the two ends of a source: of its forward direction at
    the last place, of its backward one at the first. There is a layer for each state
    (and cell) of each of the decoder's layers.
    """

    def __init__(self, key: Array, config: RecurrentEncoderDecoderConfig) -> None:
        self.names = CELLS[config.cell].names
        num_states = len(self.names) * config.num_layers
        outputs = {"layers": num_states, "mlp": config.hidden_dim}
        inputs = {"embed": 2 * config.hidden_dim}
        self.states = Linear(key, inputs, outputs, bias=True)

    def __call__(self, memory: Memory) -> State:
        """Return the states (B, L, H) in which the texts of these sources begin."""
        real_BS = memory.real_BS
        last_B = jnp.max(jnp.where(real_BS, jnp.arange(real_BS.shape[1]), 0), axis=1)
        places = last_B, jnp.argmax(real_BS, axis=1)
        halves = jnp.split(memory.states_BSM, 2, axis=-1)
        ends = [
            jnp.take_along_axis(half_BSH, place_B[:, None, None], axis=1)[:, 0]
            for half_BSH, place_B in zip(halves, places, strict=True)
        ]
        states = jnp.tanh(self.states(jnp.concatenate(ends, axis=-1)))
        parts = jnp.split(states.astype(jnp.float32), len(self.names), axis=1)
        return dict(zip(self.names, parts, strict=True))
