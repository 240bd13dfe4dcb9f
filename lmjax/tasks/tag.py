"""Tagging: give each word one of some labels. B batch, T length, C labels."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config.task import TagConfig
from lmjax.models import Model
from lmjax.tasks.losses import padding, token_loss
from lmjax.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class Tag:
    """The loss of `labels` (B, T) where `weights` (B, T) are not 0.

    That is at one token of each word: the first, as in BERT (Devlin et al. 2019), or
    of a model that reads from left to right the last.
    """

    config: TagConfig
    scores_text = False

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return what a batch holds."""
        row = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        names = ("tokens", "segments", "positions", "token_types", "labels")
        weights = jax.ShapeDtypeStruct((batch_size, length), jnp.float32)
        return {**dict.fromkeys(names, row), "weights": weights}

    def loss(
        self, model: Model, params: Params, batch: Batch, key: Array | None
    ) -> tuple[Array, Array, Metrics]:
        """Return the objective's sum, its weight, {"loss": nats a word, "padding"}."""
        logits_BTC = self.logits(model, params, batch, key)
        asked = {**batch, "targets": batch["labels"]}
        objective, weight, metrics = token_loss(logits_BTC, asked, self.config)
        return objective, weight, metrics | {"padding": padding(batch)}

    def evaluate(self, model: Model, params: Params, batch: Batch) -> Metrics:
        """Return the plain loss; answers are judged by sentence, not by row."""
        logits_BTC = self.logits(model, params, batch)
        asked = {**batch, "targets": batch["labels"]}
        return token_loss(logits_BTC, asked, TagConfig())[2]

    def predict(self, model: Model, params: Params, batch: Batch) -> dict[str, Array]:
        """Return {"tags": (B, T)}, of which those at a token of a word count."""
        logits_BTC = self.logits(model, params, batch)
        return {"tags": jnp.argmax(logits_BTC, axis=-1)}

    def logits(
        self, model: Model, params: Params, batch: Batch, key: Array | None = None
    ) -> Array:
        """Return float32 logits (B, T, C); dropout only with a key."""
        keys = (None, None) if key is None else jax.random.split(key)
        hidden_BTD = model.hidden(params, batch, key=keys[0])
        return model.label_logits(params, hidden_BTD, key=keys[1])
