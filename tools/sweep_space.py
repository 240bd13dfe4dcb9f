"""What a sweep searches: leaves of the config, and the values each may take."""

import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from lmjax.config.experiment import Config, to_dict
from lmjax.config.parse import leaf_type, leaf_value
from lmjax.errors import ConfigError, UserError, nearest

Space = dict[str, BaseDistribution]  # by the leaf, "optim.learning_rate"
SPELLINGS = "LOW:HIGH, log:LOW:HIGH, int:LOW:HIGH[:STEP] or choice:A,B,..."


def parse_space(searched: Sequence[str], config: Config) -> Space:
    """Return what `a.b=SPELLING` texts say is searched around a config.

    Raises:
      ConfigError: no such leaf, or not what it can be; in one line.
    """
    if not searched:
        raise ConfigError(f"nothing to search: give --search.a.b={SPELLINGS}")
    space: Space = {}
    for text in searched:
        leaf, equals, spelling = text.partition("=")
        if not equals:
            raise ConfigError(
                f"--search.{leaf}: is written --search.{leaf}={SPELLINGS}"
            )
        if leaf in space:
            raise ConfigError(f"--search.{leaf}: is there more than once")
        kind = leaf_type(Config, to_dict(config), leaf)
        try:
            space[leaf] = _distribution(leaf, spelling, kind)
        except UserError as error:
            raise ConfigError(f"--search.{leaf}={spelling}: {error}") from error
    return space


def _distribution(leaf: str, spelling: str, kind: Any) -> BaseDistribution:
    base = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    if typing.get_origin(base) is tuple:
        raise ConfigError("a tuple cannot be searched")
    head, _, rest = spelling.partition(":")
    if head == "choice":
        return _choices(leaf, rest, kind)
    hint = "" if head in ("log", "int") else nearest(head, ("choice", "log", "int"))
    if not rest or hint:
        raise ConfigError(f"must be {SPELLINGS}{hint}")
    if base not in (int, float):
        named = f", as in choice:{_example(base)}"
        raise ConfigError(f"takes no numbers; give choices{named}")
    if head == "log":
        return _range(leaf, rest.split(":"), kind, integer=base is int, log=True)
    if head == "int" and base is float:
        raise ConfigError(f"takes fractions, not integers; give {rest}")
    if head != "int" and base is int:
        raise ConfigError(f"takes integers; give int:{spelling}")
    bounds = rest if head == "int" else spelling
    return _range(leaf, bounds.split(":"), kind, integer=base is int, log=False)


def _example(base: Any) -> str:
    choices = typing.get_args(base) if typing.get_origin(base) is Literal else "AB"
    return ",".join(map(str, choices if base is not bool else (True, False)))


def _range(
    leaf: str, bounds: list[str], kind: Any, *, integer: bool, log: bool
) -> BaseDistribution:
    if len(bounds) != 2 and not (integer and not log and len(bounds) == 3):
        raise ConfigError(f"must be {SPELLINGS}")
    low, high = (leaf_value(kind, bound, leaf) for bound in bounds[:2])
    if low >= high:
        raise ConfigError(f"{low} is not below {high}")
    if log and low <= 0:
        raise ConfigError(f"a logarithm needs more than {low}")
    if not integer:
        return FloatDistribution(low, high, log=log)
    step = 1
    if len(bounds) == 3:
        if not bounds[2].isdecimal():
            raise ConfigError(f"STEP = {bounds[2]!r} is no whole number")
        step = int(bounds[2])
    if step < 1 or (high - low) % step:
        raise ConfigError(f"{high} is not {low} and some steps of {step}")
    return IntDistribution(low, high, log=log, step=step)


def _choices(leaf: str, text: str, kind: Any) -> BaseDistribution:
    choices = [leaf_value(kind, choice, leaf) for choice in text.split(",")]
    for choice in choices:
        if choices.count(choice) > 1:
            raise ConfigError(f"{choice} is there more than once")
    return CategoricalDistribution(choices)


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """Return the trial's value of each leaf: drawn, or what it was drawn before."""
    values: dict[str, Any] = {}
    for leaf, d in space.items():
        match d:
            case FloatDistribution():
                values[leaf] = trial.suggest_float(leaf, d.low, d.high, log=d.log)
            case IntDistribution():
                values[leaf] = trial.suggest_int(
                    leaf, d.low, d.high, step=d.step, log=d.log
                )
            case CategoricalDistribution():
                values[leaf] = trial.suggest_categorical(leaf, d.choices)
    return values


def flags(values: Mapping[str, Any]) -> list[str]:
    """Return values as lmjax takes them on its command line."""
    return [f"--config.{leaf}={value}" for leaf, value in values.items()]


def brief(values: Mapping[str, Any]) -> str:
    """Return values as one reads them: without sections, and rounded."""
    return "  ".join(f"{n.split('.')[-1]} {short(v)}" for n, v in values.items())


def short(value: Any) -> str:
    """Return a value rounded to what one compares."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
