"""Recurrent decoders with attention to a source.

B batch, T length, S source tokens, D dim, G gates, H hidden, L layers, M memory.

With h, the last layer's hidden state, before a step and h' after it:

  Bahdanau      fed = attend(h);  h' = step(x + U fed);  out = tanh(W [fed; h'; input])
  Luong         h' = step(x);  out = tanh(W [attend(h'); h'])
  InputFeeding  h' = step(x + U fed);  out = tanh(W [attend(h'); h']), the next fed

where x is the input's part of the first layer's gates. Products that no step depends on
are computed outside of the loop, for all steps at once.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import RecurrentEncoderDecoderConfig
from lmjax.nn.linear import Linear
from lmjax.nn.recurrent.attention import Additive, General, Memory, attend
from lmjax.nn.recurrent.layers import CELLS, Recurrent, State
from lmjax.nn.recurrent.scan import preload_kernel, scan_rows
from lmjax.parallel.sharding import constrain
from lmjax.types import Array


class Bridge(nnx.Module):
    """A decoder's initial states: tanh layers over an encoder's last hidden states.

    The input is the last encoder layer's forward state at the last token of the source
    and its backward state at the first. There is one tanh layer for each state (hidden
    and cell) of each of the decoder's layers.
    """

    def __init__(self, key: Array, config: RecurrentEncoderDecoderConfig) -> None:
        self.names = CELLS[config.cell].names
        num_states = len(self.names) * config.num_layers
        outputs = {"layers": num_states, "mlp": config.hidden_dim}
        inputs = {"embed": 2 * config.hidden_dim}
        self.states = Linear(key, inputs, outputs, bias=True)

    def __call__(self, memory: Memory) -> State:
        """Return the initial states (B, L, H) for these sources."""
        real_BS = memory.real_BS
        last_B = jnp.max(jnp.where(real_BS, jnp.arange(real_BS.shape[1]), 0), axis=1)
        ends = last_B, jnp.argmax(real_BS, axis=1)  # forward, backward
        halves = jnp.split(memory.states_BSM, 2, axis=-1)
        last = [
            jnp.take_along_axis(half_BSH, index_B[:, None, None], axis=1)[:, 0]
            for half_BSH, index_B in zip(halves, ends, strict=True)
        ]
        states = jnp.tanh(self.states(jnp.concatenate(last, axis=-1)))
        parts = jnp.split(states.astype(jnp.float32), len(self.names), axis=1)
        return dict(zip(self.names, parts, strict=True))


class Bahdanau(nnx.Module):
    """Bahdanau et al. 2015; out is a tanh layer, as in Sennrich et al. 2017."""

    def __init__(self, key: Array, config: RecurrentEncoderDecoderConfig) -> None:
        c, keys, memory_dim = config, jax.random.split(key, 4), 2 * config.hidden_dim
        self.fed_dim = memory_dim
        self.layers = _layers(keys[0], c)
        self.attention = Additive(keys[1], c.hidden_dim, memory_dim=memory_dim)
        self.fed = _input_feeding(keys[2], c, fed_dim=self.fed_dim)
        self.out = _output_layer(
            keys[3], c, num_inputs=memory_dim + c.hidden_dim + c.dim
        )

    def __call__(
        self,
        x_BTD: Array,
        memory: Memory,
        *,
        real_BT: Array,
        state: State,
        key: Array | None,
    ) -> tuple[Array, State]:
        """Return the outputs (B, T, D), and the state after the last step."""
        layers = make_layers_step(self.layers, dtype=x_BTD.dtype)
        scores = self.attention.scores(memory)
        dtype, fed = x_BTD.dtype, preload_kernel(self.fed, x_BTD.dtype)

        def step(state: State, x_BGH: Array, keep: Array) -> State:
            query_B1H = state["hidden"][:, -1:]
            context_BM = attend(query_B1H, memory, scores=scores)[:, 0]
            new = layers(x_BGH + fed(context_BM), state, keep)
            return {**new, "fed": context_BM}

        def emit(state: State) -> tuple[Array, Array]:
            return state["fed"].astype(dtype), state["hidden"][:, -1].astype(dtype)

        seen, state = scan_rows(
            step,
            _inputs(self.layers, x_BTD, key=key),
            real_BT=real_BT,
            state=state,
            emit=emit,
        )
        return jnp.tanh(self.out(jnp.concatenate([*seen, x_BTD], axis=-1))), state


class Luong(nnx.Module):
    """Luong et al. 2015: global attention with the score "general"."""

    fed_dim = 0

    def __init__(self, key: Array, config: RecurrentEncoderDecoderConfig) -> None:
        c, keys, memory_dim = config, jax.random.split(key, 3), 2 * config.hidden_dim
        self.layers = _layers(keys[0], c)
        self.attention = General(keys[1], c.hidden_dim, memory_dim=memory_dim)
        self.out = _output_layer(keys[2], c, num_inputs=memory_dim + c.hidden_dim)

    def __call__(
        self,
        x_BTD: Array,
        memory: Memory,
        *,
        real_BT: Array,
        state: State,
        key: Array | None,
    ) -> tuple[Array, State]:
        """Return the outputs (B, T, D), and the state after the last step."""
        h_BTH, state = self.layers(
            x_BTD,
            positions_BT=jnp.ones_like(real_BT, jnp.int32),  # it continues from a state
            segments_BT=real_BT,
            state=state,
            key=key,
        )
        scores = self.attention.scores(memory)
        context_BTM = attend(h_BTH, memory, scores=scores)
        seen = context_BTM.astype(h_BTH.dtype), h_BTH
        return jnp.tanh(self.out(jnp.concatenate(seen, axis=-1))), state


class InputFeeding(Luong):
    """Luong et al. 2015, section 3.3: each step also reads the last step's output."""

    def __init__(self, key: Array, config: RecurrentEncoderDecoderConfig) -> None:
        super().__init__(key, config)
        self.fed_dim = config.dim
        self.fed = _input_feeding(
            jax.random.fold_in(key, 3), config, fed_dim=self.fed_dim
        )

    def __call__(
        self,
        x_BTD: Array,
        memory: Memory,
        *,
        real_BT: Array,
        state: State,
        key: Array | None,
    ) -> tuple[Array, State]:
        """Return the outputs (B, T, D), and the state after the last step."""
        layers = make_layers_step(self.layers, dtype=x_BTD.dtype)
        scores = self.attention.scores(memory)
        fed, out = (preload_kernel(part, x_BTD.dtype) for part in (self.fed, self.out))

        def step(state: State, x_BGH: Array, keep: Array) -> State:
            new = layers(x_BGH + fed(state["fed"]), state, keep)
            h_B1H = new["hidden"][:, -1:]
            context_B1M = attend(h_B1H, memory, scores=scores)
            seen_BH = jnp.concatenate([context_B1M, h_B1H], axis=-1)[:, 0]
            return {**new, "fed": jnp.tanh(out(seen_BH))}

        return scan_rows(
            step,
            _inputs(self.layers, x_BTD, key=key),
            real_BT=real_BT,
            state=state,
            emit=lambda state: state["fed"].astype(x_BTD.dtype),
        )


