"""Predict a target, token by token, from a source or from a prompt before it.

B batch, S source length, T length, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp

from lmjax.config.text_task import VocabularyTaskConfig
from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.tasks.losses import padding, text_shapes
from lmjax.tasks.task import EvalOutput, LossOutput
from lmjax.tasks.vocabulary import VocabularyTask, vocabulary_metrics
from lmjax.types import Array, Batch, Params


@dataclasses.dataclass(frozen=True)
class Seq2Seq(VocabularyTask):
    """The loss of `targets` (B, T), given a `source` (B, S).

    The two are cut from one window of text, or are the texts of an example.
    """

    config: VocabularyTaskConfig

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return the arrays of sources (B, S) and of targets (B, T)."""
        source = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        names = ("source", "source_segments", "source_positions")
        return dict.fromkeys(names, source) | text_shapes(batch_size, target_length)

    def loss(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        key: Array | None,
        carry: State | None = None,
    ) -> LossOutput:
        """Return the loss where `weights` (B, T) are not 0; also counts padding."""
        hidden_BTD = model.hidden(params, batch, key=key)
        layer = model.output_layer(params, hidden_BTD)
        output = self._loss(layer, hidden_BTD, batch)
        return output._replace(metrics=output.metrics | {"padding": padding(batch)})

    def evaluate(
        self,
        model: Model,
        params: Params,
        batch: Batch,
        *,
        carry: State | None = None,
    ) -> EvalOutput:
        """Return the plain loss and the accuracy of the most likely token."""
        layer = model.output_layer(params, model.hidden(params, batch))
        return EvalOutput(vocabulary_metrics(layer, batch, self.config), {})


@dataclasses.dataclass(frozen=True)
class PromptedLM(Seq2Seq):
    """The loss of targets that follow a prompt in the same row.

    The prompt itself carries no loss (InstructGPT, Ouyang et al. 2022; FLAN, Wei et al.
    2022).
    """

    def batch_shapes(
        self, batch_size: int, length: int, *, target_length: int = 0
    ) -> Batch:
        """Return tokens, targets, segments, positions and weights, each (B, T)."""
        return text_shapes(batch_size, length)
