"""Recurrent layers against PyTorch, and their states at documents and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmjax.nn.recurrent.layers import CELLS, Recurrent

DIM, HIDDEN, LAYERS = 5, 7, 2
SHAPE = (3, 9)


def make(cell, *, bidirectional=False, seed=0, **options):
    """Return layers with random parameters, biases included."""
    options = {"cell": cell, "dim": DIM, "hidden_dim": HIDDEN, **options}
    options |= {"num_layers": LAYERS, "bidirectional": bidirectional}
    module = Recurrent(jax.random.key(0), **options)
    rng = np.random.default_rng(seed)
    draw = lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), jnp.float32)
    graphdef, state = nnx.split(module)
    return nnx.merge(graphdef, jax.tree.map(draw, nnx.to_pure_dict(state)))


def inputs(seed=1, shape=SHAPE):
    """Return the inputs of rows of one text each, their positions and segments."""
    x = np.random.default_rng(seed).standard_normal((*shape, DIM))
    positions = np.broadcast_to(np.arange(shape[1]), shape)
    layout = {"positions_BT": positions, "segments_BT": np.ones(shape, int)}
    return np.float32(x), jax.tree.map(jnp.asarray, layout)


def random_state(module, rows=SHAPE[0]):
    rng = np.random.default_rng(2)
    zeros = module.init_state(rows)
    return {n: np.float32(rng.standard_normal(zeros[n].shape)) for n in zeros}


def like_torch(module):
    """Return PyTorch's module with the same parameters."""
    torch = pytest.importorskip("torch", reason="the reference is not installed")
    theirs = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
    both = len(module.directions) == 2
    reference = theirs[module.cell](
        DIM, HIDDEN, LAYERS, batch_first=True, bidirectional=both
    )
    for layer in range(LAYERS):
        for name, suffix in zip(module.directions, ("", "_reverse"), strict=False):
            ours = getattr(module, f"{name}_{layer}")
            for part, linear in (("ih", ours.input), ("hh", ours.hidden)):
                kernel = np.asarray(linear.kernel[...])
                weight = kernel.reshape(len(kernel), -1).T
                bias = np.asarray(linear.bias[...]).reshape(-1)
                at = f"_{part}_l{layer}{suffix}"
                getattr(reference, f"weight{at}").data[:] = torch.tensor(weight)
                getattr(reference, f"bias{at}").data[:] = torch.tensor(bias)
    return torch, reference


def torch_state(torch, state):
    """Return a state as PyTorch has it: layers first; an LSTM's is two arrays."""
    parts = [torch.tensor(np.swapaxes(state[name], 0, 1).copy()) for name in state]
    return tuple(parts) if len(parts) == 2 else parts[0]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", list(CELLS))
def test_layers_match_pytorch(cell, bidirectional):
    """Outputs, last states, and rows that end before others."""
    module = make(cell, bidirectional=bidirectional)
    torch, reference = like_torch(module)
    x, layout = inputs()
    lengths = np.array([9, 4, 6])
    real = np.arange(SHAPE[1]) < lengths[:, None]
    layout["segments_BT"] = jnp.asarray(real, jnp.int32)
    layout["positions_BT"] += 1  # they continue from a state
    state = random_state(module)
    y, after = module(x, **layout, state=state)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(x), torch.tensor(lengths), batch_first=True, enforce_sorted=False
    )
    with torch.no_grad():
        out, last = reference(packed, torch_state(torch, state))
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(out, batch_first=True)
    np.testing.assert_allclose(np.asarray(y)[real], expected.numpy()[real], atol=1e-5)
    last = last if isinstance(last, tuple) else (last,)
    for name, theirs in zip(after, last, strict=True):
        ours = np.swapaxes(after[name], 0, 1)
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)


