"""The tables' arithmetic, the accounts, and the way to the devices and back."""

import numpy as np
import pytest

from lmjax.config.experiment import MeshConfig
from lmjax.errors import UserError
from lmjax.interop.layout import Row, Table, linear, norm
from lmjax.interop.tensors import Spec, open_tensors, write_tensors
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
    rows=(
        Row("embed.embedding", "m.wte.weight"),
        *norm("blocks.norm", "m.h.{layer}.LayerNorm"),
        Row("blocks.query.kernel", "m.h.{layer}.qk.weight", "conv1d", 1, 0, 2),
        Row("blocks.query.bias", "m.h.{layer}.qk.bias", "flat", 1, 0, 2),
        Row("blocks.key.kernel", "m.h.{layer}.qk.weight", "conv1d", 1, 1, 2),
        Row("blocks.key.bias", "m.h.{layer}.qk.bias", "flat", 1, 1, 2),
        *linear("blocks.out", "m.h.{layer}.out", num_inputs=2),
        Row("head.bias", "bias", "row"),
    ),
    prefix="m.",
    ignorable=(r"inv_freq$",),
    copies={"lm_head.weight": "m.wte.weight"},
)


@pytest.fixture
def theirs():
    """Return their tensors as torch would have them, and what they are of ours."""
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


def expected(files):
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


def read(files, directory, mesh=None, table=TABLE):
    specs = {name: Spec(a.dtype, a.shape) for name, a in files.items()}
    directory.mkdir(exist_ok=True)
    write_tensors(directory, specs, files.values())
    mesh = mesh or sharding.make_mesh(MeshConfig(), devices=jax.devices()[:1])
    shardings = sharding.param_shardings(AXES, SHAPES, mesh)
    params = import_params(open_tensors(directory), table, SHAPES, shardings)
    jax.tree.map(lambda x, s: _same_sharding(x, s), params, shardings)
    return params


def _same_sharding(array, sharding):
    assert array.sharding.is_equivalent_to(sharding, array.ndim)
    assert array.dtype == np.float32


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    "mesh", [(1, 1, 1), (2, 2, 2), (1, 4, 1), (1, 2, 4)], ids=lambda mesh: str(mesh)
)
def test_import_and_export_on_meshes(mesh, theirs, tmp_path):
    data, fsdp, tensor = mesh
    devices = jax.devices()[: data * fsdp * tensor]
    config = MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
    params = read(theirs, tmp_path, sharding.make_mesh(config, devices=devices))
    equal(params, expected(theirs))
    specs, arrays = export_tensors(params, TABLE, dtype=np.float32)
    back = dict(zip(specs, arrays, strict=True))
    assert back.keys() == theirs.keys()
    for name, array in back.items():
        assert specs[name].shape == array.shape
        np.testing.assert_array_equal(array, theirs[name])


def test_each_device_reads_its_own_slice_alone(theirs, tmp_path, monkeypatch):
    from lmjax.interop.tensors import Tensors

    cut = []
    original = Tensors.read

    def spy(self, name, index=()):
        array = original(self, name, index)
        cut.append((name, array.shape))
        return array

    monkeypatch.setattr(Tensors, "read", spy)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    read(theirs, tmp_path, mesh)
    # Four parts, of which data holds copies that are read once.
    assert [s for n, s in cut if n == "m.h.1.out.weight"] == [(4, 4)] * 4
    assert [s for n, s in cut if n == "m.h.1.qk.weight"] == [(4, 4)] * 8


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_become_float32(dtype, theirs, tmp_path):
    import ml_dtypes

    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    files = {name: array.astype(dtype) for name, array in theirs.items()}
    rounded = {name: array.astype(np.float32) for name, array in files.items()}
    equal(read(files, tmp_path), expected(rounded))


def test_float16_refuses_what_it_cannot_hold(theirs, tmp_path):
    theirs["m.h.1.out.weight"][0, 0] = 1e6
    params = read(theirs, tmp_path)
    _, arrays = export_tensors(params, TABLE, dtype=np.float16)
    with pytest.raises(UserError, match=r"m.h.1.out.weight: .* float16"):
        list(arrays)


def test_names_without_prefix_and_old_endings(theirs, tmp_path):
    files = {
        name.removeprefix("m.").replace("LayerNorm.weight", "LayerNorm.gamma"): array
        for name, array in theirs.items()
    }
    files["rotary.inv_freq"] = np.ones(3, np.float32)
    equal(read(files, tmp_path), expected(theirs))


def test_a_copy_must_be_one(theirs, tmp_path):
    theirs["lm_head.weight"] = theirs["m.wte.weight"].copy()
    equal(read(theirs, tmp_path / "a"), expected(theirs))
    theirs["lm_head.weight"][11, 3] += 1
    with pytest.raises(UserError, match=r"'lm_head.weight' differs from 'm.wte"):
        read(theirs, tmp_path / "b")
    kept = theirs.pop("m.wte.weight")
    theirs["lm_head.weight"] = kept  # alone, it stands for the original
    params = read(theirs, tmp_path / "c")
    np.testing.assert_array_equal(params["embed"]["embedding"], kept)


def test_accounts(theirs, tmp_path):
    def refused(match, **changes):
        files = {n: a for n, a in (theirs | changes).items() if a is not None}
        with pytest.raises(UserError, match=match) as error:
            read(files, tmp_path)
        assert "\n" not in str(error.value)

    refused("1 tensors .m.h.2.qk.bias. that .* missing", **{"m.h.2.qk.bias": None})
    missing = {f"m.h.{i}.{name}": None for i in range(3) for name in ("qk.bias",)}
    refused("4 tensors .bias, m.h.0.qk.bias, m.h.1.qk.bias, ...", **missing, bias=None)
    extra = np.ones(2, np.float32)
    refused("1 tensors .m.h.3.qk.bias. are no part", **{"m.h.3.qk.bias": extra})
    refused(
        r"'m.h.0.out.weight' has shape \[8, 9\]; config.json implies \[8, 8\]",
        **{"m.h.0.out.weight": np.ones((8, 9), np.float32)},
    )
    refused(
        "'m.wte.weight' is of dtype int64", **{"m.wte.weight": np.ones((12, 8), int)}
    )
    refused("holds both 'm.wte.weight' and 'wte.weight'", **{"wte.weight": extra})
