"""Prune whole parts of a Transformer: heads, widths of MLPs, layers.

What is left is a smaller dense model, of another config.

L layers, N heads, K heads of keys and values, H head_dim, D dim, F mlp.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import models
from lmjax.compress.calibrate import Calibration, LinearInputs
from lmjax.compress.step import change_model, merge_adapters
from lmjax.config.model import AnyTransformer
from lmjax.errors import UserError
from lmjax.inference.language_model import LanguageModel
from lmjax.types import Array, Axes, Params, named_axes, named_leaves

# What can be made smaller, and the leaf of its size; "heads" with those of keys.
PARTS = {
    "heads": "num_heads",
    "mlp": "mlp_dim",
    "layers": "num_layers",
    "encoder_layers": "num_encoder_layers",
}

Size = float | int  # a fraction below 1 that is left out, or the number that is left


def parse_size(text: str, *, flag: str) -> Size:
    """Parse the fraction that is left out, such as 0.25, or the number that is left.

    Raises:
      UserError: it is neither.
    """
    try:
        if text.isdecimal() and int(text) > 0:
            return int(text)
        if 0 < float(text) < 1:
            return float(text)
    except ValueError:
        pass
    raise UserError(
        f"{flag}: must end in the fraction that is left out, above 0 and below 1, or "
        "in the number that is left, as in layers:4"
    )


def shrink(
    lm: LanguageModel,
    *,
    part: str,
    size: Size,
    calibration: Calibration | None,
    flag: str,
) -> LanguageModel:
    """Return a language model with fewer heads or layers, or narrower MLPs.

    Raises:
      UserError: there are no such parts, or not so many.
    """
    config = lm.config.model
    if not isinstance(config, AnyTransformer) or not hasattr(config, PARTS[part]):
        raise UserError(
            f"{flag}: config.model.kind = {config.kind!r} has no {PARTS[part]}"
        )
    if part == "heads" and config.qk_norm_over == "all":
        raise UserError(
            f"{flag}: config.model.qk_norm_over = 'all': its heads share a norm, which "
            "would change"
        )
    # Heads of queries that share keys and values go together.
    before = config.num_kv_heads if part == "heads" else getattr(config, PARTS[part])
    group = config.num_heads // config.num_kv_heads if part == "heads" else 1
    left = _number_left(size, before, group=group, leaf=PARTS[part], flag=flag)
    lm = merge_adapters(lm)
    with jax.set_mesh(lm.mesh):
        cut = {"heads": _cut_heads, "mlp": _cut_mlp}.get(part)
        if cut is not None:
            return change_model(lm, *cut(lm, left, _measure(lm, part, calibration)))
        stack = "encoder" if part == "encoder_layers" else config.kind.split("_")[-1]
        return change_model(lm, *_cut_layers(lm, left, calibration, stack, PARTS[part]))


def _number_left(size: Size, before: int, *, group: int, leaf: str, flag: str) -> int:
    """Return how many parts are left, where `group` of the leaf's are one."""
    if isinstance(size, int):
        if size % group:
            raise UserError(
                f"{flag}: must be a multiple of {group}: so many heads share keys and "
                "values (config.model.num_kv_heads)"
            )
        left = size // group
    else:
        left = max(round((1 - size) * before), 1)
    if left >= before:
        raise UserError(
            f"{flag}: leaves {left * group} of config.model.{leaf} = {before * group}; "
            "must leave out at least one"
        )
    return left


def _measure(
    lm: LanguageModel, part: str, calibration: Calibration | None
) -> Mapping[str, LinearInputs]:
    """Return what the layers read that come after heads, or after the width of MLPs."""
    if calibration is None:
        return {}
    if part == "heads":
        only = lambda name: name.endswith("attention.out")
        return calibration.measure(lm, gram=True, only=only)
    return calibration.measure(lm, only=lambda name: name.endswith("mlp.down"))


