"""What turns hidden states into answers.

B batch, T length, D dim, V vocabulary, C labels.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import EncoderDecoderConfig, ModelBaseConfig, TransformerConfig
from lmjax.nn.feedforward import ACTIVATIONS
from lmjax.nn.linear import Embed, Linear, attend
from lmjax.nn.norm import LayerNorm, RMSNorm, make_norm
from lmjax.nn.param import dropout, normal, param, zeros
from lmjax.parallel.sharding import constrain
from lmjax.types import Array


class Head(nnx.Module):
    """Logits over the vocabulary, by the embedding's table or one of its own."""

    def __init__(
        self, key: Array, config: ModelBaseConfig, *, transform: bool = False
    ) -> None:
        c, keys = config, jax.random.split(key, 3)
        self.config = c
        # BERT predicts masked tokens from hidden states that go through a layer more.
        dims = {"embed": c.dim}, {"features": c.dim}
        self.dense = Linear(keys[0], *dims, bias=True) if transform else None
        self.norm = _norm(keys[1], c) if transform else None
        shape, axes = [c.vocab_size, c.width], ["vocab", "embed"]
        self.embedding = (
            None
            if c.tie_embeddings
            else param(keys[2], shape, axes=axes, init=normal(0.02))
        )
        self.bias = (
            param(keys[2], shape[:1], axes=axes[:1], init=zeros)
            if c.head_bias
            else None
        )

    def __call__(self, x: Array, embed: Embed) -> Array:
        """Return float32 logits (..., V) of hidden states (..., D)."""
        c = self.config
        if self.dense is not None and self.norm is not None:
            assert isinstance(c, TransformerConfig)
            x = self.norm(ACTIVATIONS[c.activation](self.dense(x)))
        if isinstance(c, EncoderDecoderConfig) and c.scale_logits:
            x = x * c.dim**-0.5
        table = embed.embedding if self.embedding is None else self.embedding
        logits = attend(x, table[...])
        if self.bias is not None:
            logits = logits + self.bias[...]
        if isinstance(c, TransformerConfig) and c.logit_softcap:
            logits = c.logit_softcap * jnp.tanh(logits / c.logit_softcap)
        if logits.ndim == 3:
            logits = constrain(logits, "batch", "length", "vocab")
        return logits


def _norm(key: Array, config: ModelBaseConfig) -> LayerNorm | RMSNorm:
    c = config
    assert isinstance(c, TransformerConfig), "no other network transforms"
    return make_norm(key, c.norm, c.dim, epsilon=c.norm_epsilon, bias=True)


class Pooler(Linear):
    """A tanh layer on the first token's hidden state (BERT, Devlin et al. 2019)."""

    def __init__(self, key: Array, dim: int) -> None:
        super().__init__(key, {"embed": dim}, {"features": dim}, bias=True)

    def __call__(self, x_BTD: Array) -> Array:
        """Return one vector for each row (B, D)."""
        return jnp.tanh(super().__call__(x_BTD[:, 0]))


class Classifier(Linear):
    """Logits over some labels (BERT, Devlin et al. 2019)."""

    def __init__(
        self, key: Array, dim: int, num_labels: int, *, dropout: float
    ) -> None:
        super().__init__(key, {"embed": dim}, {"features": num_labels}, bias=True)
        self.dropout = dropout

    def __call__(self, x: Array, *, key: Array | None = None) -> Array:
        """Return float32 logits (..., C) of vectors (..., D); dropout with a key."""
        x = dropout(x, rate=self.dropout, key=key)
        return super().__call__(x.astype(jnp.float32))
