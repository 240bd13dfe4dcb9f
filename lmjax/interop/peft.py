"""Adapters alone, in the files of the PEFT library."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmjax import models
from lmjax.config.model import AnyTransformer, TransformerConfig
from lmjax.errors import ConfigError
from lmjax.interop.hf import Transferred, restore, surplus_prefix
from lmjax.interop.layout import Row, Table, flatten
from lmjax.interop.registry import choose_family
from lmjax.interop.staging import refuse_occupied, staged
from lmjax.interop.tensors import Spec, write_file
from lmjax.run.checkpoint import Step
from lmjax.types import Array, Params

_PREFIX = "base_model.model."  # PEFT's, before the names of the adapted model


def export_adapters(
    directory: str | Path, target: str | Path, *, step: Step = None
) -> Transferred:
    """Write the adapters of a workdir as PEFT's LoRA: a config and one small file.

    Args:
      directory: the workdir.
      target: the directory to be; nothing is left there if anything goes wrong.
      step: of a checkpoint, or "best"; by default the newest.

    Raises:
      ConfigError: there are none, or transformers has no matrix of its own for one.
    """
    source, goal = Path(directory).expanduser(), Path(target).expanduser()
    refuse_occupied(goal, flag="--to")
    model, params = restore(source, step)
    config = model.config
    if not isinstance(config, TransformerConfig) or not config.lora.rank:
        raise ConfigError(f"--workdir={source}: has no adapters (model.lora.rank = 0)")
    base = config.without_adapters()
    family, values = choose_family(models.build(base, platform=jax.default_backend()))
    table = family.table(base)
    tensors = dict(_tensors(table, params))
    cut = surplus_prefix(family, values["architectures"][0], table)
    tensors = {
        _PREFIX + name.removeprefix(cut): array for name, array in tensors.items()
    }
    specs = {name: Spec(np.dtype(np.float32), a.shape) for name, a in tensors.items()}
    with staged(goal, flag="--to") as part:
        if jax.process_index() == 0:
            write_file(
                part / "adapter_model.safetensors", specs, iter(tensors.values())
            )
            text = json.dumps(_settings(config, table, params), indent=2)
            (part / "adapter_config.json").write_text(text + "\n")
    count = sum(array.size for array in tensors.values())
    return Transferred(goal, "LoRA adapters", count, "none")


def _tensors(table: Table, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each adapter of each layer: lora_A (rank, in), lora_B (out, rank)."""
    flat = flatten(params)
    for row, name in _targets(table, params):
        a = _on_host(flat[f"{name}.lora_a"])
        b = _on_host(flat[f"{name}.lora_b"])
        rank = a.shape[-1]
        for layer in range(len(a)):
            theirs = row.theirs.format(layer=layer).removesuffix(".weight")
            yield (
                f"{theirs}.lora_A.weight",
                np.ascontiguousarray(a[layer].reshape(-1, rank).T),
            )
            yield (
                f"{theirs}.lora_B.weight",
                np.ascontiguousarray(b[layer].reshape(rank, -1).T),
            )


def _targets(table: Table, params: Params) -> Iterator[tuple[Row, str]]:
    """Yield the row of each matrix that has an adapter, and our name of it.

    Raises:
      ConfigError: it is but a part of a matrix of theirs.
    """
    flat = flatten(params)
    for row in table.rows:
        name = row.ours.removesuffix(".kernel")
        if f"{name}.lora_a" not in flat:
            continue
        if row.data_shards > 1:
            raise ConfigError(
                f"config.model.lora.targets: {name} is a part of {row.theirs} in "
                "transformers, which PEFT adapts as one; export without --adapters "
                "merges it"
            )
        yield row, name


def _on_host(x: Array) -> np.ndarray:
    """Return the whole of an array, which may be split over processes."""
    sharding = x.sharding
    assert isinstance(sharding, NamedSharding), sharding
    whole = NamedSharding(sharding.mesh, PartitionSpec())
    return np.asarray(jax.jit(lambda x: x, out_shardings=whole)(x))


def _settings(config: AnyTransformer, table: Table, params: Params) -> dict[str, Any]:
    """Return what PEFT's adapter_config.json says."""
    rows = [row for row, _ in _targets(table, params)]
    return {
        "peft_type": "LORA",
        "task_type": {
            "decoder": "CAUSAL_LM",
            "encoder": "FEATURE_EXTRACTION",
            "encoder_decoder": "SEQ_2_SEQ_LM",
        }[config.kind],
        "base_model_name_or_path": None,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(row.how == "conv1d" for row in rows),
        "inference_mode": True,
        "target_modules": sorted(
            {row.theirs.removesuffix(".weight").split("{layer}.")[1] for row in rows}
        ),
    }
