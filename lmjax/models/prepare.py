"""Parameters laid out for decoding, once for all tokens. L layers."""

from typing import Any

import jax
import numpy as np

from lmjax.config.model import ModelConfig, TransformerConfig
from lmjax.nn.stack import LayerList
from lmjax.types import Array, Axes, Params


def prepare(params: Params, *, config: ModelConfig, axes: Axes) -> Params:
    """Return parameters as decoding reads them fastest.

    A step for one token reads each weight once. Layers that are stacked would be cut
    apart by a copy at each step, but for TPUs, which read them where they are. They
    become a `LayerList` each, in the same place of the tree.

    Args:
      params: on devices.
      config: of the model.
      axes: of the parameters.
    """
    leaf = jax.tree.leaves(params)[0]
    platform = next(iter(leaf.devices())).platform
    if platform == "tpu" or not isinstance(config, TransformerConfig):
        return params
    return jax.tree.map(
        lambda x, names: _cut(x) if names[0] == "layers" else x, params, axes
    )


def _cut(x: Array) -> LayerList:
    """Return the layers of a stacked parameter."""
    if len(x.devices()) == 1 and next(iter(x.devices())).platform == "cpu":
        # Parts of the same memory, not copies, where they are aligned.
        device = next(iter(x.devices()))
        return LayerList(jax.device_put(part, device) for part in np.asarray(x))
    return LayerList(_split(x))


@jax.jit
def _split(x_L: Any) -> list[Array]:
    return [x_L[i] for i in range(len(x_L))]