@pytest.mark.parametrize("cell", list(CELLS))
def test_gradients_match_pytorch(cell):
    module = make(cell)
    torch, reference = like_torch(module)
    x, layout = inputs()
    grads = jax.grad(lambda x: (module(x, **layout)[0] ** 2).sum())(jnp.asarray(x))
    expected = torch.tensor(x, requires_grad=True)
    (reference(expected)[0] ** 2).sum().backward()
    np.testing.assert_allclose(grads, expected.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("cell", list(CELLS))
def test_scanned_is_step_by_step(cell):
    module = make(cell)
    x, layout = inputs()
    whole, last = module(x, **layout, state=random_state(module))
    # As tokens of decoding come: one at a time, none of them the first.
    state, seen = random_state(module), []
    layout["positions_BT"] += 1
    unbroken, _ = module(x, **layout, state=state)
    for t in range(SHAPE[1]):
        here = {name: array[:, t : t + 1] for name, array in layout.items()}
        y, state = module(x[:, t : t + 1], **here, state=state)
        seen.append(y)
    np.testing.assert_allclose(np.concatenate(seen, 1), unbroken, atol=1e-6)
    assert np.abs(whole - unbroken).max() > 0.01, "position 0 forgets the state"
    assert all(np.isfinite(part).all() for part in last.values())


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", list(CELLS))
def test_texts_of_a_row_are_independent(cell, bidirectional):
    module = make(cell, bidirectional=bidirectional)
    x, _ = inputs(shape=(2, 11))
    lengths = [4, 1, 5]
    segments = np.repeat([1, 2, 3, 0], [*lengths, 1])[None].repeat(2, 0)
    positions = np.concatenate([np.arange(n) for n in (*lengths, 1)])[None].repeat(2, 0)
    packed, last = module(
        x, positions_BT=jnp.asarray(positions), segments_BT=jnp.asarray(segments)
    )
    start = 0
    for length in lengths:
        own, after = module(
            x[:, start : start + length],
            positions_BT=jnp.arange(length)[None].repeat(2, 0),
            segments_BT=jnp.ones((2, length), int),
        )
        np.testing.assert_allclose(packed[:, start : start + length], own, atol=1e-6)
        start += length
    forward = slice(None, None, 1 + bidirectional)
    for name in last:  # padding after the last text has left its state alone
        np.testing.assert_allclose(
            last[name][:, forward], after[name][:, forward], atol=1e-6
        )


@pytest.mark.slow
def test_padding_at_the_end_is_not_read_backwards():
    module = make("lstm", bidirectional=True)
    x, layout = inputs()
    alone, state = module(x[:, :6], **{n: a[:, :6] for n, a in layout.items()})
    layout["segments_BT"] = layout["segments_BT"].at[:, 6:].set(0)
    padded, after = module(x, **layout)
    np.testing.assert_allclose(padded[:, :6], alone, atol=1e-6)
    for name in state:
        np.testing.assert_allclose(after[name], state[name], atol=1e-6)


@pytest.mark.parametrize("variational", [False, True])
def test_dropout_is_drawn_at_each_step_or_once(variational):
    module = make("gru", dropout=0.5, variational=variational)
    x = jnp.ones((4, 6, 64))
    kept = np.asarray(module.drop(x, jax.random.key(0)))
    assert set(np.unique(kept)) == {0.0, 2.0}
    same = (kept == kept[:, :1]).all()
    assert same == variational
    assert (kept[0] != kept[1]).any(), "rows differ"
    np.testing.assert_array_equal(module.drop(x, None), x)


def test_dropout_lies_between_layers_and_only_with_a_key():
    module, plain = make("rnn", dropout=0.5), make("rnn")
    x, layout = inputs()
    np.testing.assert_array_equal(module(x, **layout)[0], plain(x, **layout)[0])
    _, state = module(x, **layout, key=jax.random.key(0))
    _, expected = plain(x, **layout)
    first, second = (state["hidden"][:, i] for i in range(2))
    np.testing.assert_array_equal(first, expected["hidden"][:, 0])
    assert np.abs(second - expected["hidden"][:, 1]).max() > 0.01


def test_outputs_have_the_dtype_of_the_input_and_states_are_float32():
    module = make("lstm")
    x, layout = inputs()
    y, state = module(jnp.asarray(x, jnp.bfloat16), **layout)
    exact, _ = module(x, **layout)
    assert y.dtype == jnp.bfloat16
    assert {part.dtype for part in state.values()} == {jnp.dtype("float32")}
    assert np.abs(np.float32(y) - exact).mean() < 0.02
