"""Scales of inputs that make rounding cost less: AWQ and SmoothQuant.

L layers, I inputs, O outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.compress.calibrate import LinearInputs
from lmjax.compress.fold import Fold, find_folds, fold, get, readers_of, safe
from lmjax.config.model import TransformerConfig
from lmjax.nn import quantized
from lmjax.nn.quantized import Format
from lmjax.types import Array, Params

NUM_EXPONENTS = 10  # tried by AWQ, from 0 up to 1
SMOOTHING = 0.5  # the exponent of SmoothQuant

Adapted = tuple[Params, Mapping[str, LinearInputs]]
# From the matrices (L, I, O) of layers that read the same, what they read, and their
# format to the scales (L, I).
Choice = Callable[[Sequence[Array], LinearInputs, Format], Array]


def adapt_awq(
    params: Params, inputs: Mapping[str, LinearInputs], config: TransformerConfig
) -> Adapted:
    """Scale inputs so that rounding loses least of the outputs (Lin et al. 2023).

    The scale of an input is a power of its mean magnitude; the exponent is the best of
    a few, layer by layer. Weights are not clipped.

    Args:
      params: of the model.
      inputs: with the sum of x x^T.
      config: says how matrices will be rounded.
    """
    return _adapt(params, inputs, config, _choose_awq, find_folds(config))


def adapt_smoothquant(
    params: Params, inputs: Mapping[str, LinearInputs], config: TransformerConfig
) -> Adapted:
    """Scale inputs so that they and the weights are rounded alike (Xiao et al. 2023).

    Only inputs that come from a norm are scaled, as in the paper. Arguments as for
    `adapt_awq`.
    """
    folds = [one for one in find_folds(config) if one.follows_norm]
    return _adapt(params, inputs, config, _choose_smooth, folds)


def _adapt(
    params: Params,
    inputs: Mapping[str, LinearInputs],
    config: TransformerConfig,
    choose: Choice,
    folds: Sequence[Fold],
) -> Adapted:
    params = dict(params)
    for part in ("encoder", "decoder"):
        if part not in params:
            continue
        blocks = params[part]["blocks"]
        for one in folds:
            names = readers_of(one, blocks)
            if not names:
                continue
            x = inputs[f"{part}.blocks.{names[0]}"]
            kernels = [get(blocks, name)["kernel"] for name in names]
            num_inputs = 2 if names[0].endswith(".out") else 1
            form = quantized.choose_format(
                config.quantize, last_input=kernels[0].shape[num_inputs]
            )
            matrices = [k.reshape(*x.absolute_LI.shape, -1) for k in kernels]
            chosen = jax.jit(choose, static_argnums=2)(matrices, x, form)
            blocks = fold(blocks, one, safe(chosen), config=config)
        params[part] = {**params[part], "blocks": blocks}
    return params, inputs


def _choose_awq(matrices: Sequence[Array], inputs: LinearInputs, form: Format) -> Array:
    """Return the scales (L, I) of `adapt_awq`."""

    def one_layer(layer: Any) -> Array:
        mean_I, gram_II, w_IO = layer
        return choose_awq(w_IO, mean_I, gram_II, form)

    w_LIO = jnp.concatenate(matrices, axis=-1)
    mean_LI = inputs.absolute_LI / inputs.num_tokens
    return jax.lax.map(one_layer, (mean_LI, inputs.gram_LII, w_LIO))


def choose_awq(w_IO: Array, mean_I: Array, gram_II: Array, form: Format) -> Array:
    """Return the scale of each input (I,) that loses least.

    Args:
      w_IO: the matrices of all layers that read the same, side by side.
      mean_I: the mean magnitude of each input.
      gram_II: the sum of x x^T.
      form: of the weights.
    """

    def loss(exponent: Array) -> tuple[Array, Array]:
        scale_I = jnp.maximum(mean_I, 1e-4) ** exponent
        scale_I = scale_I / jnp.sqrt(scale_I.max() * scale_I.min())
        scaled_IO = quantized.round_to_nearest(w_IO * scale_I[:, None], 1, form)
        error_IO = scaled_IO / scale_I[:, None] - w_IO
        return (error_IO * (gram_II @ error_IO)).sum(), scale_I

    exponents = jnp.arange(NUM_EXPONENTS) / NUM_EXPONENTS
    losses, scales = jax.lax.map(loss, exponents)
    return scales[jnp.argmin(losses)]


def _choose_smooth(
    matrices: Sequence[Array], inputs: LinearInputs, form: Format
) -> Array:
    """Return the scales (L, I) of `adapt_smoothquant`."""
    return jax.vmap(choose_smooth)(
        jnp.concatenate(matrices, axis=-1), inputs.largest_LI
    )


def choose_smooth(w_IO: Array, largest_I: Array) -> Array:
    """Return the scale of each input, from its largest magnitude (I,) and weights."""
    weight_I = jnp.maximum(jnp.abs(w_IO).max(axis=1), 1e-5)
    return jnp.maximum(largest_I, 1e-5) ** SMOOTHING / weight_I ** (1 - SMOOTHING)
