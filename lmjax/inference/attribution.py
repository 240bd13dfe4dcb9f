"""How much the log-probability of a prediction depends on each token of a text.

R rows that are computed at once, T length, D dim.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import UserError
from lmjax.inference.explained import Explained
from lmjax.models import Model
from lmjax.tasks.task import Task
from lmjax.types import Array, Batch, Params

Baseline = Literal["zero", "mask"]

TOLERANCE = 5e-3  # of the sum of integrated gradients, relatively
MAX_PANELS = 64  # into which the way from the baseline is cut at most
MAX_TOKENS = 4096  # that are computed at once


@dataclasses.dataclass(frozen=True, eq=False)
class Attribution:
    """Scores by the vectors of tokens, as one row or as many at once.

    Compiled once for each padded length.
    """

    model: Model
    task: Task
    name: Literal["embeddings", "source_embeddings"]  # those that change

    def integrated_gradients(
        self, params: Params, explained: Explained, baseline_TD: Array, x_TD: Array
    ) -> tuple[np.ndarray, float, float]:
        """Return scores (T,), and the values of the text and of the baseline.

        The gradients are integrated along the straight line from the baseline to the
        vectors of the text (Sundararajan et al. 2017), by Gauss's rule on parts of it.
        The part that is off by most is halved until the scores add up to the
        difference of the values.
        """
        batch = explained.batch
        nodes_R, weights_R = np.polynomial.legendre.leggauss(num_rows(x_TD))

        def integrate(start: float, width: float) -> tuple[np.ndarray, float, float]:
            at_R = start + width * (nodes_R + 1) / 2
            at_R = np.concatenate([at_R, [start, start + width]])
            shares_R = np.concatenate([weights_R * width / 2, [0.0, 0.0]])
            values_R, scores_T = self._integrate(
                params, batch, baseline_TD, x_TD, np.float32(at_R), np.float32(shares_R)
            )
            ends = np.asarray(values_R, np.float64)[-2:]
            return np.asarray(scores_T, np.float64), float(ends[0]), float(ends[1])

        panels = {0.0: (1.0, integrate(0.0, 1.0))}
        _, (_, low, high) = panels[0.0]
        allowed = TOLERANCE * abs(high - low) + 1e-6
        while len(panels) < MAX_PANELS:
            errors = {start: _error(found) for start, (_, found) in panels.items()}
            if sum(errors.values()) <= allowed:
                break
            start = max(errors, key=lambda start: errors[start])
            half = panels[start][0] / 2
            for begin in (start, start + half):
                panels[begin] = half, integrate(begin, half)
        scores_T = np.sum([found[0] for _, found in panels.values()], axis=0)
        return scores_T, high, low

    def leave_one_out(
        self, params: Params, explained: Explained, baseline_TD: Array, x_TD: Array
    ) -> tuple[np.ndarray, float]:
        """Return scores (T,): what is lost without a token, and the text's value.

        A token is left out by the baseline's vector in its place (Li et al. 2016).
        """
        places, size = explained.places, num_rows(x_TD)
        scores_T, value = np.zeros(len(x_TD)), 0.0
        for first in range(0, max(len(places), 1), size):
            group = places[first : first + size]
            # The first row is the whole text: no place is left out.
            left_out = np.full(size + 1, -1)
            left_out[1 : 1 + len(group)] = group
            values_R = self._leave_out(
                params, explained.batch, baseline_TD, x_TD, left_out
            )
            value, *others = np.asarray(values_R, np.float64).tolist()
            scores_T[group] = value - np.array(others[: len(group)])
        return scores_T, value

    def value(self, params: Params, batch: Batch, x_TD: Array) -> Array:
        """Return the log-probability of the labels of a row, with vectors as given."""
        replace: dict[str, Array] = {self.name: x_TD[None]}
        with self.model.capture(replace):
            loss, _ = self.task.evaluate(self.model, params, batch).metrics["loss"]
        return -loss

    @functools.cached_property
    def vectors(self) -> Any:
        """Return the function of the vectors (T, D) of a row's tokens."""

        def vectors(params: Params, batch: Batch) -> Array:
            _, captured = self.model.hidden_with_intermediates(params, batch)
            return captured[self.name][0]

        return jax.jit(vectors)

    @functools.cached_property
    def _integrate(self) -> Any:
        def integrate(
            params: Params,
            batch: Batch,
            baseline_TD: Array,
            x_TD: Array,
            at_R: Array,
            shares_R: Array,
        ) -> tuple[Array, Array]:
            change_TD = x_TD - baseline_TD
            rows_RTD = baseline_TD + at_R[:, None, None] * change_TD
            value = functools.partial(self.value, params, batch)
            values_R, slopes_RTD = jax.vmap(jax.value_and_grad(value))(rows_RTD)
            mean_TD = jnp.einsum("R,RTD->TD", shares_R, slopes_RTD)
            return values_R, (mean_TD * change_TD).sum(axis=-1)

        return jax.jit(integrate)

    @functools.cached_property
    def _leave_out(self) -> Any:
        def leave_out(
            params: Params,
            batch: Batch,
            baseline_TD: Array,
            x_TD: Array,
            place_R: Array,
        ) -> Array:
            def value(place: Array) -> Array:
                left = (jnp.arange(len(x_TD)) == place)[:, None]
                return self.value(params, batch, jnp.where(left, baseline_TD, x_TD))

            return jax.vmap(value)(place_R)

        return jax.jit(leave_out)


def make_baseline(
    attribution: Attribution,
    params: Params,
    explained: Explained,
    *,
    baseline: Baseline,
    mask_id: int | None,
) -> tuple[Array, Array]:
    """Return the vectors of the baseline and of the text (T, D).

    The tokens of the text have vectors of zeros in the baseline, or that of the mask
    token; special tokens stay as they are.

    Raises:
      UserError: there is no mask token.
    """
    x_TD = attribution.vectors(params, explained.batch)
    is_text_T1 = np.zeros((len(x_TD), 1), bool)
    is_text_T1[explained.places] = True
    if baseline == "zero":
        return jnp.where(is_text_T1, 0.0, x_TD), x_TD
    if mask_id is None:
        raise UserError("baseline = 'mask': the tokenizer has no mask token")
    side = "source" if explained.has_source else "tokens"
    masked = np.where(is_text_T1[:, 0], mask_id, explained.batch[side])
    batch = {**explained.batch, side: masked.astype(np.int32)}
    return attribution.vectors(params, batch), x_TD


def num_rows(x_TD: Array) -> int:
    """Return how many rows of a length are computed at once."""
    return max(4, min(32, MAX_TOKENS // len(x_TD)))


def _error(found: tuple[Any, float, float]) -> float:
    scores_T, low, high = found
    return abs(float(scores_T.sum()) - (high - low))
