"""What an import would make of a Hugging Face directory; writes nothing."""

from pathlib import Path

from rich.filesize import decimal

from lmjax import models
from lmjax.config.experiment import Config
from lmjax.config.model import LabelHeadConfig, TextEmbeddingConfig, TransformerConfig
from lmjax.interop import (
    generation,
    hub,
    peft_files,
    sentence_transformers,
    tokenizer,
)
from lmjax.interop.hf import HFCheckpoint, count_params, open_hf
from lmjax.interop.match import match_tensors
from lmjax.interop.safetensors import open_tensors


def describe_import(source: str | Path) -> str:
    """Return the family, task, sizes, tokenizer and what is dropped, a line each.

    All is checked that an import checks, but the values of the weights.

    Raises:
      UserError: as `hf.import_hf`.
    """
    checkpoint = open_hf(source)
    if checkpoint.config.model.can_generate:
        generation.check_supported(checkpoint.directory, ignore=True)
    config = checkpoint.config
    model = models.build(config.model, platform="cpu")
    dropped: list[str] = []
    shapes = {k: v for k, v in model.shapes.items() if k != "embedding"}
    match_tensors(checkpoint.files, checkpoint.table, shapes, on_dropped=dropped.extend)
    for i, directory in enumerate(checkpoint.dense):
        shapes = model.shapes["embedding"][f"dense_{i}"]
        match_tensors(open_tensors(directory), sentence_transformers.DENSE, shapes)
    opened = tokenizer.open_tokenizer(config, checkpoint.directory)
    has_tokenizer = config.tokenizer.kind != "ids"
    lines = {
        "directory": str(checkpoint.directory),
        "family": f"{checkpoint.family.model_type} ({checkpoint.architecture})",
        "task": _describe_task(config),
        "model": _describe_model(config),
        "vector": _describe_embedding(config),
        "parameters": f"{count_params(model):,}, {_describe_files(checkpoint)}",
        "tokenizer": f"its own, {opened.vocab_size:,} ids"
        if has_tokenizer
        else "none, texts are token ids",
        "dropped": ", ".join(sorted(dropped)) or "nothing",
    }
    return "\n".join(f"{name:11}{text}" for name, text in lines.items() if text)


def describe_adapters(source: str | Path) -> str:
    """Return the ranks, the modules and the base of adapters, a line each.

    Whether they fit the base is not checked.

    Raises:
      UserError: they are of another kind, or a file is damaged.
    """
    directory = Path(source).expanduser()
    settings = peft_files.read_settings(directory / hub.ADAPTER_CONFIG)
    tensors = peft_files.read_tensors(directory)
    adapters = peft_files.Adapters(directory, settings, tensors)
    ranks = sorted({len(pair["A"]) for pair in adapters.pairs.values()})
    lines = {
        "directory": str(directory),
        "adapters": f"LoRA of {len(adapters.pairs)} matrices, of rank "
        f"{', '.join(map(str, ranks))}",
        "task": str(settings.get("task_type") or "not named"),
        "trained": ", ".join(sorted(adapters.saved)) or "nothing else",
        "base": str(settings.get("base_model_name_or_path") or "not named: --base"),
    }
    return "\n".join(f"{name:11}{text}" for name, text in lines.items())


def _describe_task(config: Config) -> str:
    names = config.task.output_names
    if not config.task.uses_classifier:
        masked = getattr(config.model, "mlm_head", False)
        base = "a masked language model" if masked else "a base"
        return f"none, {'a language model' if config.model.can_generate else base}"
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    kind, length = config.task.kind, config.data.length
    return f"{kind} ({shown}), texts of at most {length:,} tokens"


def _describe_model(config: Config) -> str:
    model = config.model
    assert isinstance(model, TransformerConfig)
    layers = f"{model.num_layers} layers"
    if encoder := getattr(model, "num_encoder_layers", 0):
        layers = f"{encoder} and {model.num_layers} layers"
    return (
        f"{model.kind}, {layers}, dim {model.dim}, {model.num_heads} heads, "
        f"vocabulary {model.vocab_size:,}, at most {model.max_length:,} tokens"
    )


def _describe_embedding(config: Config) -> str:
    model = config.model
    if not isinstance(model, LabelHeadConfig):
        return ""
    leaves = model.text_embedding
    if leaves == TextEmbeddingConfig():
        return ""
    parts = ["+".join(leaves.pooling)]
    parts += [f"dense to {layer.dim} ({layer.activation})" for layer in leaves.dense]
    parts += ["normalized"] * leaves.normalize
    parts += [f"texts of at most {leaves.max_length:,} tokens"]
    return ", ".join(parts)


def _describe_files(checkpoint: HFCheckpoint) -> str:
    tensors = checkpoint.files.tensors.values()
    dtypes = sorted({str(tensor.dtype) for tensor in tensors})
    total = sum(tensor.num_bytes for tensor in tensors)
    return f"{decimal(total)} of {', '.join(dtypes)} in the files"
