"""Explain a prediction by the tokens that it rests on: `lm.explain`.

L layers, B batch, N heads, T length, S source length, D dim, V vocabulary, C tokens of
the text that are scored.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmjax import models
from lmjax.config.experiment import Config
from lmjax.config.model import EncoderConfig, ModelConfig, TransformerConfig
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import UserError, nearest
from lmjax.inference.attribution import Attribution, Baseline, make_baseline
from lmjax.inference.explained import EXAMPLE_TASKS, Explained
from lmjax.inference.explanation import ExplainedToken, Explanation
from lmjax.inference.internals import by_layer
from lmjax.models import Model
from lmjax.tasks.task import Task
from lmjax.types import Array, Batch, Params

METHODS = (
    "integrated_gradients",
    "leave_one_out",
    "attention_rollout",
    "attention",
    "logit_lens",
)


def check_method(config: Config, method: str) -> None:
    """Check that a method explains a model.

    Raises:
      UserError: there is no such method, or it means nothing for the model or its task.
    """
    if method not in METHODS:
        raise UserError(
            f"method = {method!r}: must be one of {', '.join(METHODS)}"
            f"{nearest(method, METHODS)}"
        )
    model, kind = config.model, f"config.model.kind = {config.model.kind!r}"
    task = f"config.task.kind = {config.task.kind!r}"
    why = ""
    if not (config.task.kind in EXAMPLE_TASKS or model.can_generate):
        why = f"{task} makes no prediction"
    elif method == "attention_rollout" and model.is_encoder_decoder:
        why = f"{kind} has two stacks; the rollout follows one (method='attention')"
    elif method == "attention" and not _has_attention(model):
        why = f"{kind} has no attention"
    elif method == "attention_rollout" and not isinstance(model, TransformerConfig):
        why = f"{kind} has no layers of attention"
    elif method == "logit_lens" and not isinstance(model, TransformerConfig):
        why = f"{kind} has no blocks that add to one another"
    elif method == "logit_lens" and not model.can_generate:
        why = f"{task} predicts no tokens"
    if why:
        raise UserError(f"method = {method!r}: {why}")


def make_observable(config: ModelConfig, *, platform: str) -> Model:
    """Return the same model with its attention weights to be seen, in float32."""
    config = dataclasses.replace(config, dtype="float32")
    if isinstance(config, TransformerConfig):
        # Rounded inputs would have no slope.
        exact = dataclasses.replace(config.quantize, activations="")
        config = dataclasses.replace(
            config, attention="xla", remat="none", quantize=exact
        )
    return models.build(config, platform=platform)


@dataclasses.dataclass(frozen=True, eq=False)
class Explainer:
    """Explains predictions of one model; compiled once for each padded length."""

    config: Config
    tokenizer: Tokenizer
    model: Model  # observable
    mesh: Mesh

    def explain(
        self,
        params: Params,
        explained: Explained,
        *,
        method: str,
        baseline: Baseline = "zero",
        layer: int | None = None,
        head: int | None = None,
    ) -> Explanation:
        """Return the scores; arguments as for `LanguageModel.explain`.

        Raises:
          UserError: the method or an option of it means nothing here.
        """
        check_method(self.config, method)
        if not len(explained.places):
            raise UserError("text: has no tokens to explain")
        if baseline not in ("zero", "mask"):
            raise UserError(f"baseline = {baseline!r}: must be 'zero' or 'mask'")
        if method != "attention" and (layer is not None or head is not None):
            raise UserError("layer, head: are for method='attention' alone")
        with jax.set_mesh(self.mesh):
            if method in ("integrated_gradients", "leave_one_out"):
                found = self._attribute(params, explained, method, baseline)
            else:
                found = self._observe(params, explained, method, layer, head)
        about = {
            "method": method,
            "target": explained.target,
            "texts": explained.texts,
            "tokens": explained.tokens,
        }
        return Explanation(**{**about, **found})

    def _attribute(
        self, params: Params, explained: Explained, method: str, baseline: Baseline
    ) -> dict[str, Any]:
        attribution = self._attribution(explained.task, explained.has_source)
        baseline_TD, x_TD = make_baseline(
            attribution,
            params,
            explained,
            baseline=baseline,
            mask_id=self.tokenizer.mask_id,
        )
        inputs = params, explained, baseline_TD, x_TD
        places = explained.places
        if method == "leave_one_out":
            scores_T, value = attribution.leave_one_out(*inputs)
            return {"scores": scores_T[places], "value": value}
        scores_T, value, low = attribution.integrated_gradients(*inputs)
        return {"scores": scores_T[places], "value": value, "baseline_value": low}

    def _attribution(self, task: Task, has_source: bool) -> Attribution:
        key = task, has_source
        if key not in self._attributions:
            name: Any = "source_embeddings" if has_source else "embeddings"
            self._attributions[key] = Attribution(self.model, task, name)
        return self._attributions[key]

    @functools.cached_property
    def _attributions(self) -> dict[Any, Attribution]:
        return {}

    def _observe(
        self,
        params: Params,
        explained: Explained,
        method: str,
        layer: int | None,
        head: int | None,
    ) -> dict[str, Any]:
        batch, places = explained.batch, explained.places
        task: Any = explained.task
        if method == "logit_lens":
            return self._lens(params, explained)
        value, captured = self._weights(task, params, batch)
        found: dict[str, Any] = {"value": float(value)}
        if method == "attention_rollout":
            rolled_TT = roll_out(np.asarray(captured["attention"], np.float64)[:, 0])
            scores_T = _target_shares(self.model.config, batch) @ rolled_TT
            return {**found, "scores": scores_T[places]}
        name = "cross_attention" if explained.has_source else "attention"
        weights_LNTS = np.asarray(by_layer(captured[name]))[:, 0]
        weights_TS = np.asarray(
            _choose(_choose(weights_LNTS, layer, "layer"), head, "head"), np.float64
        )
        if explained.has_source:
            asking = np.flatnonzero(batch["weights"][0])
            pieces = [self._piece(i) for i in batch["targets"][0, asking]]
        else:
            asking, pieces = places, [token.piece for token in explained.tokens]
        scores = weights_TS[asking][:, places]
        return {**found, "scores": scores, "rows": tuple(pieces)}

    def _lens(self, params: Params, explained: Explained) -> dict[str, Any]:
        """Return, after each layer, the log-probability of each next token.

        Each layer's hidden states are read as if they were the last ones (logit lens,
        nostalgebraist 2020): the last norm and the head are applied to them. The tokens
        are those of the text, or of the target of a source, and the likeliest are
        `cells`.
        """
        batch = explained.batch
        value, log_probs_LT, best_LT = self._read_layers(explained.task, params, batch)
        size = int((batch["segments"][0] > 0).sum())
        tokens = [
            ExplainedToken(self._piece(i), 0, 0) for i in batch["tokens"][0, :size]
        ]
        if not explained.has_source:
            for place, token in zip(explained.places, explained.tokens, strict=True):
                tokens[place] = token
        cells = [[self._piece(i) for i in row[:size]] for row in np.asarray(best_LT)]
        layers = range(len(cells))
        return {
            "value": float(value),
            "tokens": tuple(tokens),
            "scores": np.asarray(log_probs_LT, np.float64)[:, :size],
            "rows": ("embeddings", *(f"layer {i}" for i in layers[1:])),
            "cells": tuple(map(tuple, cells)),
        }

    def _piece(self, index: Any) -> str:
        return self.tokenizer.id_to_piece(int(index))

    @functools.cached_property
    def _weights(self) -> Any:
        def weights(
            task: Task, params: Params, batch: Batch
        ) -> tuple[Array, dict[str, Array]]:
            with self.model.capture() as captured:
                loss, _ = task.evaluate(self.model, params, batch).metrics["loss"]
            names = ("attention", "cross_attention")
            return -loss, {name: captured[name] for name in names if name in captured}

        return jax.jit(weights, static_argnums=0)

    @functools.cached_property
    def _read_layers(self) -> Any:
        def read(
            task: Task, params: Params, batch: Batch
        ) -> tuple[Array, Array, Array]:
            model = self.model
            with model.capture() as captured:
                loss, _ = task.evaluate(model, params, batch).metrics["loss"]
            first_1BTD = captured["embedded"][None]
            states_LBTD = jnp.concatenate([first_1BTD, captured["hidden"]])

            def read_one(x_BTD: Array) -> tuple[Array, Array]:
                with model.capture({"last_hidden": x_BTD}):
                    logits_TV = model.apply(params, batch)[0]
                log_probs_TV = jax.nn.log_softmax(logits_TV)
                targets_T1 = batch["targets"][0][:, None]
                scores_T1 = jnp.take_along_axis(log_probs_TV, targets_T1, axis=1)
                return scores_T1[:, 0], logits_TV.argmax(axis=-1)

            return -loss, *jax.lax.map(read_one, states_LBTD)

        return jax.jit(read, static_argnums=0)


def roll_out(weights_LNTT: np.ndarray) -> np.ndarray:
    """Return how much of each token arrives at each place of the last layer (T, T).

    Attention rollout (Abnar and Zuidema 2020): the weights, averaged over heads, half
    of them for the residual connection, are multiplied over the layers.
    """
    mixed_LTT = (weights_LNTT.mean(axis=1) + np.eye(weights_LNTT.shape[-1])) / 2
    return functools.reduce(lambda below, layer: layer @ below, mixed_LTT)


def _target_shares(config: ModelConfig, batch: Any) -> np.ndarray:
    """Return how much each place of the last layer has to do with the target (T,)."""
    if "starts" in batch:
        shares_T = np.zeros(batch["tokens"].shape[1])
        for name in ("starts", "ends"):
            shares_T[batch[name][0]] += 0.5
        return shares_T
    if batch["weights"].ndim == 2:
        return np.asarray(batch["weights"][0], np.float64) / batch["weights"][0].sum()
    real_T = np.asarray(batch["segments"][0] > 0, np.float64)
    if isinstance(config, EncoderConfig) and config.summary == "mean":
        return real_T / real_T.sum()
    last = 0 if isinstance(config, EncoderConfig) else int(real_T.sum()) - 1
    return np.eye(len(real_T))[last]


def _choose(weights: np.ndarray, index: int | None, name: str) -> np.ndarray:
    """Return one of the first axis, or its mean."""
    if index is None:
        return weights.mean(axis=0)
    if not -len(weights) <= index < len(weights):
        raise UserError(f"{name} = {index}: must be from 0 to {len(weights) - 1}")
    return weights[index]


def _has_attention(config: ModelConfig) -> bool:
    return isinstance(config, TransformerConfig) or config.is_encoder_decoder
