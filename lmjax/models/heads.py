"""Heads: from hidden states to logits over the vocabulary or over labels.

B batch, T length, D dim, V vocabulary, C labels.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import (
    EncoderConfig,
    ModelBaseConfig,
    Pooling,
    TextEmbeddingConfig,
)
from lmjax.errors import ConfigError
from lmjax.nn import quantized
from lmjax.nn.feedforward import ACTIVATIONS
from lmjax.nn.linear import Embed, Linear, Table, table_logits
from lmjax.nn.norm import make_norm
from lmjax.nn.param import dropout, param, zeros
from lmjax.parallel.sharding import constrain
from lmjax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OutputLayer:
    """What logits over the vocabulary are computed from, for hidden states.

    A loss need not compute all of them at once.
    """

    x: Array  # (..., D)
    table_VD: Array  # int8 if its rows have scales
    bias_V: Array | None = None
    # if not 0, logits become softcap * tanh(logits / softcap)
    softcap: float = dataclasses.field(default=0.0, metadata={"static": True})
    scale_V: Array | None = None

    def logits(self) -> Array:
        """Return the float32 logits (..., V)."""
        if self.scale_V is None:
            logits = table_logits(self.x, self.table_VD)
        else:
            logits = quantized.logits(self.x, self.table_VD, self.scale_V)
        if self.bias_V is not None:
            logits = logits + self.bias_V
        if self.softcap:
            logits = self.softcap * jnp.tanh(logits / self.softcap)
        if logits.ndim == 3:
            logits = constrain(logits, "batch", "length", "vocab")
        return logits

    def in_floats(self) -> "OutputLayer":
        """Return the same layer with a table of floats, in the dtype of `x`."""
        if self.scale_V is None:
            return self
        table_VD = self.table_VD.astype(self.x.dtype)
        table_VD = table_VD * self.scale_V[:, None].astype(self.x.dtype)
        return dataclasses.replace(self, table_VD=table_VD, scale_V=None)


class Head(Table):
    """Logits over the vocabulary, by the embedding table or by one of its own."""

    def __init__(
        self,
        key: Array,
        config: ModelBaseConfig,
        *,
        scale: float = 1.0,
        logit_softcap: float = 0.0,
    ) -> None:
        c, key = config, jax.random.split(key, 3)[2]
        self.scale, self.logit_softcap = scale, logit_softcap
        self.is_tied = c.tie_embeddings
        table = {"vocab": c.vocab_size, "embed": c.width}
        if self.is_tied:
            self.embedding = None
        else:
            super().__init__(key, table, quantize=c.quantize)
        self.bias = (
            param(key, [c.vocab_size], axes=["vocab"], init=zeros)
            if c.head_bias
            else None
        )

    def __call__(self, x: Array, embed: Embed) -> OutputLayer:
        """Return the output layer of hidden states (..., D), times `scale`."""
        if self.scale != 1.0:
            x = x * self.scale
        table_VD, scale_V = (embed if self.is_tied else self).vectors()
        bias = None if self.bias is None else self.bias[...]
        return OutputLayer(x, table_VD, bias, self.logit_softcap, scale_V)


def apply_head(head: Head | None, x: Array, embed: Embed) -> OutputLayer:
    """Return the output layer of hidden states (..., D).

    Raises:
      ConfigError: there is no head.
    """
    if head is None:
        raise ConfigError("config.model.lm_head = False: there are no logits")
    return head(x, embed)


class MaskedLMHead(Head):
    """A head with one more layer and norm before the logits (BERT)."""

    def __init__(self, key: Array, config: EncoderConfig) -> None:
        super().__init__(key, config, logit_softcap=config.logit_softcap)
        c, keys = config, jax.random.split(key, 3)
        self.activation = c.activation
        dims = {"embed": c.dim}, {"features": c.dim}
        bias = c.head_layer_bias
        self.dense = Linear(keys[0], *dims, bias=bias)
        self.norm = make_norm(keys[1], c.norm, c.dim, epsilon=c.norm_epsilon, bias=bias)

    def __call__(self, x: Array, embed: Embed) -> OutputLayer:
        """Return the output layer of hidden states (..., D)."""
        x = self.norm(ACTIVATIONS[self.activation](self.dense(x)))
        return super().__call__(x, embed)


class Pooler(Linear):
    """A layer on the first token's hidden state (BERT, Devlin et al. 2019)."""

    def __init__(self, key: Array, dim: int, *, activation: str = "tanh") -> None:
        super().__init__(key, {"embed": dim}, {"features": dim}, bias=True)
        self.activation = activation

    def __call__(self, x_BTD: Array) -> Array:
        """Return one vector for each row (B, D)."""
        return ACTIVATIONS[self.activation](super().__call__(x_BTD[:, 0]))


