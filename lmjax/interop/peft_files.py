"""PEFT's files of LoRA adapters: adapter_config.json and adapter_model.safetensors."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.errors import UserError
from lmjax.fileio import read_json
from lmjax.interop.peft import PREFIX
from lmjax.interop.safetensors import open_tensors

WEIGHTS = "adapter_model.safetensors"
# Keys that are read here, or change nothing once the adapters are trained.
_KNOWN = (
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias"),
    *(
        "corda_config",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "layers_pattern",
    ),
    *("inference_mode", "init_lora_weights", "layers_to_transform", "loftq_config"),
    *("lora_alpha", "lora_dropout", "modules_to_save", "peft_type", "peft_version"),
    *("qalora_group_size", "r", "rank_pattern", "revision", "runtime_config"),
    *("target_modules", "task_type", "use_rslora", "ensure_weight_tying"),
    *("megatron_core", "ephemeral_gpu_offload"),
)
# Ways of initializing that leave the weights of the base as they are.
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")


def read_settings(file: Path) -> dict[str, Any]:
    """Return an adapter_config.json.

    Raises:
      UserError: it describes adapters of another kind.
    """
    values = read_json(file)
    if values.get("peft_type") != "LORA":
        raise UserError(f"{file}: peft_type = {values.get('peft_type')!r}: only LORA")
    for key, value in values.items():
        unused = value is None or value is False or value in ([], {})
        if key not in _KNOWN and not unused:
            raise UserError(f"{file}: {key} = {value!r}: not supported")
    if values.get("init_lora_weights") not in _INITIAL:
        raise UserError(
            f"{file}: init_lora_weights = {values['init_lora_weights']!r}: changes the "
            "weights of the base; convert it to plain LoRA with PEFT"
        )
    return values


def read_tensors(source: Path) -> dict[str, np.ndarray]:
    """Return the tensors of adapter_model.safetensors, float32, by short names."""
    if not (source / WEIGHTS).is_file():
        raise UserError(f"{source}: has no {WEIGHTS}; pickles are not read")
    files = open_tensors(source)
    tensors = {
        name.removeprefix(PREFIX).replace(".base_layer.", "."): np.asarray(
            files.read(name), np.float32
        )
        for name in files.tensors
    }
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise UserError(
                f"{source / WEIGHTS}: {name} holds values that are not finite"
            )
    return tensors


class Adapters:
    """The tensors of adapters, by what they do.

    Args:
      source: the directory, for errors.
      settings: its adapter_config.json.
      tensors: by name.
    """

    def __init__(
        self, source: Path, settings: Mapping[str, Any], tensors: dict[str, np.ndarray]
    ) -> None:
        self.file, self.settings = source / WEIGHTS, settings
        self.saved: dict[str, np.ndarray] = {}  # those that replace the base's
        self.pairs: dict[str, dict[str, np.ndarray]] = {}  # A and B of each module
        for name, array in tensors.items():
            if found := re.fullmatch(r"(.*)\.lora_([AB])\.weight", name):
                self.pairs.setdefault(found[1], {})[found[2]] = array
            elif ".lora_" in name or "trainable_tokens" in name:
                raise UserError(f"{self.file}: {name}: not supported")
            else:
                self.saved[name] = array
        for module, pair in self.pairs.items():
            if set(pair) != {"A", "B"} or len(pair["A"]) != pair["B"].shape[1]:
                raise UserError(f"{self.file}: {module}: lora_A and lora_B differ")

    def scale(self, module: str) -> float:
        """Return the factor of a module's adapter."""
        alpha = float(self.settings.get("lora_alpha", 8))
        for pattern, value in (self.settings.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = float(value)
                break
        rank = len(self.pairs[module]["A"])
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)
