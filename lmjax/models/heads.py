"""Heads: from hidden states to logits over the vocabulary or over labels.

B batch, T length, D dim, V vocabulary, C labels.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lmjax.config.model import EncoderConfig, ModelBaseConfig
from lmjax.errors import ConfigError
from lmjax.nn.feedforward import ACTIVATIONS
from lmjax.nn.linear import Embed, Linear, table_logits
from lmjax.nn.norm import make_norm
from lmjax.nn.param import dropout, normal, param, zeros
from lmjax.parallel.sharding import constrain
from lmjax.types import Array


class Head(nnx.Module):
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
        shape, axes = [c.vocab_size, c.width], ["vocab", "embed"]
        self.embedding = (
            None
            if c.tie_embeddings
            else param(key, shape, axes=axes, init=normal(0.02))
        )
        self.bias = (
            param(key, shape[:1], axes=axes[:1], init=zeros) if c.head_bias else None
        )

    def __call__(self, x: Array, embed: Embed) -> Array:
        """Return float32 logits (..., V) of hidden states (..., D).

        They are of `scale` times the hidden states; a `logit_softcap` other than 0
        makes them softcap * tanh(logits / softcap).
        """
        if self.scale != 1.0:
            x = x * self.scale
        table = embed.embedding if self.embedding is None else self.embedding
        logits = table_logits(x, table[...])
        if self.bias is not None:
            logits = logits + self.bias[...]
        if self.logit_softcap:
            logits = self.logit_softcap * jnp.tanh(logits / self.logit_softcap)
        if logits.ndim == 3:
            logits = constrain(logits, "batch", "length", "vocab")
        return logits


def apply_head(head: Head | None, x: Array, embed: Embed) -> Array:
    """Return float32 logits (..., V) of hidden states (..., D).

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
        self.dense = Linear(keys[0], *dims, bias=True)
        self.norm = make_norm(keys[1], c.norm, c.dim, epsilon=c.norm_epsilon, bias=True)

    def __call__(self, x: Array, embed: Embed) -> Array:
        """Return float32 logits (..., V) of hidden states (..., D)."""
        x = self.norm(ACTIVATIONS[self.activation](self.dense(x)))
        return super().__call__(x, embed)


class Pooler(Linear):
    """A tanh layer on the first token's hidden state (BERT, Devlin et al. 2019)."""

    def __init__(self, key: Array, dim: int) -> None:
        super().__init__(key, {"embed": dim}, {"features": dim}, bias=True)

    def __call__(self, x_BTD: Array) -> Array:
        """Return one vector for each row (B, D)."""
        return jnp.tanh(super().__call__(x_BTD[:, 0]))


class Classifier(Linear):
    """Logits over labels, of a text or of each token (BERT, Devlin et al. 2019)."""

    def __init__(
        self, key: Array, dim: int, num_labels: int, *, dropout: float
    ) -> None:
        super().__init__(key, {"embed": dim}, {"features": num_labels}, bias=True)
        self.dropout = dropout

    def __call__(self, x: Array, *, key: Array | None = None) -> Array:
        """Return float32 logits (..., C) of vectors (..., D); dropout with a key."""
        x = dropout(x, rate=self.dropout, key=key)
        return super().__call__(x.astype(jnp.float32))