def _cut_heads(
    lm: LanguageModel, left: int, read: Mapping[str, LinearInputs]
) -> tuple[Params, AnyTransformer]:
    """Leave the heads whose outputs are largest, whole groups of queries.

    Of a text: the mean square of what a head adds to the hidden states; without one
    that of its output weights.
    """
    params, config = lm.params, lm.config.model
    assert isinstance(config, AnyTransformer)
    group = config.num_heads // config.num_kv_heads
    for name in _modules(lm, "attention.out"):
        kernel_LNHD = named_leaves(lm.params)[f"{name}.kernel"]
        inputs = read.get(name)
        energy_LN = _head_energy(
            kernel_LNHD, None if inputs is None else inputs.gram_LII
        )
        energy_LK = energy_LN.reshape(len(energy_LN), -1, group).sum(-1)
        if config.position == "relative" and "cross" not in name:
            # The biases of all layers are one table, with a column for each head.
            energy_LK = jnp.broadcast_to(energy_LK.sum(0), energy_LK.shape)
        groups_LK = _best(energy_LK, left)
        heads_LN = groups_LK[..., None] * group + jnp.arange(group)
        heads_LN = heads_LN.reshape(len(heads_LN), -1)
        prefix = name.removesuffix("out")
        take = functools.partial(_take, axes=lm.model.axes, prefix=prefix)
        params = take(params, axis="heads", index=heads_LN)
        params = take(params, axis="kv_heads", index=groups_LK)
        if config.position == "relative" and "cross" not in name:
            bias = f"{name.partition('.')[0]}.relative_bias."
            params = _take(
                params, axes=lm.model.axes, prefix=bias, axis="heads", index=heads_LN[0]
            )
    smaller = dataclasses.replace(
        config, num_heads=left * group, num_kv_heads=left, head_dim=config.head_dim
    )
    return params, smaller


def _head_energy(kernel_LNHD: Array, gram_LII: Array | None) -> Array:
    """Return the sum of squares that each head adds to the hidden states, (L, N)."""
    num_layers, num_heads, head_dim, _ = kernel_LNHD.shape
    if gram_LII is None:
        return jnp.sum(jnp.square(kernel_LNHD), axis=(2, 3))
    gram = gram_LII.reshape(num_layers, num_heads, head_dim, num_heads, head_dim)
    gram_LNHH = jnp.einsum("lnhng->lnhg", gram)
    return jnp.einsum("lnhg,lnhd,lngd->ln", gram_LNHH, kernel_LNHD, kernel_LNHD)


def _cut_mlp(
    lm: LanguageModel, left: int, read: Mapping[str, LinearInputs]
) -> tuple[Params, AnyTransformer]:
    """Leave the units whose outputs are largest, as for heads."""
    params, config = lm.params, lm.config.model
    assert isinstance(config, AnyTransformer)
    for name in _modules(lm, "mlp.down"):
        kernel_LFD = named_leaves(lm.params)[f"{name}.kernel"]
        energy_LF = jnp.sum(jnp.square(kernel_LFD), axis=2)
        if name in read:
            energy_LF = energy_LF * read[name].squares_LI
        params = _take(
            params,
            axes=lm.model.axes,
            prefix=name.removesuffix("down"),
            axis="mlp",
            index=_best(energy_LF, left),
        )
    return params, dataclasses.replace(config, mlp_dim=left)


def _cut_layers(
    lm: LanguageModel,
    left: int,
    calibration: Calibration | None,
    stack: str,
    leaf: str,
) -> tuple[Params, AnyTransformer]:
    """Leave the layers without which hidden states would differ most.

    Without a text: layers at equal distances, the first and the last among them.
    """
    config = lm.config.model
    assert isinstance(config, AnyTransformer)
    before = getattr(config, leaf)
    if calibration is None:
        kept = np.round(np.linspace(0, before - 1, left)).astype(int)
    else:
        change = _change_without(lm, calibration, stack, leaf)
        if not config.first_norm:
            change[0] = np.inf  # it reads the embeddings as they are
        kept = np.sort(np.argsort(-change, kind="stable")[:left])
    params = _keep_layers(lm, kept, stack)
    return params, _with_layers(config, kept, leaf)


