"""Export of LoRA adapters alone, in the files of the PEFT library."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmjax import models
from lmjax.config.model import AnyTransformer, TransformerConfig
from lmjax.errors import ConfigError, UserError
from lmjax.interop.hf import Summary, restore_model
from lmjax.interop.registry import choose_family
from lmjax.interop.safetensors import Spec, write_file
from lmjax.interop.staging import check_unused, staged_directory
from lmjax.interop.table import Entry, Table
from lmjax.run.checkpoint import Step
from lmjax.types import Array, Params, named_leaves

_PREFIX = "base_model.model."  # PEFT's, of the names of all tensors
_TASK_TYPES = {
    "decoder": "CAUSAL_LM",
    "encoder": "FEATURE_EXTRACTION",
    "encoder_decoder": "SEQ_2_SEQ_LM",
}


def export_adapters(
    directory: str | Path, target: str | Path, *, step: Step = None
) -> Summary:
    """Write the adapters of a workdir as PEFT's LoRA: a config and one small file.

    Args:
      directory: the workdir.
      target: the new directory; if anything fails it is not created.
      step: of a checkpoint, or "best"; by default the last one.

    Raises:
      UserError: there are no adapters.
      ConfigError: an adapter belongs to a part of a matrix in transformers.
    """
    source, target = Path(directory).expanduser(), Path(target).expanduser()
    check_unused(target, flag="--to")
    model, params = restore_model(source, step)
    config = model.config
    if not isinstance(config, TransformerConfig) or not config.lora.rank:
        raise UserError(f"--workdir={source}: has no adapters (model.lora.rank = 0)")
    base = config.without_adapters()
    family, values = choose_family(models.build(base, platform=jax.default_backend()))
    table = family.table(base)
    adapted = _find_adapted(table, params)
    prefix = family.prefix_to_drop(values["architectures"][0], table)
    tensors = {
        _PREFIX + name.removeprefix(prefix): array
        for name, array in _read_adapters(adapted, params)
    }
    specs = {name: Spec(np.dtype(np.float32), a.shape) for name, a in tensors.items()}
    with staged_directory(target, flag="--to") as staging:
        if jax.process_index() == 0:
            file = staging / "adapter_model.safetensors"
            write_file(file, specs, iter(tensors.values()))
            text = json.dumps(_peft_config(config, adapted), indent=2)
            (staging / "adapter_config.json").write_text(text + "\n")
    count = sum(array.size for array in tensors.values())
    return Summary(target, "LoRA adapters", count, "none")


def _find_adapted(table: Table, params: Params) -> list[Entry]:
    """Return the entries of the kernels that have adapters.

    Raises:
      ConfigError: one of them is a part of a tensor, as in GPT-2's fused attention.
    """
    leaves = named_leaves(params)
    adapted = []
    for entry in table.entries:
        layer = entry.param.removesuffix(".kernel")
        if f"{layer}.lora_a" not in leaves:
            continue
        if entry.num_parts > 1:
            raise ConfigError(
                f"config.model.lora.targets: {layer} is a part of {entry.tensor} in "
                "transformers, and PEFT adapts whole tensors; export without "
                "--adapters merges the adapters"
            )
        adapted.append(entry)
    return adapted


def _read_adapters(
    adapted: list[Entry], params: Params
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, value) of lora_A (rank, inputs) and lora_B (outputs, rank)."""
    leaves = named_leaves(params)
    for entry in adapted:
        layer = entry.param.removesuffix(".kernel")
        a, b = _to_host(leaves[f"{layer}.lora_a"]), _to_host(leaves[f"{layer}.lora_b"])
        rank = a.shape[-1]
        for i in range(len(a)):
            name = entry.tensor.format(layer=i).removesuffix(".weight")
            yield (
                f"{name}.lora_A.weight",
                np.ascontiguousarray(a[i].reshape(-1, rank).T),
            )
            yield (
                f"{name}.lora_B.weight",
                np.ascontiguousarray(b[i].reshape(rank, -1).T),
            )


def _to_host(x: Array) -> np.ndarray:
    """Return a whole array, which may be sharded over several processes."""
    sharding = x.sharding
    assert isinstance(sharding, NamedSharding), sharding
    replicated = NamedSharding(sharding.mesh, PartitionSpec())
    return np.asarray(jax.jit(lambda x: x, out_shardings=replicated)(x))


def _peft_config(config: AnyTransformer, adapted: list[Entry]) -> dict[str, Any]:
    """Return the adapter_config.json."""
    return {
        "peft_type": "LORA",
        "task_type": _TASK_TYPES[config.kind],
        "base_model_name_or_path": None,
        "r": config.lora.rank,
        "lora_alpha": config.lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(entry.layout == "conv1d" for entry in adapted),
        "inference_mode": True,
        "target_modules": sorted(
            {
                entry.tensor.removesuffix(".weight").split("{layer}.")[1]
                for entry in adapted
            }
        ),
    }
