"""How many FLOPs a model spends on a token, counted from its config and shapes."""

from typing import Any

from lmjax.config.model import (
    EncoderConfig,
    ModelConfig,
    RecurrentConfig,
    RecurrentEncoderDecoderConfig,
    TransformerConfig,
)
from lmjax.types import Batch, named_leaves


def num_tokens(batch: Batch) -> int:
    """Return the tokens of a batch, those of its sources included."""
    return sum(batch[name].size for name in ("tokens", "source") if name in batch)


def flops_per_token(config: ModelConfig, shapes: Any, *, batch: Batch) -> float:
    """Return the FLOPs that training spends on a token, forward and backward.

    6 for each weight of a matrix product that a token goes through (2 forward, 4
    backward; lookups are free, a tied table counts for the logits) and 12 * N * H for
    each pair of a query and a key it sees, in every layer of N heads of size H: a
    causal query at an average place sees half of the row, and at most its window.
    Rematerialised work is not counted, after Chowdhery et al. 2022 (PaLM), appendix B.

    Args:
      config: of the model.
      shapes: of its parameters.
      batch: anything with the shapes of a batch: tokens, and a source or the places
        that are predicted where there are some.
    """
    rows, length = batch["tokens"].shape
    source = batch["source"].shape[1] if "source" in batch else 0
    predicted = batch["targets"].shape[1] if "targets" in batch else length
    kernels = _kernels(shapes)
    if "labels" in batch:  # of each row, or of each token
        products = kernels("classifier.") * batch["labels"].size / rows
    elif "starts" in batch:
        products = kernels("classifier.") * length
    else:
        products = predicted * (kernels("head.") + config.vocab_size * config.width)
    products += length * kernels("decoder.") + kernels("pooler", "pair.")
    if isinstance(config, RecurrentConfig):
        products += length * kernels("recurrent.")
        return 6 * products * rows / num_tokens(batch)
    if isinstance(config, RecurrentEncoderDecoderConfig):
        products += source * kernels("encoder.") + kernels("bridge.")
        products += (source - length) * kernels("decoder.attention.key.")
        # Of each pair a score over the hidden states, and a mean of both directions'.
        products += (length * source) * 3 * config.hidden_dim
        products -= length * kernels("decoder.attention.score.")
        return 6 * products * rows / num_tokens(batch)
    pairs = config.num_layers * _pairs(config, length)
    if config.kind == "encoder":
        products += length * kernels("encoder.")
    if config.kind == "encoder_decoder":
        read = kernels(*(f"decoder.blocks.cross_attention.{n}." for n in _SOURCE))
        products += source * kernels("encoder.") + (source - length) * read
        pairs += config.num_encoder_layers * source**2
        pairs += config.num_layers * length * source
    total = 6 * products + 12 * config.num_heads * config.head_dim * pairs
    return total * rows / num_tokens(batch)


_SOURCE = ("key", "value")  # what cross-attention makes of each token of the source


def _kernels(shapes: Any) -> Any:
    """Return what counts the weights of the kernels under some prefixes."""
    sizes = {name: leaf.size for name, leaf in named_leaves(shapes).items()}
    sizes = {name: size for name, size in sizes.items() if name.endswith("kernel")}
    return lambda *prefixes: sum(
        size for name, size in sizes.items() if name.startswith(prefixes)
    )


def _pairs(config: TransformerConfig, length: int) -> float:
    """Return the pairs of query and key in a row, on average over the layers."""
    if isinstance(config, EncoderConfig):
        return length**2
    whole = length**2 / 2
    if not config.window or config.window >= length:
        return whole
    within = length * config.window * (1 - config.window / (2 * length))
    share = 1 / config.global_every if config.global_every else 0
    return share * whole + (1 - share) * within
