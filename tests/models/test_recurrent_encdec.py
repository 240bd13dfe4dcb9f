"""Recurrent encoder-decoders: PyTorch's numbers, packed pairs, dropout, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import tasks
from lmjax.config.experiment import MeshConfig
from lmjax.config.optim import OptimConfig
from lmjax.config.text_task import PrefixLMConfig
from lmjax.errors import UserError
from lmjax.generate.decode import Generator
from lmjax.generate.prompts import pad_sources
from lmjax.generate.sampling import Sampling
from lmjax.parallel import sharding
from lmjax.parallel.batch import put_batch
from lmjax.training import optim, step

TASK = tasks.build(PrefixLMConfig())
VARIANTS = {
    "bahdanau": {},
    "bahdanau_lstm": {"cell": "lstm", "tie_embeddings": False, "num_layers": 1},
    "bahdanau_rnn": {"cell": "rnn", "num_encoder_layers": 2},
    "luong": {},
    "luong_gru": {"cell": "gru", "num_encoder_layers": 3, "tie_embeddings": False},
    "luong_unfed": {"input_feeding": False},
    "luong_unfed_gru": {"input_feeding": False, "cell": "gru", "num_layers": 1},
}


@pytest.fixture
def variant(tiny):
    return lambda name: tiny(name.partition("_")[0], **VARIANTS[name])


@pytest.fixture(params=["bahdanau", "luong", "luong_unfed"])
def model(request, variant):
    return variant(request.param)


def pairs(*, rows=3, seed=0):
    """Return a batch of one pair a row, sources and targets of unequal lengths."""
    rng = np.random.default_rng(seed)
    ids = lambda most: [rng.integers(0, 64, n) for n in rng.integers(1, most, rows)]
    batch = pad_sources(ids(9), shape=(rows, 9))
    target = pad_sources(ids(7), shape=(rows, 7))
    batch |= {"tokens": target["source"], "segments": target["source_segments"]}
    batch |= {"positions": target["source_positions"]}
    weights = np.float32(batch["segments"] > 0)
    return batch | {"targets": rng.integers(0, 64, (rows, 7)), "weights": weights}


class Reference:
    """The same network of PyTorch's cells; attention and bridge written out."""

    def __init__(self, config, shapes):
        self.torch = torch = pytest.importorskip("torch", reason="the reference")
        c, nn, H = config, torch.nn, config.hidden_dim
        self.config, self.names = c, ["hidden", "cell"][: 1 + (c.cell == "lstm")]
        encoders = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
        cells = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
        self.embed = nn.Embedding(c.vocab_size, c.dim)
        self.encoder = encoders[c.cell](
            c.dim, H, c.num_encoder_layers, batch_first=True, bidirectional=True
        )
        additive = c.attention == "bahdanau"
        fed = 2 * H if additive else c.dim * c.input_feeding
        widths = [c.dim + fed] + [H] * (c.num_layers - 1)
        self.cells = [cells[c.cell](width, H) for width in widths]
        self.bridge = nn.Linear(2 * H, len(self.names) * c.num_layers * H)
        linear = functools.partial(nn.Linear, bias=False)
        self.key = linear(2 * H, H)
        self.query, self.score = linear(H, H), linear(H, 1)
        self.out = linear(3 * H + c.dim * additive, c.dim)
        self.head = nn.Linear(c.dim, c.vocab_size)
        self.shapes = shapes

    def weights(self):
        """Yield our name of each parameter, theirs, and which of its columns."""
        c, all_of = self.config, slice(None)
        yield "embed.embedding", self.embed.weight, None
        if not c.tie_embeddings:
            yield "head.embedding", self.head.weight, None
        yield "head.bias", self.head.bias, None
        for layer in range(c.num_encoder_layers):
            for way, suffix in (("forward", ""), ("backward", "_reverse")):
                for part, at in (("input", "ih"), ("hidden", "hh")):
                    ours, theirs = f"encoder.{way}_{layer}.{part}", f"{at}_l{layer}"
                    of = lambda kind, t=theirs, s=suffix: getattr(
                        self.encoder, f"{kind}_{t}{s}"
                    )
                    yield f"{ours}.kernel", of("weight"), all_of
                    yield f"{ours}.bias", of("bias"), None
        for layer, cell in enumerate(self.cells):
            ours = f"decoder.layers.forward_{layer}"
            width = slice(None, c.dim) if layer == 0 else all_of
            yield f"{ours}.input.kernel", cell.weight_ih, width
            yield f"{ours}.input.bias", cell.bias_ih, None
            yield f"{ours}.hidden.kernel", cell.weight_hh, all_of
            yield f"{ours}.hidden.bias", cell.bias_hh, None
        yield "decoder.fed.kernel", self.cells[0].weight_ih, slice(c.dim, None)
        yield "bridge.states.kernel", self.bridge.weight, all_of
        yield "bridge.states.bias", self.bridge.bias, None
        for name in ("key", "query", "score"):
            weight = getattr(self, name).weight
            yield f"decoder.attention.{name}.kernel", weight, all_of
        yield "decoder.out.kernel", self.out.weight, all_of

    def load(self, params):
        """Copy our parameters, and check that each has a place."""
        left = flat(params)
        for name, theirs, columns in self.weights():
            if name not in left:  # of the other attention
                continue
            ours = np.array(left.pop(name))
            if columns is None:
                theirs.data[:] = self.torch.tensor(ours.reshape(theirs.shape))
            else:
                theirs.data[:, columns] = self.torch.tensor(matrix(ours, columns))
        assert not left
        return self

    def gradients(self):
        """Return the gradients by our names, in our shapes."""
        shapes = {name: leaf.shape for name, leaf in flat(self.shapes).items()}
        return {
            name: (
                theirs.grad if columns is None else theirs.grad[:, columns].T
            ).reshape(shapes[name])
            for name, theirs, columns in self.weights()
            if name in shapes
        }

    def attend(self, query, memory, mask):
        torch, keys = self.torch, self.key(memory)
        if self.config.attention == "bahdanau":
            both = torch.tanh(self.query(query)[:, None] + keys)
            scores = self.score(both)[..., 0]
        else:
            scores = (keys @ query[..., None])[..., 0]
        weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)
        return (weights[:, None] @ memory)[:, 0]

    def logits(self, batch):
        torch, c, rnn = self.torch, self.config, self.torch.nn.utils.rnn
        source, tokens = (torch.tensor(batch[n]).long() for n in ("source", "tokens"))
        mask = torch.tensor(batch["source_segments"]) > 0
        packed = rnn.pack_padded_sequence(
            self.embed(source), mask.sum(1), batch_first=True, enforce_sorted=False
        )
        memory, last = self.encoder(packed)
        memory, _ = rnn.pad_packed_sequence(memory, True, total_length=mask.shape[1])
        last = last[0] if c.cell == "lstm" else last
        first = torch.tanh(self.bridge(torch.cat([last[-2], last[-1]], -1)))
        first = first.reshape(len(source), len(self.names), c.num_layers, -1)
        state = [[*part.unbind(1)] for part in first.unbind(1)]
        fed, seen = torch.zeros(len(source), c.dim), []
        for x in self.embed(tokens).unbind(1):
            if c.attention == "bahdanau":
                fed = self.attend(state[0][-1], memory, mask)
            feeds = c.attention == "bahdanau" or c.input_feeding
            below = torch.cat([x, fed], -1) if feeds else x
            for layer, cell in enumerate(self.cells):
                before = tuple(part[layer] for part in state)
                after = cell(below, before if c.cell == "lstm" else before[0])
                after = after if c.cell == "lstm" else (after,)
                for part, new in zip(state, after, strict=True):
                    part[layer] = new
                below = after[0]
            if c.attention == "bahdanau":
                out = torch.tanh(self.out(torch.cat([fed, below, x], -1)))
            else:
                context = self.attend(below, memory, mask)
                fed = out = torch.tanh(self.out(torch.cat([context, below], -1)))
            seen.append(out)
        table = self.embed.weight if c.tie_embeddings else self.head.weight
        return torch.stack(seen, 1) @ table.T + self.head.bias


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
    return {name(path): leaf for path, leaf in leaves}


