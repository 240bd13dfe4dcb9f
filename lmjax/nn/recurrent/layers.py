"""Recurrent layers: vanilla RNN, LSTM and GRU, any number, in one direction or both.

B batch, T length, D dim, G gates, H hidden, L layers (times directions).

Equations, order of the gates and both biases are those of torch.nn.{RNN, LSTM, GRU}.
With x = W_x input + b_x and h = W_h hidden + b_h, split into one part for each gate:

  rnn   hidden' = tanh(x + h)
  lstm  i, f, g, o = x + h;  cell' = sigmoid(f) cell + sigmoid(i) tanh(g)
        hidden' = sigmoid(o) tanh(cell')
  gru   r, z = sigmoid(x + h);  n = tanh(x_n + r h_n);  hidden' = (1 - z) n + z hidden
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.nn.linear import Linear
from lmjax.nn.param import dropout
from lmjax.nn.recurrent.scan import preload_kernel, scan_rows
from lmjax.parallel.sharding import constrain
from lmjax.types import Array

# "hidden" and, for an LSTM, "cell": float32, (B, H) of a layer, (B, L, H) of a stack.
State = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A recurrent cell: its gates, the names of its state, and one step."""

    num_gates: int
    names: tuple[str, ...]  # of the arrays of its state
    step: Callable[[Array, Array, State], State]  # from x, h (B, G, H) and the state


def _rnn(x_BGH: Array, h_BGH: Array, state: State) -> State:
    """Elman 1990."""
    return {"hidden": jnp.tanh(x_BGH + h_BGH)[:, 0]}


def _lstm(x_BGH: Array, h_BGH: Array, state: State) -> State:
    """Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000."""
    i, f, g, o = jnp.moveaxis(x_BGH + h_BGH, 1, 0)
    cell = jax.nn.sigmoid(f) * state["cell"] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return {"hidden": jax.nn.sigmoid(o) * jnp.tanh(cell), "cell": cell}


def _gru(x_BGH: Array, h_BGH: Array, state: State) -> State:
    """Cho et al. 2014, with the reset gate applied after the product."""
    r, z = jnp.moveaxis(jax.nn.sigmoid(x_BGH[:, :2] + h_BGH[:, :2]), 1, 0)
    n = jnp.tanh(x_BGH[:, 2] + r * h_BGH[:, 2])
    return {"hidden": (1.0 - z) * n + z * state["hidden"]}


CELLS = {
    "rnn": Cell(1, ("hidden",), _rnn),
    "lstm": Cell(4, ("hidden", "cell"), _lstm),
    "gru": Cell(3, ("hidden",), _gru),
}


class Layer(nnx.Module):
    """One cell applied along the rows, with one product for all of its gates."""

    def __init__(self, key: Array, cell: str, *, dim: int, hidden_dim: int) -> None:
        keys = jax.random.split(key)
        gates = {"gates": CELLS[cell].num_gates, "mlp": hidden_dim}
        # The variance of PyTorch's numbers: uniform in +- 1 / sqrt(hidden_dim).
        scale = math.sqrt(dim / (3 * hidden_dim))
        self.cell = cell
        self.input = Linear(keys[0], {"embed": dim}, gates, bias=True, scale=scale)
        self.hidden = Linear(
            keys[1], {"embed": hidden_dim}, gates, bias=True, scale=3**-0.5
        )

    def __call__(
        self,
        x_BTD: Array,
        *,
        starts_BT: Array,
        real_BT: Array,
        state: State,
        reverse: bool = False,
    ) -> tuple[Array, State]:
        """Return the hidden states (B, T, H), and the state after the last step.

        Args:
          x_BTD: inputs; their part of the gates is one product for all steps.
          starts_BT: true where a text begins: the state is reset to zeros.
          real_BT: false at padding, which changes no state.
          state: before the first step.
          reverse: step from the end of the row to its beginning.
        """
        dtype, cell = x_BTD.dtype, CELLS[self.cell]
        x_BTGH = constrain(self.input(x_BTD), "batch", "length", "gates", "mlp")
        hidden = preload_kernel(self.hidden, dtype)

        def step(state: State, x_BGH: Array, start_B: Array) -> State:
            state = {n: jnp.where(start_B[:, None], 0.0, s) for n, s in state.items()}
            return cell.step(x_BGH.astype(jnp.float32), hidden(state["hidden"]), state)

        return scan_rows(
            step,
            (x_BTGH, starts_BT),
            real_BT=real_BT,
            state=state,
            emit=lambda state: state["hidden"].astype(dtype),
            reverse=reverse,
        )


