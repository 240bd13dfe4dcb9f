"""What the linear layers of a model read when it reads a text.

B rows of a batch, T length, L layers, I inputs of a linear layer.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import models
from lmjax.config.model import TransformerConfig
from lmjax.data.sources.text import read_lines
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.errors import ConfigError, UserError
from lmjax.generate.scored_texts import encode_scored
from lmjax.inference.inputs import make_batch
from lmjax.inference.language_model import LanguageModel
from lmjax.models import Model
from lmjax.nn.linear import watch_inputs
from lmjax.nn.stack import LayerList
from lmjax.parallel import sharding
from lmjax.types import Array, Batch, Params, leaf_name

MAX_LENGTH = 512  # tokens of a window, or what the model's positions allow
NUM_WINDOWS = 64
_ROWS = 4  # windows that are read at once
_LINES = 256  # that are encoded at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearInputs:
    """What the tokens that a linear layer of each block has read add up to, float32.

    The dimensions of its inputs, such as heads and head_dim, are one: I.
    """

    num_tokens: Array  # float32 scalar
    absolute_LI: Array  # the sum of |x|
    squares_LI: Array  # the sum of x ** 2
    largest_LI: Array  # the maximum of |x|
    gram_LII: Array | None = None  # the sum of x x^T, if it was asked for

    def __add__(self, other: "LinearInputs") -> "LinearInputs":
        """Return what the tokens of both add up to."""
        added = jax.tree.map(jnp.add, self, other)
        largest_LI = jnp.maximum(self.largest_LI, other.largest_LI)
        return dataclasses.replace(added, largest_LI=largest_LI)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """A text that a model reads, so that what matters to it can be told.

    Args:
      file: of running text; for an encoder-decoder of lines SOURCE<TAB>TARGET.
      num_windows: of the text that are read, or lines.
    """

    file: Path
    num_windows: int = NUM_WINDOWS

    def measure(
        self,
        lm: LanguageModel,
        *,
        gram: bool = False,
        only: Callable[[str], bool] = lambda name: True,
    ) -> dict[str, LinearInputs]:
        """Return statistics of the inputs of the linear layers in all blocks.

        Padding counts as nothing. Layers that read the same share their arrays.

        Args:
          lm: the model, and its tokenizer.
          gram: also sum up x x^T, which takes I * I numbers for each layer.
          only: by the name of a layer, such as "decoder.blocks.mlp.down", whether it
            is of interest.

        Raises:
          UserError: the text is too short, or cannot be read.
          ConfigError: the model has no blocks.
        """
        config = lm.model.config
        if not isinstance(config, TransformerConfig):
            raise ConfigError(
                f"--calibrate: config.model.kind = {config.kind!r}: the layers of "
                "Transformers alone are watched"
            )
        # Layers of which something is kept for the backward pass cannot be watched.
        config = dataclasses.replace(config, remat="none")
        platform = lm.mesh.devices.flat[0].platform
        model = models.build(config, platform=platform, mesh=lm.mesh)
        alike: dict[str, str] = {}
        measure = functools.partial(_measure, model, gram=gram, only=only, alike=alike)
        add = jax.jit(
            lambda total, params, batch: {
                name: total[name] + inputs
                for name, inputs in measure(params, batch).items()
            },
            donate_argnums=0,
        )
        total = None
        with jax.set_mesh(lm.mesh):
            for batch in self.batches(lm):
                if total is None:
                    shapes = jax.eval_shape(measure, lm.params, batch)
                    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
                    total = jax.device_put(zeros, sharding.replicated(lm.mesh))
                total = add(total, lm.params, batch)
        assert total is not None
        return {name: total[first] for name, first in alike.items()}

    def batches(self, lm: LanguageModel) -> Iterator[Batch]:
        """Yield the text in batches of equal shape, the last filled with padding.

        Raises:
          UserError: the text is too short, or cannot be read.
        """
        rows = [*self._read_rows(lm)]
        shape = [max(len(row[name]) for row in rows) for name in rows[0]]
        for first in range(0, len(rows), _ROWS):
            batch: Batch = {}
            for name, length in zip(rows[0], shape, strict=True):
                ids = np.zeros((_ROWS, length), np.int32)
                real = np.zeros_like(ids)
                for b, row in enumerate(rows[first : first + _ROWS]):
                    ids[b, : len(row[name])] = row[name]
                    real[b, : len(row[name])] = 1
                arrays = make_batch(name, ids, real, config=lm.model.config)
                if name == "source":
                    batch["source"] = arrays.pop("tokens")
                    arrays = {f"source_{k}": array for k, array in arrays.items()}
                batch |= arrays
            yield {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}

    def _read_rows(self, lm: LanguageModel) -> list[dict[str, list[int]]]:
        lines = read_lines(self.file, path=f"--calibrate={self.file}")
        if lm.model.config.is_encoder_decoder:
            return self._read_pairs(lm, lines)
        tokenizer = lm.tokenizer
        before, after = tokenizer.prefix_ids, tokenizer.suffix_ids
        if not lm.model.config.is_bidirectional:
            before, after = not_none(tokenizer.bos_id), ()
        length = min(MAX_LENGTH, lm.model.config.longest_text)
        room = length - len(before) - len(after)
        needed, ids = room * self.num_windows, np.zeros(0, np.int32)
        block: list[str] = []
        for line in lines:
            block.append(f"{line}\n")
            if len(block) == _LINES:
                ids, block = np.concatenate([ids, tokenizer.encode("".join(block))]), []
            if len(ids) >= needed:
                break
        ids = np.concatenate([ids, tokenizer.encode("".join(block))])
        if len(ids) < needed:
            raise UserError(
                f"--calibrate={self.file}: too short: {len(ids):,} tokens; "
                f"--windows={self.num_windows} of {room} take {needed:,}"
            )
        windows = ids[:needed].reshape(self.num_windows, room).tolist()
        return [{"tokens": [*before, *window, *after]} for window in windows]

    def _read_pairs(
        self, lm: LanguageModel, lines: Sequence[str]
    ) -> list[dict[str, list[int]]]:
        pairs: list[Any] = []
        for i, line in enumerate(lines, start=1):
            source, tab, target = line.partition("\t")
            if not tab:
                raise UserError(
                    f"--calibrate={self.file}:{i}: no tab: an encoder-decoder reads "
                    "SOURCE<TAB>TARGET"
                )
            pairs.append((source, target))
            if len(pairs) == self.num_windows:
                break
        if len(pairs) < self.num_windows:
            raise UserError(
                f"--calibrate={self.file}: too short: {len(pairs)} lines; --windows="
                f"{self.num_windows}"
            )
        inputs = encode_scored(lm.tokenizer, pairs, config=lm.model.config)
        texts = [[*start, *ids] for start, ids in inputs["texts"]]
        config = lm.model.config
        return [
            {
                "tokens": text[: min(MAX_LENGTH, config.longest_text)],
                "source": source[: min(MAX_LENGTH, config.longest_source)],
            }
            for text, source in zip(texts, inputs["sources"], strict=True)
        ]


def _measure(
    model: Model,
    params: Params,
    batch: Batch,
    *,
    gram: bool,
    only: Callable[[str], bool],
    alike: dict[str, str],
) -> dict[str, LinearInputs]:
    """Return the statistics of one batch, by the first name of layers that read alike.

    Args:
      model: without rematerialization.
      params: its own.
      batch: of `Calibration.batches`.
      gram: as for `Calibration.measure`.
      only: as for `Calibration.measure`.
      alike: filled with the first name for each name.
    """
    params, names = _name_kernels(params)
    read: dict[str, dict[int, Array]] = {}

    def watch(kernel: Array, x: Array) -> None:
        name, layer = names.get(id(kernel), ("", 0))
        if name and only(name):
            read.setdefault(name, {})[layer] = x

    with watch_inputs(watch):
        model.hidden(params, batch)
    found: dict[int, str] = {}  # the first name of what reads an array
    for name, layers in read.items():
        alike[name] = found.setdefault(id(layers[0]), name)
    return {
        name: _sum_up(read[name], _is_real(name, batch), gram=gram)
        for name in dict.fromkeys(alike.values())
    }


def _name_kernels(params: Params) -> tuple[Params, dict[int, tuple[str, int]]]:
    """Return parameters cut into layers, and the name and layer of each kernel by id.

    A stack that is cut runs layer by layer, and reads these very arrays.
    """
    names: dict[int, tuple[str, int]] = {}

    def cut(path: Any, leaf: Array) -> Any:
        name, _, last = leaf_name(path).rpartition(".")
        if ".blocks." not in name:
            return leaf
        layers = LayerList(leaf[i] for i in range(len(leaf)))
        if last == "kernel":
            names.update({id(layer): (name, i) for i, layer in enumerate(layers)})
        return layers

    return jax.tree_util.tree_map_with_path(cut, params), names


def _is_real(name: str, batch: Batch) -> Array:
    """Return which tokens that a layer reads are not padding (B, T)."""
    of_source = name.startswith("encoder.") or name.endswith(
        ("cross_attention.key", "cross_attention.value")
    )
    has_source = "source_segments" in batch
    real: Array = batch["source_segments" if of_source and has_source else "segments"]
    return real > 0


def _sum_up(
    x_by_layer: Mapping[int, Array], is_real_BT: Array, *, gram: bool
) -> LinearInputs:
    rows = [_rows(x_by_layer[i], is_real_BT) for i in range(len(x_by_layer))]
    dot = functools.partial(jnp.einsum, "ni,nj->ij", preferred_element_type=jnp.float32)
    each = [x.astype(jnp.float32) for x in rows]
    return LinearInputs(
        num_tokens=is_real_BT.sum().astype(jnp.float32),
        absolute_LI=jnp.stack([jnp.abs(x).sum(0) for x in each]),
        squares_LI=jnp.stack([jnp.square(x).sum(0) for x in each]),
        largest_LI=jnp.stack([jnp.abs(x).max(0) for x in each]),
        gram_LII=jnp.stack([dot(x, x) for x in rows]) if gram else None,
    )


def _rows(x: Array, is_real_BT: Array) -> Array:
    """Return the inputs of all tokens (B T, I), those of padding 0."""
    x = x.reshape(is_real_BT.size, -1)
    return jnp.where(is_real_BT.reshape(-1, 1), x, 0)