def matrix(kernel, columns):
    """Return a kernel (inputs, *outputs) as PyTorch has it."""
    return kernel.reshape(len(kernel), -1).T


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_loss_and_gradients_match_pytorch(
    variant, random_params, apply, assert_close, name
):
    """Logits, the loss and the gradient of every parameter, in float32."""
    model = variant(name)
    params, batch = random_params(model), pairs()
    theirs = Reference(model.config, model.shapes).load(params)
    expected, real = theirs.logits(batch), batch["segments"] > 0
    ours = np.asarray(apply(model)(params, batch))
    error = np.abs(ours - expected.detach().numpy())[real]
    assert error.max() < 1e-5
    torch = theirs.torch
    nll = torch.nn.functional.cross_entropy(
        expected[torch.tensor(real)],
        torch.tensor(batch["targets"][real]),
        reduction="sum",
    )
    nll.backward()
    loss = lambda params: TASK.loss(model, params, batch, key=None)[0]
    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert float(value) == pytest.approx(nll.item(), rel=1e-5)
    grads, expected = flat(grads), theirs.gradients()
    assert_close(grads, {name: expected[name].numpy() for name in grads})


def test_padding_does_not_matter(model, random_params, apply):
    """Of the source and of the target, after them and before them."""
    params, batch = random_params(model), pairs()
    expected, real = apply(model)(params, batch), batch["segments"] > 0
    padded = {n: np.pad(x, [(0, 0), (3, 4)]) for n, x in batch.items()}
    found = np.asarray(apply(model)(params, padded))[:, 3:10]
    np.testing.assert_allclose(found[real], expected[real], rtol=1e-5, atol=1e-5)
    assert np.isfinite(found).all()