class TextEmbedding(nnx.Module):
    """The vector of each text: its hidden states pooled, then linear layers.

    Sentence-BERT (Reimers and Gurevych 2019), and the modules of its library.
    """

    def __init__(self, key: Array, config: TextEmbeddingConfig, *, dim: int) -> None:
        self.config = config
        size = dim * len(config.pooling)
        for i, layer in enumerate(config.dense):
            dims = {"embed": size}, {"features": layer.dim}
            dense = Linear(jax.random.fold_in(key, i), *dims, bias=layer.bias)
            setattr(self, f"dense_{i}", dense)
            size = layer.dim

    def __call__(self, x_BTD: Array, segments_BT: Array) -> Array:
        """Return one vector for each row, float32; of a row of padding it is 0.

        A row holds one text, which begins at its left.
        """
        real_BT = segments_BT > 0
        x_BTD = jnp.where(real_BT[..., None], x_BTD, 0.0).astype(jnp.float32)
        pooled = [pool(x_BTD, real_BT, mode) for mode in self.config.pooling]
        x = jnp.concatenate(pooled, axis=-1)
        for i, layer in enumerate(self.config.dense):
            x = getattr(self, f"dense_{i}")(x)
            if layer.activation != "none":
                x = ACTIVATIONS[layer.activation](x)
        if self.config.normalize:
            x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        return x


def pool(x_BTD: Array, real_BT: Array, mode: Pooling) -> Array:
    """Return one vector for each row (B, D), of the states where `real_BT` is true.

    The real ones come first in a row, and the others are 0.
    """
    if mode == "max":
        lowest = jnp.where(real_BT, 0.0, -jnp.inf)[..., None]
        return jnp.where(real_BT.any(axis=1)[:, None], (x_BTD + lowest).max(axis=1), 0)
    index_1T = jnp.arange(x_BTD.shape[1])[None]
    count_B1 = jnp.maximum(real_BT.sum(axis=1, keepdims=True), 1)
    weights_BT = {
        "first": index_1T == 0,
        "last": index_1T == count_B1 - 1,
        "mean": real_BT / count_B1,
        "mean_sqrt": real_BT / jnp.sqrt(count_B1),
        "weighted_mean": real_BT * (index_1T + 1) / (count_B1 * (count_B1 + 1) / 2),
    }[mode]
    return jnp.einsum("BT,BTD->BD", weights_BT.astype(x_BTD.dtype), x_BTD)


class LabelLayer(nnx.Module):
    """A layer and a norm before the label head (ModernBERT, Warner et al. 2024)."""

    def __init__(self, key: Array, config: EncoderConfig) -> None:
        c, keys = config, jax.random.split(key)
        bias, dims = c.head_layer_bias, ({"embed": c.dim}, {"features": c.dim})
        self.activation = c.activation
        self.dense = Linear(keys[0], *dims, bias=bias)
        self.norm = make_norm(keys[1], c.norm, c.dim, epsilon=c.norm_epsilon, bias=bias)

    def __call__(self, x: Array) -> Array:
        """Transform vectors (..., D)."""
        return self.norm(ACTIVATIONS[self.activation](self.dense(x)))


class Classifier(Linear):
    """Logits over labels, of a text or of each token (BERT, Devlin et al. 2019)."""

    def __init__(
        self,
        key: Array,
        dim: int,
        num_labels: int,
        *,
        dropout: float,
        bias: bool = True,
        layer: LabelLayer | None = None,
    ) -> None:
        super().__init__(key, {"embed": dim}, {"features": num_labels}, bias=bias)
        self.dropout = dropout
        self.layer = layer

    def __call__(self, x: Array, *, key: Array | None = None) -> Array:
        """Return float32 logits (..., C) of vectors (..., D); dropout with a key."""
        x = x if self.layer is None else self.layer(x)
        x = dropout(x, rate=self.dropout, key=key)
        return super().__call__(x.astype(jnp.float32))
