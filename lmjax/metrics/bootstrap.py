"""Bootstrap intervals of metrics (Efron 1979; paired: Koehn 2004). N units, S samples.

A unit is a document or an example. Two models are compared on the same resamples, so
that what is hard for both does not count as a difference.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
NUM_SAMPLES = 1000
# Of metrics that are computed from whole texts each time, such as BLEU.
NUM_SLOW_SAMPLES = 200
SEED = 0

Metrics = Mapping[str, float]


class Interval(NamedTuple):
    """A value, and between which bounds it lies with `CONFIDENCE`.

    The bounds are None where there is but one unit.
    """

    value: float
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return it as JSON."""
        return self._asdict()


class Resampled(NamedTuple):
    """Metrics of all units, and of each resample of them."""

    values: Metrics
    samples: Mapping[str, np.ndarray]  # (S,) each; (0,) where there is but one unit


def resample(
    compute: Callable[[np.ndarray], Metrics], *, num_units: int, num_samples: int
) -> Resampled:
    """Return metrics of all units and of resamples, the same ones at each call.

    Args:
      compute: from the numbers of the units (N,), some more than once, to metrics.
      num_units: N.
      num_samples: S.
    """
    values = compute(np.arange(num_units))
    random = np.random.default_rng(SEED)
    draws = [
        compute(random.integers(num_units, size=num_units))
        for _ in range(num_samples if num_units > 1 else 0)
    ]
    samples = {name: np.array([draw[name] for draw in draws]) for name in values}
    return Resampled(values, samples)


def interval(found: Resampled, name: str) -> Interval:
    """Return a metric with its percentile interval."""
    return _interval(found.values[name], found.samples[name])


def difference(found: Resampled, first: Resampled, name: str) -> Interval:
    """Return how much a metric differs from that of another model, paired."""
    value = found.values[name] - first.values[name]
    return _interval(value, found.samples[name] - first.samples[name])


def _interval(value: float, samples: Sequence[float] | np.ndarray) -> Interval:
    if not len(samples):
        return Interval(value, None, None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