@pytest.mark.slow
def test_without_its_kernel_input_feeding_changes_nothing(tiny, random_params, apply):
    """Without it, steps are those of the layers by themselves, dropout included."""
    fed, plain = (
        tiny("luong", dropout=0.5, input_feeding=feeding) for feeding in (True, False)
    )
    params = jax.tree.map(lambda x: x, random_params(fed))
    kernel = params["decoder"]["fed"].pop("kernel")
    without = {**params, "decoder": {**params["decoder"]}}
    del without["decoder"]["fed"]
    params["decoder"]["fed"]["kernel"] = 0 * kernel
    key, batch = jax.random.key(0), pairs()
    real = batch["segments"] > 0
    logits = jax.jit(fed.apply)
    found = logits(params, batch, key=key)[real]
    expected = jax.jit(plain.apply)(without, batch, key=key)[real]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    params["decoder"]["fed"]["kernel"] = kernel
    assert np.abs(logits(params, batch, key=key)[real] - expected).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("variational", [False, True])
def test_dropout_is_on_embeddings_between_layers_and_before_the_head(
    tiny, random_params, variational
):
    """On what is embedded, between layers, and before the head; each its own."""
    from lmjax.nn.recurrent import layers

    options = {"dropout": 0.5, "variational_dropout": variational}
    model = tiny("bahdanau", num_encoder_layers=2, **options)
    params, calls = random_params(model), []

    def spy(x, *, rate, key):
        drawn = None if key is None else tuple(jax.random.key_data(key).tolist())
        calls.append((x.shape[1:], rate, drawn))
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "dropout", spy)
        model.hidden(params, pairs(), key=jax.random.key(0))
    source, target = (1, 1) if variational else (9, 7)
    expected = [(source, 32), (source, 48)]
    expected += [(target, 32), (target, 24), (target, 32)]
    assert [shape for shape, *_ in calls] == expected
    assert len({key for *_, key in calls}) == len(calls)