def _keep_layers(lm: LanguageModel, kept: Any, stack: str) -> Params:
    return _take(
        lm.params,
        axes=lm.model.axes,
        prefix=f"{stack}.blocks.",
        axis="layers",
        index=jnp.asarray(kept),
    )


def _with_layers(config: AnyTransformer, kept: Any, leaf: str) -> AnyTransformer:
    """Return the config of a model with these layers alone, windows as they were."""
    changes: dict[str, Any] = {leaf: len(kept)}
    if config.window and leaf == "num_layers":
        flags = config.global_flags(config.num_layers)
        layers = tuple(i for i, layer in enumerate(kept) if flags[layer])
        changes |= {"global_every": 0, "global_layers": layers}
    return dataclasses.replace(config, **changes)


def _change_without(
    lm: LanguageModel, calibration: Calibration, stack: str, leaf: str
) -> np.ndarray:
    """Return by how much the last hidden states turn without each layer.

    1 - cosine, the mean over tokens: the influence of a block (Men et al. 2024,
    ShortGPT; Muralidharan et al. 2024, Minitron), measured where the model ends.
    """
    config = lm.config.model
    assert isinstance(config, AnyTransformer)
    num_layers = getattr(config, leaf)
    batches = [*calibration.batches(lm)]
    whole = jax.jit(lm.model.hidden)
    change = np.zeros(num_layers)
    hidden = [whole(lm.params, batch) for batch in batches]
    platform = lm.mesh.devices.flat[0].platform
    compiled: dict[Any, Any] = {}
    for layer in range(num_layers):
        kept = [i for i in range(num_layers) if i != layer]
        smaller = _with_layers(config, kept, leaf).for_inference()
        if smaller not in compiled:  # windows may differ
            compiled[smaller] = jax.jit(models.build(smaller, platform=platform).hidden)
        params = _keep_layers(lm, kept, stack)
        for batch, before in zip(batches, hidden, strict=True):
            after = compiled[smaller](params, batch)
            change[layer] += float(_turn(before, after, batch["segments"] > 0))
    return change


@jax.jit
def _turn(a_BTD: Array, b_BTD: Array, is_real_BT: Array) -> Array:
    """Return the sum over tokens of 1 - cosine."""
    norm = lambda x: jnp.linalg.norm(x, axis=-1)
    a_BTD, b_BTD = a_BTD.astype(jnp.float32), b_BTD.astype(jnp.float32)
    cosine = jnp.sum(a_BTD * b_BTD, axis=-1) / (norm(a_BTD) * norm(b_BTD) + 1e-9)
    return jnp.sum(jnp.where(is_real_BT, 1 - cosine, 0))


def _modules(lm: LanguageModel, suffix: str) -> list[str]:
    """Return the names of layers in blocks, such as "decoder.blocks.attention.out"."""
    return [
        name.removesuffix(".kernel")
        for name in named_leaves(lm.params)
        if ".blocks." in name and name.endswith(f"{suffix}.kernel")
    ]


def _best(energy_LN: Array, num: int) -> Array:
    """Return the indices of the largest of each layer, in their order (L, num)."""
    return jnp.sort(jax.lax.top_k(energy_LN, num)[1], axis=1)


def _take(
    params: Params, *, axes: Axes, prefix: str, axis: str, index: Array
) -> Params:
    """Return parameters with a part of the dimension of one logical axis.

    Args:
      params: all of them.
      axes: of `params`.
      prefix: of the names of those that change.
      axis: the logical axis.
      index: what is left of it, or in each layer of a stack (L, num).
    """
    named = named_axes(axes)

    def take(name: str, leaf: Array) -> Array:
        if not name.startswith(prefix) or axis not in named[name]:
            return leaf
        dim = named[name].index(axis)
        if index.ndim == 1:
            return jnp.take(leaf, index, axis=dim)
        return jax.vmap(lambda x, i: jnp.take(x, i, axis=dim - 1))(leaf, index)

    leaves = [take(name, leaf) for name, leaf in named_leaves(params).items()]
    taken: Params = jax.tree.unflatten(jax.tree.structure(params), leaves)
    return taken
