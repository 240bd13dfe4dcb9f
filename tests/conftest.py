"""Eight CPU devices, a persistent compilation cache, and tiny models.

jax is imported only by the fixtures that need it: the tests of lmjax/data run without.
"""

import functools
import os
import signal
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

# A shell starts what runs in its background with these ignored; tests send them.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiled programs run for milliseconds here: fast compilation matters more. It is most
# of the suite's time; without XLA's new emitters it takes less than half as long.
FLAGS = ["--xla_force_host_platform_device_count=8"]
JAXLIB = [int(part) for part in metadata.version("jaxlib").split(".")[:2]]
if JAXLIB < [0, 11]:  # later ones abort at a flag that they do not know
    FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
CACHE = Path(tempfile.gettempdir()) / f"lmjax-test-cache-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

SIZE = {"vocab_size": 64, "dim": 32, "num_layers": 2, "num_heads": 4, "max_length": 64}
ARCHITECTURES = {
    "gpt2": {
        **SIZE,
        "position": "learned",
        "norm": "layernorm",
        "activation": "gelu_tanh",
        "gated": False,
        "use_bias": True,
    },
    "llama": {**SIZE, "num_kv_heads": 2, "mlp_dim": 48, "tie_embeddings": False},
    "gemma": {
        **SIZE,
        "num_layers": 3,
        "num_kv_heads": 2,
        "head_dim": 16,
        "norm": "rmsnorm1p",
        "norm_place": "both",
        "scale_embeddings": True,
        "activation": "gelu",
        "qk_norm": True,
        "window": 5,
        "global_every": 2,
        "attention_scale": 0.3,
        "attention_softcap": 4.0,
        "logit_softcap": 6.0,
    },
    "bert": {
        **SIZE,
        "kind": "encoder",
        "position": "learned",
        "position_offset": 2,
        "norm": "layernorm",
        "norm_place": "post",
        "embedding_norm": True,
        "activation": "gelu",
        "gated": False,
        "use_bias": True,
        "head_bias": True,
        "num_token_types": 2,
        "pooler": True,
        "pair_head": True,
    },
    "t5": {
        **SIZE,
        "kind": "encoder_decoder",
        "num_encoder_layers": 3,
        "position": "relative",
        "relative_buckets": 8,
        "relative_max_distance": 12,
        "attention_scale": 1.0,
        "activation": "gelu_tanh",
        "start_id": 1,
        "scale_logits": True,
    },
    "bart": {
        **SIZE,
        "kind": "encoder_decoder",
        "position": "sinusoidal",
        "norm": "layernorm",
        "norm_place": "post",
        "embedding_norm": True,
        "scale_embeddings": True,
        "activation": "gelu",
        "gated": False,
        "use_bias": True,
        "head_bias": True,
    },
}
for cell in ("rnn", "lstm", "gru"):
    ARCHITECTURES[cell] = {
        "kind": "recurrent",
        "vocab_size": 64,
        "dim": 32,
        "hidden_dim": 24,
        "num_layers": 2,
        "max_length": 64,
        "cell": cell,
        "tie_embeddings": False,
        "head_bias": True,
    }
ARCHITECTURES["bilstm"] = {
    **ARCHITECTURES["lstm"],
    "bidirectional": True,
    "num_token_types": 2,
    "num_labels": 5,
}
for attention, cell in (("bahdanau", "gru"), ("luong", "lstm")):
    ARCHITECTURES[attention] = {
        "kind": "recurrent_encoder_decoder",
        "vocab_size": 64,
        "dim": 32,
        "hidden_dim": 24,
        "num_layers": 2,
        "num_encoder_layers": 1,
        "max_length": 64,
        "cell": cell,
        "attention": attention,
        "input_feeding": attention == "luong",
        "head_bias": True,
        "start_id": 1,
    }
DECODERS = ("gpt2", "llama", "gemma")
RECURRENT = ("rnn", "lstm", "gru")
ATTENTIVE = ("bahdanau", "luong")