def test_bfloat16_computes_close_to_float32(model, tiny, random_params, apply):
    fields = vars(model.config) | {"dtype": "bfloat16"}
    rounded = tiny(fields["attention"], **{n: fields[n] for n in fields if n != "kind"})
    params, batch = random_params(model), pairs()
    logits = apply(rounded)(params, batch)
    expected = np.asarray(apply(model)(params, batch))
    assert logits.dtype == jnp.float32
    assert np.abs(logits - expected).mean() < 0.03 * np.abs(expected).mean()
    assert jax.eval_shape(rounded.hidden, params, batch).dtype == jnp.bfloat16
    source = {name: batch[name] for name in batch if name.startswith("source")}
    one = np.ones((3, 1), int), np.ones(3, int)
    prefill = functools.partial(rounded.prefill, cache_length=4)
    _, state = jax.eval_shape(prefill, params, *one, source=source)
    assert {x.dtype.name for x in state.layers.values()} == {"float32"}
    assert state.source.keys_BSA.dtype == jnp.bfloat16


@pytest.fixture(scope="module")
def meshes(tiny, random_params):
    """Return the loss and gradients that a mesh computes."""

    @functools.cache
    def run(attention, shape):
        model = tiny(attention)
        sizes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
        devices = jax.devices()[: int(np.prod(shape))]
        mesh = sharding.make_mesh(MeshConfig(**sizes), devices)
        shardings = sharding.param_shardings(model.axes, model.shapes, mesh)
        params = jax.device_put(random_params(model), shardings)
        batch = put_batch(pairs(rows=8), mesh)
        loss = lambda params, batch: TASK.loss(model, params, batch, key=None)[0]
        with jax.set_mesh(mesh):
            found = jax.jit(jax.value_and_grad(loss))(params, batch)
        split = [leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params)]
        return jax.device_get(found), split

    return run


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 2, 2)])
@pytest.mark.parametrize("attention", ["bahdanau", "luong"])
def test_every_mesh_computes_the_same(meshes, assert_close, attention, shape):
    expected, whole = meshes(attention, (1, 1, 1))
    found, replicated = meshes(attention, shape)
    assert_close(found, expected, rtol=1e-5)
    assert all(whole) and sum(replicated) < len(replicated) / 2


@pytest.mark.slow
def test_it_is_trained_to_reverse_eight_texts(model, overfit):
    """And writes them again, one token at a time."""
    rng, num = np.random.default_rng(0), 6
    texts = rng.integers(2, 64, (8, num))
    sources = [row.tolist() for row in texts]
    start = np.full((8, 1), model.config.start_id)
    batch = pad_sources(sources, shape=(8, num))
    target = pad_sources(sources, shape=(8, num))
    batch |= {"segments": target["source_segments"]}
    batch |= {"positions": target["source_positions"], "targets": texts[:, ::-1]}
    batch |= {"tokens": np.hstack([start, texts[:, :0:-1]])}
    batch["weights"] = np.ones((8, num), np.float32)
    options = {"learning_rate": 0.02, "schedule": "constant", "weight_decay": 0.0}
    optimizer = optim.build(OptimConfig(**options), axes=model.axes, num_steps=150)
    parts = {"model": model, "optimizer": optimizer}
    train = functools.partial(step.train_step, task=TASK, num_microbatches=1, **parts)
    start_state = jax.jit(functools.partial(step.init_state, **parts))
    state = start_state(jax.random.key(0))
    state = overfit(jax.jit(train), state, batch, num_steps=150)
    rows = Generator(model).generate(
        state.params,
        start.tolist(),
        sources=sources,
        max_tokens=num,
        sampling=Sampling(temperature=0.0),
        stop_ids=(),
    )
    assert rows == texts[:, ::-1].tolist()


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"input_feeding": True}, "config.model.input_feeding = True: "),
        (
            {"attention": "bahdanu"},
            "config.model.attention = 'bahdanu': must be one of",
        ),
        ({"variational_dropout": True}, "needs config.model.dropout"),
        ({"num_heads": 4}, "config.model.num_heads: no such field"),
        ({"hidden_dim": 25}, "config.model.hidden_dim = 25: must be a multiple of"),
    ],
)
def test_a_mistake_is_named(make_config, model, text):
    with pytest.raises(UserError) as error:
        make_config("bahdanau", overrides=["mesh.tensor=2"], **model)
    assert text in str(error.value) and "\n" not in str(error.value)
