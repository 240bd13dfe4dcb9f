"""What the runs of a sweep measure on their valid split, found before one begins."""

import concurrent.futures
import multiprocessing

from lmjax.config.experiment import Config
from lmjax.data import pipeline
from lmjax.errors import ConfigError, nearest


def check(config: Config, metric: str) -> None:
    """Raise if no run would measure the metric on a valid split.

    Raises:
      ConfigError: that, or what else keeps a run from being built.
    """
    if not pipeline.has_valid_split(config):
        raise ConfigError(f"--metric={metric}: config.data has no valid split")
    # JAX has threads, which must not be where trials are forked off.
    alone = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=alone) as other:
        names = other.submit(measured, config).result()
    if metric not in names:
        raise unmeasured(metric, names)


def unmeasured(metric: str, names: list[str]) -> ConfigError:
    """Return the error of a metric that is none of those measured."""
    return ConfigError(
        f"--metric={metric}: not measured on the valid split{nearest(metric, names)}; "
        f"there are {', '.join(names)}"
    )


def measured(config: Config) -> list[str]:
    """Return the names of what a run measures; computes nothing."""
    from lmjax.train.evaluate import metric_names

    return metric_names(pipeline.resolve_vocabulary(config))
