"""Classification: give each text one of some labels. B batch, T length, C labels."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config.task import ClassifyConfig
from lmjax.metrics.classification import confusion
from lmjax.models import Model
from lmjax.tasks.losses import padding, token_loss
from lmjax.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class Classify:
    """The loss of `labels` (B,) where `weights` (B,) are not 0.

    From an encoder's pooler, as in BERT (Devlin et al. 2019), a decoder's last token,
    as in GPT (Radford et al. 2018), or the states of a recurrent network.
    """

    config: ClassifyConfig
    scores_text = False

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return what a batch holds."""
        row = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        names = ("tokens", "segments", "positions", "token_types")
        return {
            **dict.fromkeys(names, row),
            "labels": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
            "weights": jax.ShapeDtypeStruct((batch_size,), jnp.float32),
        }

    def loss(
        self, model: Model, params: Params, batch: Batch, key: Array | None
    ) -> tuple[Array, Array, Metrics]:
        """Return the objective's sum, its weight, {"loss": nats a row, "padding"}."""
        logits_BC = self.logits(model, params, batch, key)
        asked = {**batch, "targets": batch["labels"]}
        objective, weight, metrics = token_loss(logits_BC, asked, self.config)
        return objective, weight, metrics | {"padding": padding(batch)}

    def evaluate(self, model: Model, params: Params, batch: Batch) -> Metrics:
        """Return the plain loss, and the confusion matrix."""
        logits_BC = self.logits(model, params, batch)
        plain = ClassifyConfig(labels=self.config.labels)
        asked = {**batch, "targets": batch["labels"]}
        _, weight, metrics = token_loss(logits_BC, asked, plain)
        matrix = confusion(
            jnp.argmax(logits_BC, axis=-1),
            batch["labels"],
            batch["weights"],
            num=logits_BC.shape[-1],
        )
        return metrics | {"confusion": (matrix, weight)}

    def predict(self, model: Model, params: Params, batch: Batch) -> dict[str, Array]:
        """Return {"probabilities": (B, C)}."""
        logits_BC = self.logits(model, params, batch)
        return {"probabilities": jax.nn.softmax(logits_BC, axis=-1)}

    def logits(
        self, model: Model, params: Params, batch: Batch, key: Array | None = None
    ) -> Array:
        """Return float32 logits (B, C); dropout only with a key."""
        keys = (None, None) if key is None else jax.random.split(key)
        hidden_BTD = model.hidden(params, batch, key=keys[0])
        summary_BD = model.summary(params, hidden_BTD, batch["segments"])
        return model.label_logits(params, summary_BD, key=keys[1])
