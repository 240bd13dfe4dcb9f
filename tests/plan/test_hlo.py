"""What is read from the text of compiled programs, against what can be counted."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmjax.plan.collectives import find_collectives
from lmjax.plan.hlo import Module
from lmjax.plan.products import product_flops
from lmjax.plan.traffic import measure_work

SIZES = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()[:8]).reshape(2, 2, 2), tuple(SIZES))


def compiled(function, *shapes):
    return Module(jax.jit(function).lower(*shapes).compile().as_text())


def test_products_in_loops_count_as_often_as_they_run():
    x, w = jnp.zeros((8, 16)), jnp.zeros((5, 3, 16, 16))

    def body(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)

    module = compiled(lambda x, w: jax.lax.scan(body, x, w)[0], x, w)
    assert product_flops(module) == {"f32": 2 * 8 * 16 * 16 * 15}
    assert module.num_unknown_loops == 0


@pytest.mark.parametrize(
    ("axes", "kind", "sent"),
    [
        (("data",), "all-reduce", 64),
        (("fsdp", "tensor"), "all-reduce", 96),
        (("data", "tensor"), "all-reduce", 96),
        (("tensor",), "all-gather", 32),
        (("data", "fsdp", "tensor"), "all-gather", 7 * 8),
    ],
)
def test_collectives_are_told_by_axis_and_bytes(mesh, axes, kind, sent):
    spec = PartitionSpec(axes)

    def function(x):
        if kind == "all-reduce":
            return jax.lax.psum(x, axes)
        return jax.lax.all_gather(x, axes, tiled=True)

    size = 16 * math.prod(SIZES[axis] for axis in axes)
    size = size if kind == "all-reduce" else 16
    shape = jax.ShapeDtypeStruct(
        (size,), jnp.float32, sharding=NamedSharding(mesh, spec)
    )
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False
    )
    (found,) = find_collectives(compiled(mapped, shape), SIZES)
    assert (found.kind, found.axes, found.count) == (kind, axes, 1)
    assert found.bytes == sent


WRITTEN = """HloModule m, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%all-reduce-scatter (p: f32[8]) -> f32[2] {
  %p = f32[8] parameter(0)
  %all-reduce = f32[8]{0} all-reduce(%p), channel_id=5, replica_groups=GROUPS, \
use_global_device_ids=true, to_apply=%sum
  %zero = s32[] constant(0)
  ROOT %slice = f32[2]{0} dynamic-slice(%all-reduce, %zero), dynamic_slice_sizes={2}
}

%body (t: (s32[], f32[8], f32[2])) -> (s32[], f32[8], f32[2]) {
  %t = (s32[], f32[8], f32[2]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %x = f32[8] get-tuple-element(%t), index=1
  %scattered = f32[2] fusion(%x), kind=kCustom, calls=%all-reduce-scatter
  ROOT %out = (s32[], f32[8], f32[2]) tuple(%next, %x, %scattered)
}

%condition (t: (s32[], f32[8], f32[2])) -> pred[] {
  %t = (s32[], f32[8], f32[2]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[2] {
  %x = f32[8] parameter(0)
  %zero = s32[] constant(0)
  %none = f32[2] constant({0, 0})
  %start = (s32[], f32[8], f32[2]) tuple(%zero, %x, %none)
  %loop = (s32[], f32[8], f32[2]) while(%start), condition=%condition, body=%body
  ROOT %result = f32[2] get-tuple-element(%loop), index=2
}
"""


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", ("fsdp", "tensor")),
        ("mesh['a'=8] {'a':(1)4}", ("data", "fsdp")),
        ("mesh['a'=8] {'a':(2)4}", ("fsdp", "tensor")),
        ("[2,4]<=[8]", ("fsdp", "tensor")),
        ("[2,4]<=[4,2]T(1,0)", ("data", "fsdp")),
        ("{{0,1,4,5},{2,3,6,7}}", ("data", "tensor")),
    ],
)
def test_groups_are_read_however_they_are_written(groups, axes):
    """And a loop without a count by its counter, which here goes in twos."""
    module = Module(WRITTEN.replace("GROUPS", groups))
    (found,) = find_collectives(module, SIZES)
    assert (found.kind, found.axes, found.count) == ("reduce-scatter", axes, 6)
    assert found.bytes == 6 * 32 * 3 / 4


def test_slices_of_a_stack_are_read_once():
    """A loop over layers reads each layer's weights, not all of them each time."""
    w, x = jnp.zeros((64, 32, 32)), jnp.zeros((4, 32))
    module = compiled(
        lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0], x, w
    )
    work = measure_work(module, flops={"f32": 1e12}, bandwidth=1e9)
    assert w.nbytes <= work.bytes <= 4 * w.nbytes
    assert work.seconds >= work.bytes / 1e9
