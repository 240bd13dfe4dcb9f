"""Matrices as products of two thin ones, by their largest singular values.

With a text the error is that of the outputs on it: the matrix is multiplied by a root
of the inputs' sum of x x^T first, and divided by it afterwards (SVD-LLM, Wang et al.
2024).

L layers, I inputs, O outputs, R rank.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.compress.calibrate import Calibration, LinearInputs
from lmjax.compress.step import Step, change_model
from lmjax.config.matrices import LowRankConfig
from lmjax.config.model import TransformerConfig
from lmjax.errors import ConfigError, UserError
from lmjax.inference.language_model import LanguageModel
from lmjax.parallel import sharding
from lmjax.types import Array, Params

_DAMPING = 1e-4  # of the mean of the diagonal, added to it


def parse_low_rank(text: str) -> LowRankConfig:
    """Return the config that FRACTION or FRACTION:PATTERN,... describes.

    Raises:
      UserError: the fraction is not between 0 and 1, or a pattern names no matrix.
    """
    number, _, patterns = text.partition(":")
    try:
        fraction = float(number)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction < 1:
        raise UserError(
            f"--low_rank={text}: {number!r} must be a fraction between 0 and 1, such "
            "as 0.5, of the weights of each matrix"
        )
    targets = tuple(patterns.split(",")) if patterns else ("*",)
    config = LowRankConfig(fraction=fraction, targets=targets)
    for problem in config.validate("targets"):
        raise UserError(f"--low_rank={text}: {problem.partition(': ')[2]}")
    return config


def make_low_rank_step(text: str, *, calibration: Calibration | None) -> Step:
    """Return the step that factors the matrices of all blocks.

    Args:
      text: as for `parse_low_rank`.
      calibration: the text on which outputs are to change least; None: the matrices.

    Raises:
      UserError: `text` is wrong.
    """
    config = parse_low_rank(text)
    record: dict[str, Any] = {"low_rank": dataclasses.asdict(config)}
    if calibration is not None:
        record["calibrate"] = str(calibration.file.absolute())
    return Step(
        record=record,
        apply=lambda lm: factor_matrices(lm, config=config, calibration=calibration),
        reads_text=True,
    )


def factor_matrices(
    lm: LanguageModel, *, config: LowRankConfig, calibration: Calibration | None
) -> LanguageModel:
    """Return a language model whose matrices are products.

    Raises:
      UserError: the calibration text is too short.
      ConfigError: the model has no matrices to factor.
    """
    before = lm.config.model
    if not isinstance(before, TransformerConfig):
        raise ConfigError(
            f"--low_rank: config.model.kind = {before.kind!r}: the matrices of "
            "Transformers alone can be factored"
        )
    inputs: Mapping[str, LinearInputs] = {}
    if calibration is not None:
        inputs = calibration.measure(lm, gram=True)
    new = change_model(lm, lm.params, dataclasses.replace(before, low_rank=config))
    params = _factor_params(lm.params, inputs, config)
    shardings = sharding.param_shardings(new.model.axes, new.model.shapes, lm.mesh)
    return dataclasses.replace(new, params=jax.device_put(params, shardings))


def _factor_params(
    params: Params, inputs: Mapping[str, LinearInputs], config: LowRankConfig
) -> Params:
    def convert(tree: Any, name: str) -> Any:
        if not isinstance(tree, dict):
            return tree
        new = {key: convert(leaf, f"{name}.{key}") for key, leaf in tree.items()}
        if "kernel" not in tree or ".blocks." not in name:
            return new
        kernel = tree["kernel"]
        cut = 3 if name.endswith(".out") else 2  # layers, and inputs
        shape_I, shape_O = kernel.shape[1:cut], kernel.shape[cut:]
        matrix = name.partition(".blocks.")[2]
        rank = config.rank_of(matrix, math.prod(shape_I), math.prod(shape_O))
        if rank:
            del new["kernel"]
            w_LIO = kernel.reshape(len(kernel), math.prod(shape_I), -1)
            read = inputs.get(name[1:])
            gram_LII = None if read is None else read.gram_LII
            a_LIR, b_LRO = _factor_layers(w_LIO, gram_LII, rank=rank)
            new["factor_a"] = a_LIR.reshape(-1, *shape_I, rank)
            new["factor_b"] = b_LRO.reshape(-1, rank, *shape_O)
        return new

    converted: Params = convert(params, "")
    return converted


@functools.partial(jax.jit, static_argnames="rank")
def _factor_layers(
    w_LIO: Array, gram_LII: Array | None, *, rank: int
) -> tuple[Array, Array]:
    one = functools.partial(factor, rank=rank)
    # One after another: the temporary arrays of a layer are as large as it is.
    return jax.lax.map(lambda layer: one(*layer), (w_LIO, gram_LII))


def factor(w_IO: Array, gram_II: Array | None, *, rank: int) -> tuple[Array, Array]:
    """Return two matrices (I, R) and (R, O) whose product is nearest to a matrix.

    Args:
      w_IO: the matrix.
      gram_II: the sum of x x^T over inputs, on which outputs x @ w are to change least;
        None: the matrix itself is.
      rank: of the product.
    """
    w_IO = w_IO.astype(jnp.float32)
    if gram_II is None:
        u_IR, values, v_RO = jnp.linalg.svd(w_IO, full_matrices=False)
        root = jnp.sqrt(values[:rank])
        return u_IR[:, :rank] * root, root[:, None] * v_RO[:rank]
    mean = jnp.trace(gram_II) / len(gram_II)
    damping = _DAMPING * jnp.where(mean > 0, mean, 1.0)
    lower_II = jnp.linalg.cholesky(gram_II + damping * jnp.eye(len(gram_II)))
    seen_IO = jnp.matmul(lower_II.T, w_IO, precision="highest")
    u_IR, values, v_RO = jnp.linalg.svd(seen_IO, full_matrices=False)
    root = jnp.sqrt(values[:rank])
    a_IR = jax.scipy.linalg.solve_triangular(
        lower_II.T, u_IR[:, :rank] * root, lower=False
    )
    return a_IR, root[:, None] * v_RO[:rank]
