"""SparseGPT: what is left of a matrix makes up for what is pruned.

Frantar and Alistarh 2023. All matrices are pruned beside the inputs that they read in
the whole model, not in one whose earlier layers are pruned already.

L layers, I inputs, O outputs of a matrix, B inputs of a block.
"""

import functools

import jax
import jax.numpy as jnp

from lmjax.compress.masks import keep_in_groups, keep_in_layers
from lmjax.types import Array

BLOCK = 128  # inputs whose weights are chosen at once
DAMP = 0.01  # of the mean of the diagonal, added to it


def solve(
    w_LIO: Array,
    gram_LII: Array,
    *,
    fraction: float,
    keep: int = 0,
    of: int = 0,
) -> Array:
    """Return the weights that are left, each layer by itself.

    Args:
      w_LIO: the weights of a stack of matrices.
      gram_LII: the sums of x x^T over their inputs.
      fraction: of the weights of each block that become 0.
      keep: or of each `of` inputs in a row so many stay.
      of: 0: by fraction.
    """
    one = functools.partial(_solve_layer, fraction=fraction, keep=keep, of=of)
    # One after another: the temporary arrays of a layer are as large as it is.
    return jax.lax.map(lambda pair: one(*pair), (w_LIO, gram_LII))


def _solve_layer(
    w_IO: Array, gram_II: Array, *, fraction: float, keep: int, of: int
) -> Array:
    num_inputs = len(w_IO)
    size = block_size(num_inputs, of)
    upper_II = inverse_factor(gram_II)
    w_IO = jnp.where(jnp.diag(gram_II)[:, None] == 0, 0, w_IO)
    after = jnp.arange(num_inputs)

    def prune_block(i: Array, w_IO: Array) -> Array:
        start = i * size
        rows_BO = jax.lax.dynamic_slice_in_dim(w_IO, start, size)
        factor_BI = jax.lax.dynamic_slice_in_dim(upper_II, start, size)
        factor_BB = jax.lax.dynamic_slice_in_dim(factor_BI, start, size, axis=1)
        scales = jnp.diag(factor_BB)[:, None]
        (mask_BO,) = keep_in_layers([((rows_BO / scales) ** 2)[None]], fraction)
        rows_BO, errors_BO = _prune_rows(rows_BO, factor_BB, mask_BO[0], keep, of)
        rest_BI = jnp.where(after >= start + size, factor_BI, 0)
        w_IO = jax.lax.dynamic_update_slice_in_dim(w_IO, rows_BO, start, axis=0)
        return w_IO - rest_BI.T @ errors_BO

    return jax.lax.fori_loop(0, num_inputs // size, prune_block, w_IO)


def _prune_rows(
    rows_BO: Array, factor_BB: Array, mask_BO: Array, keep: int, of: int
) -> tuple[Array, Array]:
    """Prune the inputs of a block in turn; return them, and the error of each."""
    scales_B = jnp.diag(factor_BB)

    def choose_group(i: Array, rows_BO: Array, mask_BO: Array) -> Array:
        group = jax.lax.dynamic_slice_in_dim(rows_BO, i, of)
        scales = jax.lax.dynamic_slice_in_dim(scales_B, i, of)[:, None]
        mask = keep_in_groups(((group / scales) ** 2)[None], keep=keep, of=of)[0]
        return jax.lax.dynamic_update_slice_in_dim(mask_BO, mask, i, axis=0)

    def prune_row(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        rows_BO, errors_BO, mask_BO = state
        if of:
            mask_BO = jax.lax.cond(
                i % of == 0,
                lambda: choose_group(i, rows_BO, mask_BO),
                lambda: mask_BO,
            )
        left = jnp.where(mask_BO[i], rows_BO[i], 0)
        error = (rows_BO[i] - left) / scales_B[i]
        rows_BO = rows_BO - factor_BB[i][:, None] * error
        return rows_BO.at[i].set(left), errors_BO.at[i].set(error), mask_BO

    state = (rows_BO, jnp.zeros_like(rows_BO), mask_BO)
    rows_BO, errors_BO, _ = jax.lax.fori_loop(0, len(rows_BO), prune_row, state)
    return rows_BO, errors_BO


def inverse_factor(gram_II: Array) -> Array:
    """Return the upper triangular U with U^T U the inverse of the damped matrix.

    An input that is always 0 has a 1 on the diagonal.
    """
    diagonal = jnp.diag(gram_II)
    diagonal = jnp.where(diagonal == 0, 1, diagonal)
    damped = gram_II + jnp.diag(diagonal - jnp.diag(gram_II) + DAMP * diagonal.mean())
    lower = jax.scipy.linalg.cho_factor(damped, lower=True)
    inverse = jax.scipy.linalg.cho_solve(lower, jnp.eye(len(gram_II)))
    return jnp.linalg.cholesky(inverse).T


def block_size(num_inputs: int, of: int = 0) -> int:
    """Return the largest number up to `BLOCK` that divides inputs, in whole groups."""
    step = of or 1
    sizes = range(step, min(max(BLOCK, step), num_inputs) + 1, step)
    return max(size for size in sizes if num_inputs % size == 0)
