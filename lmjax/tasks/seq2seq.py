"""Write a target, each token from a source, or a prompt, and from those before it."""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config.task import GenerationTaskConfig, PromptedLMConfig, WindowPairConfig
from lmjax.models import Model
from lmjax.tasks.losses import padding, text_shapes, token_loss, token_metrics
from lmjax.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True)
class Seq2Seq:
    """The loss of `targets` (B, T) where `weights` (B, T) are not 0, however made.

    They are given `source` (B, S); or they follow a prompt in its own row, of which
    nothing is learned (InstructGPT, Ouyang et al. 2022; FLAN, Wei et al. 2022).
    """

    config: WindowPairConfig | GenerationTaskConfig
    scores_text = False  # what is read tells part of the text, or all

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return what a batch holds."""
        if isinstance(self.config, PromptedLMConfig):
            return text_shapes(batch_size, length)
        source = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        names = ("source", "source_segments", "source_positions")
        return dict.fromkeys(names, source) | text_shapes(batch_size, target_length)

    def loss(
        self, model: Model, params: Params, batch: Batch, key: Array | None
    ) -> tuple[Array, Array, Metrics]:
        """Return the objective's sum, its weight, {"loss": nats a token, "padding"}."""
        logits_BTV = model.apply(params, batch, key=key)
        objective, weight, metrics = token_loss(logits_BTV, batch, self.config)
        return objective, weight, metrics | {"padding": padding(batch)}

    def evaluate(self, model: Model, params: Params, batch: Batch) -> Metrics:
        """Return the plain loss and how often the most likely token is right."""
        return token_metrics(model.apply(params, batch), batch)