class Recurrent(nnx.Module):
    """A stack of layers, in one direction or both.

    The parameters of layers are not stacked, as the first may have another input size.
    The outputs of both directions are concatenated: (B, T, 2 H). In a state a layer's
    backward direction follows its forward one, as in PyTorch.
    """

    def __init__(
        self,
        key: Array,
        *,
        cell: str,
        dim: int,
        hidden_dim: int,
        num_layers: int,
        bidirectional: bool = False,
        dropout: float = 0.0,
        variational: bool = False,
    ) -> None:
        directions = ("forward", "backward")[: 1 + bidirectional]
        self.cell, self.hidden_dim = cell, hidden_dim
        self.num_layers, self.directions = num_layers, directions
        self.dropout, self.variational = dropout, variational
        for layer in range(num_layers):
            width = hidden_dim * len(directions) if layer else dim
            for i, name in enumerate(directions):
                own = jax.random.fold_in(key, layer * len(directions) + i)
                module = Layer(own, cell, dim=width, hidden_dim=hidden_dim)
                setattr(self, f"{name}_{layer}", module)

    def __call__(
        self,
        x_BTD: Array,
        *,
        positions_BT: Array,
        segments_BT: Array,
        state: State | None = None,
        key: Array | None = None,
    ) -> tuple[Array, State]:
        """Return the last layer's hidden states, and the state after the last step.

        Args:
          x_BTD: embedded tokens.
          positions_BT: int32; a text begins at each 0, where the state is reset. A row
            that continues from a state therefore begins with another position.
          segments_BT: int32; 0 is padding, which changes no state.
          state: (B, L, H) before the first token; None: zeros.
          key: for the dropout between layers; none without it.
        """
        if state is None:
            state = self.init_state(len(x_BTD))
        begins_BT, real_BT = positions_BT == 0, segments_BT > 0
        # Backwards a text begins at its last token.
        ends_BT = jnp.pad(begins_BT[:, 1:], ((0, 0), (0, 1)))
        starts = {"forward": begins_BT, "backward": ends_BT}
        states: list[State] = []
        for layer in range(self.num_layers):
            if layer and key is not None:
                x_BTD = self.drop(x_BTD, jax.random.fold_in(key, layer))
            outputs = []
            for name in self.directions:
                index = len(states)
                before = {part: s[:, index] for part, s in state.items()}
                h_BTH, after = getattr(self, f"{name}_{layer}")(
                    x_BTD,
                    starts_BT=starts[name],
                    real_BT=real_BT,
                    state=before,
                    reverse=name == "backward",
                )
                outputs.append(h_BTH)
                states.append(after)
            x_BTD = constrain(
                jnp.concatenate(outputs, axis=-1), "batch", "length", "embed"
            )
        return x_BTD, {part: jnp.stack([s[part] for s in states], 1) for part in state}

    def stack(self, direction: str) -> list[Layer]:
        """Return the layers of one direction, from the input to the output."""
        return [getattr(self, f"{direction}_{i}") for i in range(self.num_layers)]

    def init_state(self, batch_size: int) -> State:
        """Return the state of zeros, before the first token."""
        num = self.num_layers * len(self.directions)
        shape = (batch_size, num, self.hidden_dim)
        return zero_state(self.cell, shape)

    def drop(self, x_BTD: Array, key: Array | None) -> Array:
        """Apply the dropout of inputs, outputs and connections between layers.

        Elements are drawn at each step (Zaremba et al. 2014), or if `variational` once
        for all steps of a row (Gal and Ghahramani 2016, here without dropout of the
        recurrent connection: the locked dropout of Merity et al. 2018).
        """
        if not self.variational:
            return dropout(x_BTD, rate=self.dropout, key=key)
        once_B1D = jnp.ones_like(x_BTD[:, :1])
        return x_BTD * dropout(once_B1D, rate=self.dropout, key=key)


def zero_state(cell: str, shape: tuple[int, ...]) -> State:
    """Return a cell's state of zeros."""
    return {name: jnp.zeros(shape, jnp.float32) for name in CELLS[cell].names}
