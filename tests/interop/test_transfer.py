"""Tables, the matching of tensors, and their import and export on meshes."""

import dataclasses

import numpy as np
import pytest

from lmjax.config.experiment import MeshConfig
from lmjax.errors import UserError
from lmjax.interop.safetensors import (
    Spec,
    TensorFiles,
    open_tensors,
    write_tensors,
)
from lmjax.interop.table import Entry, Table, linear, norm
from lmjax.interop.transfer import export_tensors, import_params

jax = pytest.importorskip("jax")
from lmjax.parallel import sharding  # noqa: E402

LAYERS, DIM, HEADS, SIZE = 3, 8, 4, 2
AXES = {
    "embed": {"embedding": ("vocab", "embed")},
    "blocks": {
        "norm": {"scale": ("layers", "norm")},
        "query": {
            "kernel": ("layers", "embed", "heads", "head_dim"),
            "bias": ("layers", "heads", "head_dim"),
        },
        "key": {
            "kernel": ("layers", "embed", "heads", "head_dim"),
            "bias": ("layers", "heads", "head_dim"),
        },
        "out": {"kernel": ("layers", "heads", "head_dim", "embed")},
    },
    "head": {"bias": ("vocab",)},
}
SIZES = {"vocab": 12, "embed": DIM, "layers": LAYERS, "norm": DIM}
SIZES |= {"heads": HEADS, "head_dim": SIZE}
SHAPES = jax.tree.map(
    lambda names: jax.ShapeDtypeStruct(tuple(SIZES[n] for n in names), np.float32),
    AXES,
    is_leaf=lambda x: isinstance(x, tuple),
)
TABLE = Table(
    entries=(
        Entry("embed.embedding", "m.wte.weight"),
        *norm("blocks.norm", "m.h.{layer}.LayerNorm"),
        Entry("blocks.query.kernel", "m.h.{layer}.qk.weight", "conv1d", 1, 0, 2),
        Entry("blocks.query.bias", "m.h.{layer}.qk.bias", "flat", 1, 0, 2),
        Entry("blocks.key.kernel", "m.h.{layer}.qk.weight", "conv1d", 1, 1, 2),
        Entry("blocks.key.bias", "m.h.{layer}.qk.bias", "flat", 1, 1, 2),
        *linear("blocks.out", "m.h.{layer}.out", num_inputs=2),
        Entry("head.bias", "bias", "unsqueezed"),
    ),
    prefix="m.",
    ignored=(r"inv_freq$",),
    copies={"lm_head.weight": "m.wte.weight"},
)


