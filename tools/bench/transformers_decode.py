"""The reference of decoding: transformers' generate()."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

GPT = {"n_embd": 384, "n_layer": 6, "n_head": 6, "vocab_size": 4096}


def is_installed() -> bool:
    """Return whether the reference can run here."""
    return all(map(importlib.util.find_spec, ("torch", "transformers")))


def load(
    directory: Path, *, cache: str
) -> Callable[[Sequence[Sequence[int]], int], list[list[int]]]:
    """Return a function that continues prompts of one length by so many tokens.

    Args:
      directory: in the Hugging Face layout.
      cache: "dynamic", or "static", with which each step is compiled.
    """
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32
    ).eval()
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
    if cache == "static":
        options["cache_implementation"] = "static"

    def generate(prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_tokens,
                **options,
            )
        return out[:, ids.shape[1] :].tolist()

    return generate


def write_gpt(directory: Path) -> Path:
    """Write a GPT-2 of 10M parameters, with random weights that differ clearly."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        **GPT, n_positions=1024, initializer_range=0.1, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(directory)
    return directory