AttentionDecoder = Bahdanau | Luong


def make_attention_decoder(
    key: Array, config: RecurrentEncoderDecoderConfig
) -> AttentionDecoder:
    """Build the decoder layers of `config.attention` and `config.input_feeding`."""
    if config.attention == "bahdanau":
        return Bahdanau(key, config)
    return (InputFeeding if config.input_feeding else Luong)(key, config)


def make_layers_step(layers: Recurrent, *, dtype: jnp.dtype) -> Callable[..., State]:
    """Return the function of one step of all layers, for a loop that also attends.

    Its arguments are the input's part of the first layer's gates (B, G, H), the state,
    and dropout factors for the outputs of all layers but the last, (B, L - 1, H) or
    None; it returns the new state. Products are computed in `dtype`.
    """
    cell = CELLS[layers.cell]
    stack = layers.stack("forward")
    hidden = [preload_kernel(layer.hidden, dtype) for layer in stack]
    inputs = [preload_kernel(layer.input, dtype) for layer in stack[1:]]

    def step(x_BGH: Array, state: State, keep_BLH: Array | None) -> State:
        after: list[State] = []
        for i, product in enumerate(hidden):
            if i:
                below_BH = after[-1]["hidden"]
                if keep_BLH is not None:
                    below_BH = below_BH * keep_BLH[:, i - 1]
                x_BGH = inputs[i - 1](below_BH)
            own = {name: state[name][:, i] for name in cell.names}
            after.append(cell.step(x_BGH, product(own["hidden"]), own))
        return {name: jnp.stack([s[name] for s in after], 1) for name in cell.names}

    return step


def _inputs(
    layers: Recurrent, x_BTD: Array, *, key: Array | None
) -> tuple[Array, Array | None]:
    """Return the inputs of all steps: parts of gates, and dropout factors."""
    x_BTGH = layers.stack("forward")[0].input(x_BTD)
    x_BTGH = constrain(x_BTGH, "batch", "length", "gates", "mlp")
    keep_BTLH = None
    if key is not None and layers.num_layers > 1:
        ones_BTH = jnp.ones((*x_BTD.shape[:2], layers.hidden_dim), jnp.float32)
        keys = [jax.random.fold_in(key, i) for i in range(1, layers.num_layers)]
        keep_BTLH = jnp.stack([layers.drop(ones_BTH, key) for key in keys], axis=2)
    return x_BTGH, keep_BTLH


def _layers(key: Array, config: RecurrentEncoderDecoderConfig) -> Recurrent:
    c = config
    return Recurrent(
        key,
        cell=c.cell,
        dim=c.dim,
        hidden_dim=c.hidden_dim,
        num_layers=c.num_layers,
        dropout=c.dropout,
        variational=c.variational_dropout,
    )


def _input_feeding(
    key: Array, config: RecurrentEncoderDecoderConfig, *, fed_dim: int
) -> Linear:
    """Return the map from the fed vector to its part of the first layer's gates."""
    gates = {"gates": CELLS[config.cell].num_gates, "mlp": config.hidden_dim}
    # As if the fed vector were a part of the layer's input.
    scale = math.sqrt(fed_dim / (3 * config.hidden_dim))
    return Linear(key, {"embed": fed_dim}, gates, bias=False, scale=scale)


def _output_layer(
    key: Array, config: RecurrentEncoderDecoderConfig, *, num_inputs: int
) -> Linear:
    return Linear(key, {"embed": num_inputs}, {"features": config.dim}, bias=False)
