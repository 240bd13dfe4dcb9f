"""Which weights of a matrix stay: masks of scores, exact on any mesh.

A score is higher where a weight matters more. L layers, I inputs, O outputs.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from lmjax.nn.matrices import flatten
from lmjax.types import Array, Axes, Params, named_axes, named_leaves


def choose_weights(
    scores: Params, axes: Axes, *, sparsity: Array | float, scope: str
) -> Params:
    """Return the masks of the weights that stay.

    Args:
      scores: of the weights of hidden matrices, higher where a weight matters more;
        None in place of other parameters.
      axes: of the parameters.
      sparsity: the fraction that does not stay.
      scope: of each matrix ("layer"), or of all together ("model").
    """
    named, names = named_axes(axes), list(named_leaves(scores))
    leaves = jax.tree.leaves(scores)
    keep = {"layer": keep_in_layers, "model": keep_in_model}[scope]
    flat = [flatten(x, named[name]) for name, x in zip(names, leaves, strict=True)]
    masks = [
        mask.reshape(leaf.shape)
        for mask, leaf in zip(keep(flat, sparsity), leaves, strict=True)
    ]
    chosen: Params = jax.tree.unflatten(jax.tree.structure(scores), masks)
    return chosen


def keep_in_layers(scores: Sequence[Array], sparsity: Array | float) -> list[Array]:
    """Return masks that leave out a fraction of each layer's weights.

    Equal scores at the limit all stay, and so does the best weight.

    Args:
      scores: of stacked matrices, (L, I, O) each.
      sparsity: the fraction; it may be traced.
    """
    masks = []
    for score in scores:
        num = score[0].size
        limit = jnp.minimum(jnp.round(sparsity * num).astype(jnp.int32), num - 1)
        keys = _sortable(score)

        def count(bound: Array, keys: Array = keys) -> Array:
            below = keys < bound[:, None, None]
            return jnp.sum(below, axis=(1, 2), dtype=jnp.int32)

        lowest = _lowest_kept(count, limit, shape=(len(score),))
        masks.append(keys >= lowest[:, None, None])
    return masks


def keep_in_model(scores: Sequence[Array], sparsity: Array | float) -> list[Array]:
    """Return masks that leave out a fraction of the weights of all matrices together.

    Otherwise as `keep_in_layers`.
    """
    keys = [_sortable(score) for score in scores]
    num = float(sum(score.size for score in scores))
    # In float32: beyond 2**24 weights to its precision, but without overflow.
    limit = jnp.minimum(jnp.round(jnp.float32(sparsity) * num), num - 1)

    def count(bound: Array) -> Array:
        layers = [jnp.sum(k < bound, axis=(1, 2), dtype=jnp.int32) for k in keys]
        return jnp.sum(jnp.concatenate(layers).astype(jnp.float32))

    lowest = _lowest_kept(count, limit, shape=())
    return [k >= lowest for k in keys]


def keep_in_columns(score: Array, sparsity: float) -> Array:
    """Return the mask that leaves out a fraction of the inputs of each output."""
    num = score.shape[1]
    ranks = _ranks(score)
    return ranks >= min(round(sparsity * num), num - 1)


def keep_in_groups(score: Array, *, keep: int, of: int) -> Array:
    """Return the mask that keeps `keep` of each `of` consecutive inputs (N:M)."""
    num_layers, num_inputs, num_outputs = score.shape
    grouped = score.reshape(num_layers * num_inputs // of, of, num_outputs)
    return (_ranks(grouped) >= of - keep).reshape(score.shape)


def _ranks(score: Array) -> Array:
    """Return the place of each element among those of its column, 0 the lowest."""
    return jnp.argsort(jnp.argsort(score, axis=1), axis=1)


def _sortable(x: Array) -> Array:
    """Return uint32 keys in the order of float32 values."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)


def _lowest_kept(
    count: Callable[[Array], Array], limit: Array, *, shape: tuple[int, ...]
) -> Array:
    """Return the largest key that at most `limit` keys are below.

    Found bit by bit, by counting: to sort would gather a matrix that is split over
    devices, and take a copy of it.
    """

    def set_bit(i: Array, low: Array) -> Array:
        candidate = low | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        return jnp.where(count(candidate) <= limit, candidate, low)

    return jax.lax.fori_loop(0, 32, set_bit, jnp.zeros(shape, jnp.uint32))
