"""GPTQ (Frantar et al. 2023): what rounding one input loses, later inputs make up for.

I inputs of a matrix, B inputs of a block, G groups, O outputs.
"""

import math

import jax
import jax.numpy as jnp

from lmjax.compress.calibrate import LinearInputs
from lmjax.nn import quantized
from lmjax.nn.quantized import Format
from lmjax.types import Array

DAMPING = 0.01  # of the mean of the diagonal, added to it
_BLOCK = (
    128  # inputs after which the rest of the matrix is updated, where no group ends
)


def round_gptq(
    w: Array, num_inputs: int, form: Format, inputs: LinearInputs | None
) -> tuple[Array, Array]:
    """Return the codes and scales of a matrix (*inputs, *outputs).

    The inputs are those of the model before any of its layers was rounded. They are
    rounded in their order; a group's scale is that of its weights when its turn comes.

    Args:
      w: the matrix.
      num_inputs: dimensions of its inputs.
      form: of the weights.
      inputs: with the sum of x x^T.
    """
    assert inputs is not None and inputs.gram_LII is not None
    w_IO = w.reshape(inputs.gram_LII.shape[-1], -1).astype(jnp.float32)
    factor_II, is_dead_I = invert(inputs.gram_LII)
    w_IO = jnp.where(is_dead_I[:, None], 0.0, w_IO)
    size = form.group or math.gcd(len(w_IO), _BLOCK)
    whole_O = quantized.find_scales(w_IO[None], form.name)[0]

    def round_block(w_IO: Array, begin: Array) -> tuple[Array, tuple[Array, Array]]:
        block_BO = jax.lax.dynamic_slice_in_dim(w_IO, begin, size)
        rows_BI = jax.lax.dynamic_slice_in_dim(factor_II, begin, size)
        own_BB = jax.lax.dynamic_slice_in_dim(rows_BI, begin, size, axis=1)
        scale_O = whole_O
        if form.group:
            scale_O = quantized.find_scales(block_BO[None], form.name)[0]
        levels_BO, error_BO = _round_rows(block_BO, own_BB, scale_O, form)
        is_later_I = jnp.arange(len(w_IO)) >= begin + size
        w_IO = w_IO - jnp.where(is_later_I, rows_BI, 0.0).T @ error_BO
        return w_IO, (levels_BO, scale_O)

    begins = jnp.arange(0, len(w_IO), size)
    _, (level_GBO, scale_GO) = jax.lax.scan(round_block, w_IO, begins)
    scale_GO = scale_GO if form.group else whole_O[None]
    return quantized.store(level_GBO, scale_GO, w.shape, num_inputs, form)


def invert(gram_II: Array) -> tuple[Array, Array]:
    """Return the upper factor U of the inverse, U^T U, of a damped sum of x x^T.

    And which inputs were always 0; their weights do not matter.
    """
    diagonal_I = jnp.diagonal(gram_II)
    is_dead_I = diagonal_I == 0.0
    damping = DAMPING * diagonal_I.mean() + 1e-12
    gram_II = gram_II + jnp.diag(jnp.where(is_dead_I, 1.0, 0.0) + damping)
    lower_II = jnp.linalg.cholesky(gram_II)
    inverse_II = jax.scipy.linalg.cho_solve((lower_II, True), jnp.eye(len(gram_II)))
    return jnp.linalg.cholesky(inverse_II, upper=True), is_dead_I


def _round_rows(
    block_BO: Array, factor_BB: Array, scale_O: Array, form: Format
) -> tuple[Array, Array]:
    """Round the inputs of a block one by one; each changes those after it.

    Returns:
      The levels, and the errors that the inputs after the block make up for.
    """
    index_B = jnp.arange(len(block_BO))

    def round_row(block_BO: Array, i: Array) -> tuple[Array, tuple[Array, Array]]:
        level_O = quantized.round_levels(block_BO[i] / scale_O, form.name)
        error_O = (block_BO[i] - level_O * scale_O) / factor_BB[i, i]
        later_B = jnp.where(index_B > i, factor_BB[i], 0.0)
        return block_BO - later_B[:, None] * error_O, (level_O, error_O)

    _, (levels_BO, errors_BO) = jax.lax.scan(round_row, block_BO, index_B)
    return levels_BO, errors_BO
