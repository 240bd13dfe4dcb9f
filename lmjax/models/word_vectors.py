"""Word vectors: two tables. B batch, T length, D dim, V vocabulary."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from lmjax.config.model import WordVectorsConfig
from lmjax.models import flops
from lmjax.models.heads import OutputLayer
from lmjax.nn.linear import Embed
from lmjax.types import Array, Batch


class WordVectorsNetwork(nnx.Module):
    """The vectors of words, and those of words as neighbours (Mikolov et al. 2013).

    They begin as word2vec's: the first in +- 1/2D, the second at 0.
    """

    def __init__(self, key: Array, config: WordVectorsConfig) -> None:
        self.config = config
        keys = jax.random.split(key)
        table = {"vocab": config.vocab_size, "embed": config.dim}
        # The standard deviation of what is drawn evenly from +- 1/2D.
        self.embed = Embed(keys[0], table, std=12**-0.5 / config.dim)
        self.neighbour = Embed(keys[1], table, std=0.0)

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Array:
        """Return the vector of each token (B, T, D)."""
        return self.embed(batch["tokens"], jnp.dtype(self.config.dtype))

    def neighbours(self, ids: Array) -> Array:
        """Return the vectors of words as neighbours, (..., D)."""
        return self.neighbour(ids, jnp.dtype(self.config.dtype))

    def output_layer(self, x: Array) -> OutputLayer:
        """Return what gives the scores of all words as neighbours."""
        return OutputLayer(x, self.neighbour.vectors()[0])

    @staticmethod
    def resolve(
        config: WordVectorsConfig, *, platform: str, mesh: Mesh | None = None
    ) -> WordVectorsConfig:
        """Return the config: no leaf but `dtype` depends on the platform."""
        return config

    @staticmethod
    def count_macs(
        config: WordVectorsConfig, kernels: flops.KernelSizes, batch: Batch
    ) -> float:
        """Return the multiply-adds of a row: of each word with words and noise."""
        length = batch["tokens"].shape[1]
        num_noise = batch["noise"].shape[1] if "noise" in batch else 0
        return length * (length + num_noise) * config.dim