@pytest.fixture
def tensors():
    """Return the tensors of a file in the layouts of torch."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    files = {"m.wte.weight": draw(12, DIM), "bias": draw(1, 12)}
    for i in range(LAYERS):
        files[f"m.h.{i}.LayerNorm.weight"] = draw(DIM)
        files[f"m.h.{i}.qk.weight"] = draw(DIM, 2 * HEADS * SIZE)
        files[f"m.h.{i}.qk.bias"] = draw(2 * HEADS * SIZE)
        files[f"m.h.{i}.out.weight"] = draw(DIM, HEADS * SIZE)
    return files


def stack(files, name, make):
    return np.stack([make(files[f"m.h.{i}.{name}"]) for i in range(LAYERS)])


def expected_params(files):
    """Return the parameters that the tensors hold."""
    half, heads = HEADS * SIZE, (HEADS, SIZE)
    return {
        "embed": {"embedding": files["m.wte.weight"]},
        "blocks": {
            "norm": {"scale": stack(files, "LayerNorm.weight", lambda w: w)},
            "query": {
                "kernel": stack(
                    files, "qk.weight", lambda w: w[:, :half].reshape(DIM, *heads)
                ),
                "bias": stack(files, "qk.bias", lambda b: b[:half].reshape(heads)),
            },
            "key": {
                "kernel": stack(
                    files, "qk.weight", lambda w: w[:, half:].reshape(DIM, *heads)
                ),
                "bias": stack(files, "qk.bias", lambda b: b[half:].reshape(heads)),
            },
            "out": {
                "kernel": stack(files, "out.weight", lambda w: w.T.reshape(*heads, DIM))
            },
        },
        "head": {"bias": files["bias"][0]},
    }


def load(files, directory, mesh=None, table=TABLE):
    specs = {name: Spec(a.dtype, a.shape) for name, a in files.items()}
    directory.mkdir(exist_ok=True)
    write_tensors(directory, specs, files.values())
    mesh = mesh or sharding.make_mesh(MeshConfig(), devices=jax.devices()[:1])
    shardings = sharding.param_shardings(AXES, SHAPES, mesh)
    params = import_params(open_tensors(directory), table, SHAPES, shardings)
    jax.tree.map(lambda x, s: _check_leaf(x, s), params, shardings)
    return params


def _check_leaf(array, sharding):
    assert array.sharding.is_equivalent_to(sharding, array.ndim)
    assert array.dtype == np.float32


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    "mesh", [(1, 1, 1), (2, 2, 2), (1, 4, 1), (1, 2, 4)], ids=lambda mesh: str(mesh)
)
def test_import_and_export_on_meshes(mesh, tensors, tmp_path):
    data, fsdp, tensor = mesh
    devices = jax.devices()[: data * fsdp * tensor]
    config = MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
    params = load(tensors, tmp_path, sharding.make_mesh(config, devices=devices))
    assert_equal(params, expected_params(tensors))
    specs, arrays = export_tensors(params, TABLE, dtype=np.float32)
    back = dict(zip(specs, arrays, strict=True))
    assert back.keys() == tensors.keys()
    for name, array in back.items():
        assert specs[name].shape == array.shape
        np.testing.assert_array_equal(array, tensors[name])


def test_parts_that_alternate_by_head_on_a_mesh(tensors, tmp_path):
    entries = (
        dataclasses.replace(e, num_groups=HEADS) if e.num_parts > 1 else e
        for e in TABLE.entries
    )
    table = dataclasses.replace(TABLE, entries=tuple(entries))
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = load(tensors, tmp_path, mesh, table)
    for part, name in enumerate(("query", "key")):
        by_head = lambda x, part=part: x.reshape(-1, HEADS, 2, SIZE)[:, :, part]
        found = params["blocks"][name]
        kernel, bias = (stack(tensors, f"qk.{n}", by_head) for n in ("weight", "bias"))
        np.testing.assert_array_equal(found["kernel"], kernel)
        np.testing.assert_array_equal(found["bias"], bias[:, 0])
    specs, arrays = export_tensors(params, table, dtype=np.float32)
    assert_equal(dict(zip(specs, arrays, strict=True)), tensors)


def test_each_device_reads_only_its_slice(tensors, tmp_path, monkeypatch):
    slices = []
    original = TensorFiles.read

    def spy(self, name, index=()):
        array = original(self, name, index)
        slices.append((name, array.shape))
        return array

    monkeypatch.setattr(TensorFiles, "read", spy)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    load(tensors, tmp_path, mesh)
    # Four slices; the replicas of the data axis share them.
    assert [s for n, s in slices if n == "m.h.1.out.weight"] == [(4, 4)] * 4
    assert [s for n, s in slices if n == "m.h.1.qk.weight"] == [(4, 4)] * 8


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_are_cast_to_float32(dtype, tensors, tmp_path):
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    files = {name: array.astype(dtype) for name, array in tensors.items()}
    rounded = {name: array.astype(np.float32) for name, array in files.items()}
    assert_equal(load(files, tmp_path), expected_params(rounded))


def test_values_beyond_the_range_of_float16(tensors, tmp_path):
    tensors["m.h.1.out.weight"][0, 0] = 1e6
    params = load(tensors, tmp_path)
    _, arrays = export_tensors(params, TABLE, dtype=np.float16)
    with pytest.raises(UserError, match=r"m\.h\.1\.out\.weight: .*float16"):
        list(arrays)


def test_names_without_prefix_and_with_old_suffixes(tensors, tmp_path):
    files = {
        name.removeprefix("m.").replace("LayerNorm.weight", "LayerNorm.gamma"): array
        for name, array in tensors.items()
    }
    files["rotary.inv_freq"] = np.ones(3, np.float32)
    assert_equal(load(files, tmp_path), expected_params(tensors))


def test_copies_must_be_equal(tensors, tmp_path):
    tensors["lm_head.weight"] = tensors["m.wte.weight"].copy()
    assert_equal(load(tensors, tmp_path / "a"), expected_params(tensors))
    tensors["lm_head.weight"][11, 3] += 1
    with pytest.raises(UserError, match=r"'lm_head\.weight' .*'m\.wte\.weight'"):
        load(tensors, tmp_path / "b")
    embedding = tensors.pop("m.wte.weight")
    tensors["lm_head.weight"] = embedding  # used instead of the missing original
    params = load(tensors, tmp_path / "c")
    np.testing.assert_array_equal(params["embed"]["embedding"], embedding)


def test_every_tensor_is_matched(tensors, tmp_path):
    def check_error(match, **changes):
        files = {n: a for n, a in (tensors | changes).items() if a is not None}
        with pytest.raises(UserError, match=match) as error:
            load(files, tmp_path)
        assert "\n" not in str(error.value)

    check_error(r"\(m\.h\.2\.qk\.bias\) missing", **{"m.h.2.qk.bias": None})
    missing = {f"m.h.{i}.qk.bias": None for i in range(3)}
    names = r"4 .*\(bias, m\.h\.0\.qk\.bias, m\.h\.1\.qk\.bias, \.\.\.\) missing"
    check_error(names, **missing, bias=None)
    extra = np.ones(2, np.float32)
    check_error(r"\(m\.h\.3\.qk\.bias\) unexpected", **{"m.h.3.qk.bias": extra})
    check_error(
        r"'m\.h\.0\.out\.weight' .*\[8, 9\].*\[8, 8\]",
        **{"m.h.0.out.weight": np.ones((8, 9), np.float32)},
    )
    check_error(r"'m\.wte\.weight' .*int64", **{"m.wte.weight": np.ones((12, 8), int)})
    check_error("'m.wte.weight' and 'wte.weight'", **{"wte.weight": extra})