def pytest_addoption(parser):
    parser.addoption(
        "--regenerate",
        action="store_true",
        help="write the files of tests/golden/ again",
    )
    parser.addoption(
        "--slow", action="store_true", help="also run the tests that are marked slow"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes long; --slow or its name runs it")


LONGEST = ("test_documented_commands.py", "parallel", "tasks", "training", "interop")
LONGEST += ("inference", "tools", "cli", "models")


def pytest_collection_modifyitems(config, items):
    """Leave out slow tests, unless they are asked for or named.

    Begin with the files that take longest: no process is left alone with one.
    """
    named = any("::" in argument for argument in config.args)
    if not (named or config.getoption("--slow")):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    room = lambda item: item.path.relative_to(Path(__file__).parent).parts[0]
    items.sort(key=lambda item: (*LONGEST, room(item)).index(room(item)))


@pytest.fixture(params=DECODERS)
def architecture(request):
    return request.param


@pytest.fixture(params=DECODERS + RECURRENT)
def causal(request):
    return request.param


@pytest.fixture(params=DECODERS + RECURRENT + ATTENTIVE)
def writer(request):
    return request.param


@pytest.fixture(scope="session")
def make_config():
    """Return a complete config with a tiny model: make_config("gpt2", dropout=0.1)."""
    from lmjax.config.experiment import parse

    def make(architecture="llama", *, overrides=(), **model):
        is_causal = architecture in DECODERS + RECURRENT
        source = "python_stdlib" if is_causal else "none"
        sections = {
            "batch_size": 8,
            "model": {**ARCHITECTURES[architecture], **model},
            "tokenizer": {"kind": "bytes"},
            "data": {"source": source, "length": 12},
        }
        return parse(sections, overrides)

    return make


@pytest.fixture(scope="session")
def tiny(make_config):
    """Return a function: tiny("gpt2", scan_layers=True) builds a model for the CPU."""
    from lmjax import models

    @functools.cache
    def make(architecture="llama", **changes):
        config = make_config(architecture, **changes)
        return models.build(config.model, platform="cpu")

    return make


@pytest.fixture(scope="session")
def random_params():
    """Return random parameters, none of them 0 or 1, with clearly different logits."""
    import jax

    @functools.cache
    def make(model, seed=0):
        rng = np.random.default_rng(seed)

        def draw(path, leaf):
            mean = float(path[-1].key == "scale")
            noise = rng.standard_normal(leaf.shape, np.float32)
            return jax.numpy.asarray(mean + np.float32(0.25) * noise)

        return jax.tree_util.tree_map_with_path(draw, model.shapes)

    return make


@pytest.fixture(scope="session")
def apply():
    """Return `model.apply`, jitted once for each model."""
    import jax

    return functools.cache(lambda model: jax.jit(model.apply))


@pytest.fixture(scope="session")
def overfit():
    """Return a function that trains on one batch until it is known by heart."""

    def run(train, state, batch, *, num_steps):
        """Return the last state; the loss of each target must have fallen below 0.1."""
        for number in range(num_steps):
            state, metrics = train(state, batch)
            if number % 5 == 4 and metrics["loss"][0] / metrics["loss"][1] < 0.02:
                break
        assert metrics["loss"][0] / metrics["loss"][1] < 0.1
        return state

    return run


@pytest.fixture(scope="session")
def make_batch():
    """Return a function that makes packed rows of documents of random lengths."""

    def make(*, rows=8, length=12, vocab_size=64, seed=0, source=False):
        rng = np.random.default_rng(seed)
        integers = np.zeros((rows, length), np.int32)
        batch = {"segments": integers.copy(), "positions": integers.copy()}
        for name in ("tokens", "targets"):
            batch[name] = rng.integers(0, vocab_size, integers.shape, dtype=np.int32)
        for row in range(rows):
            start, segment = 0, 1
            while start < length - rng.integers(0, 4):
                stop = min(start + rng.integers(2, 9), length)
                batch["segments"][row, start:stop] = segment
                batch["positions"][row, start:stop] = np.arange(stop - start)
                start, segment = stop, segment + 1
        if source:
            for name in ("segments", "positions"):
                batch[f"source_{name}"] = batch[name].copy()
            batch["source"] = batch["targets"][:, ::-1].copy()
        scored = rng.random(integers.shape) < rng.random((rows, 1))
        batch["weights"] = (scored & (batch["segments"] > 0)).astype(np.float32)
        return batch

    return make


@pytest.fixture(scope="session")
def one_text():
    """Return a batch in which each row of token ids is one document."""

    def make(tokens):
        tokens = np.asarray(tokens, np.int32)
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        return {
            "tokens": tokens,
            "segments": np.ones_like(tokens),
            "positions": positions.astype(np.int32),
        }

    return make


@pytest.fixture(scope="session")
def assert_close():
    """Compare trees leaf by leaf, relative to each leaf's largest element.

    A leaf that is zero up to rounding, such as the gradient of a key bias, is compared
    with the rounding error of the largest element of the tree.
    """
    import jax

    def check(a, b, *, rtol=1e-5):
        largest = [float(np.abs(y).max()) for y in jax.tree.leaves(b)]
        floor = np.finfo(np.float32).eps * max(largest)
        leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        for (x, y), scale in zip(leaves, largest, strict=True):
            atol = max(rtol * scale, floor)
            np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)

    return check


@pytest.fixture
def golden(request):
    """Compare an object with tests/golden/NAME.json; `pytest --regenerate` writes it.

    The file has one line for each entry of the object.
    """
    import json

    def check(name, value):
        path = Path(__file__).parent / "golden" / f"{name}.json"
        if request.config.getoption("--regenerate"):
            lines = (f" {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        assert path.exists(), f"{path}: write it with pytest --regenerate"
        assert json.loads(path.read_text()) == json.loads(json.dumps(value))

    return check


@pytest.fixture
def watch_leaves(monkeypatch):
    """Return a function that makes a config note which of its leaves are read.

    It returns the set of all leaves, as (class, name), and the set of those read, which
    fills. To copy, compare, hash, print or save a section is not to read its leaves.
    """
    import dataclasses
    import sys

    read = set()

    def sections(config):
        for value in vars(config).values():
            if dataclasses.is_dataclass(value):
                yield from sections(value)
        yield config

    def is_generic(frame):
        file = frame.f_code.co_filename
        return file in (dataclasses.__file__, "<string>")  # generated methods

    def watch(config):
        leaves = set()
        for kind in {type(section) for section in sections(config)}:
            names = {field.name for field in dataclasses.fields(kind)}
            leaves |= {(kind.__name__, name) for name in names}
            monkeypatch.setattr(kind, "__getattribute__", noting(kind, names))
        return leaves, read

    def noting(kind, names):
        def get(self, name):
            if name in names and not is_generic(sys._getframe(1)):
                read.add((kind.__name__, name))
            return object.__getattribute__(self, name)

        return get

    return watch
