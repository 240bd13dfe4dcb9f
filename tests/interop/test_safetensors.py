"""Reading and writing safetensors files, damaged ones included."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from lmjax.errors import UserError
from lmjax.interop import safetensors
from lmjax.interop.safetensors import Spec, open_tensors, write_tensors

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int64, np.bool_]


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shapes = [(7, 5), (3,), (4, 3, 2), (), (2, 0), (6, 9)]
    return {
        f"t{i}": np.asarray(rng.standard_normal(shape) * 3).astype(dtype)
        for i, (shape, dtype) in enumerate(zip(shapes, DTYPES, strict=True))
    }


def specs(arrays):
    return {name: Spec(a.dtype, a.shape) for name, a in arrays.items()}


def test_round_trip(arrays, tmp_path):
    write_tensors(tmp_path, specs(arrays), arrays.values())
    opened = open_tensors(tmp_path)
    assert opened.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        read = opened.read(name)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_the_reference_implementation_agrees(arrays, tmp_path):
    reference = pytest.importorskip("safetensors.numpy")
    del arrays["t2"]  # bfloat16 is not NumPy's
    write_tensors(tmp_path, specs(arrays), arrays.values())
    for name, read in reference.load_file(tmp_path / "model.safetensors").items():
        np.testing.assert_array_equal(read, arrays[name])
    reference.save_file(arrays, tmp_path / "model.safetensors")
    opened = open_tensors(tmp_path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(opened.read(name), array)


@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_slices(block, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "_BLOCK", block)
    array = np.arange(11 * 6 * 4, dtype=np.float32).reshape(11, 6, 4)
    write_tensors(tmp_path, specs({"a": array}), [array])
    opened = open_tensors(tmp_path)
    whole = slice(None)
    for index in [
        (slice(2, 5),),
        (whole, slice(1, 4)),
        (slice(3, 11), slice(0, 2), slice(1, 3)),
        (slice(4, 4), slice(0, 2)),
        (slice(9, 99), whole, slice(3, None)),
    ]:
        np.testing.assert_array_equal(opened.read("a", index), array[index])


def test_shards(arrays, tmp_path):
    write_tensors(tmp_path, specs(arrays), arrays.values(), shard_bytes=150)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 1
    index = json.loads((tmp_path / safetensors.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays.values())
    opened = open_tensors(tmp_path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(opened.read(name), array)


def test_a_single_file_may_have_any_name(tmp_path):
    one = np.ones((2, 2), np.float32)
    write_tensors(tmp_path, specs({"a": one}), [one])
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    np.testing.assert_array_equal(open_tensors(tmp_path).read("a"), one)
    (tmp_path / "more.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 safetensors files.*\.index\.json"):
        open_tensors(tmp_path)


def file_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def one(**changes):
    fields = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {"a": fields | changes}


BAD = {
    "empty": (b"", "header of"),
    "short": (b"\x05\0\0", "header of"),
    "header longer than the file": (struct.pack("<Q", 99) + b"{}", "header of 99"),
    "huge header": (struct.pack("<Q", 1 << 60) + b"{}", "header of"),
    "no JSON": (file_of(b"{nope"), "damaged header"),
    "no object": (file_of(b"[1]"), "damaged header"),
    "deep": (file_of(b"[" * 100_000), "damaged header"),
    "twice": (file_of(b'{"a": 1, "a": 1}'), "damaged header: duplicate"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "damaged header"),
    "no fields": (file_of({"a": 3}), "tensor 'a': damaged header"),
    "negative size": (file_of(one(shape=[-2]), bytes(8)), "damaged header"),
    "unknown dtype": (file_of(one(dtype="F8_E5M2"), bytes(8)), "dtype F8_E5M2"),
    "shape and bytes": (file_of(one(shape=[3]), bytes(8)), "takes 12 bytes"),
    "a gap": (file_of(one(data_offsets=[4, 12]), bytes(12)), "begins at byte"),
    "truncated": (file_of(one(), bytes(7)), "truncated: "),
    "too long": (file_of(one(), bytes(9)), "1 bytes after the last"),
    "overlap": (
        file_of(one() | {"b": one(data_offsets=[4, 12])["a"]}, bytes(12)),
        "tensor 'b' begins at byte",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_files_are_one_line_errors(case, tmp_path):
    content, message = BAD[case]
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        open_tensors(tmp_path)
    assert "model.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_a_file_truncated_after_it_was_opened(arrays, tmp_path):
    write_tensors(tmp_path, specs(arrays), arrays.values())
    opened = open_tensors(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors: truncated"):
        opened.read("t5")


def test_damaged_indices(arrays, tmp_path):
    write_tensors(tmp_path, specs(arrays), arrays.values(), shard_bytes=150)
    path = tmp_path / safetensors.INDEX
    index = json.loads(path.read_text())
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"x": "gone.st"}}))
    with pytest.raises(UserError, match=r"index\.json: gone\.st .*1 of"):
        open_tensors(tmp_path)
    shard = index["weight_map"]["t0"]
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {"x": shard}}))
    with pytest.raises(UserError, match=f"{shard}: tensor 'x'"):
        open_tensors(tmp_path)
    for bad in ({"a": "../model.safetensors"}, {"a": 3}, "text", None):
        path.write_text(json.dumps({"weight_map": bad}))
        with pytest.raises(UserError, match=r"index\.json: weight_map"):
            open_tensors(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"index\.json:1: not JSON"):
        open_tensors(tmp_path)


def test_other_formats_of_weights(tmp_path):
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        open_tensors(tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(b"")
    with pytest.raises(UserError, match=r"flax_model\.msgpack"):
        open_tensors(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin.*save_pretrained"):
        open_tensors(tmp_path)
