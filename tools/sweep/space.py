"""The search space: leaves of the config, and the values that each may take."""

import typing
from collections.abc import Mapping
from typing import Annotated, Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from lmjax.config.experiment import Config, to_dict
from lmjax.config.parse import leaf_type, leaf_value
from lmjax.errors import UserError, nearest

Space = dict[str, BaseDistribution]  # by leaf, "optim.learning_rate"
RANGES = "LOW:HIGH, log:LOW:HIGH, int:LOW:HIGH[:STEP] or choice:A,B,..."


def parse_space(ranges: Mapping[str, str], config: Config) -> Space:
    """Return the distribution of each leaf of a config that has a range.

    Raises:
      UserError: there is no such leaf, or the range does not fit its type.
    """
    if not ranges:
        raise UserError(f"nothing to search: expected --search.a.b={RANGES}")
    space: Space = {}
    for leaf, text in ranges.items():
        kind = leaf_type(Config, to_dict(config), leaf)
        try:
            space[leaf] = _parse_range(leaf, text, kind)
        except UserError as error:
            raise UserError(f"--search.{leaf}={text}: {error}") from error
    return space


def _parse_range(leaf: str, text: str, kind: Any) -> BaseDistribution:
    base = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    if typing.get_origin(base) is tuple:
        raise UserError("a tuple cannot be searched")
    prefix, _, rest = text.partition(":")
    if prefix == "choice":
        choices = [leaf_value(kind, choice, leaf) for choice in rest.split(",")]
        for choice in choices:
            if choices.count(choice) > 1:
                raise UserError(f"{choice} is given more than once")
        return CategoricalDistribution(choices)
    hint = "" if prefix in ("log", "int") else nearest(prefix, ("choice", "log", "int"))
    bounds = (rest if prefix in ("log", "int") else text).split(":")
    if hint or not 2 <= len(bounds) <= 2 + (prefix == "int"):
        raise UserError(f"must be {RANGES}{hint}")
    if base not in (int, float):
        names = {bool: (True, False), str: ("A", "B")}.get(base, typing.get_args(base))
        raise UserError(f"not a number; expected choice:{','.join(map(str, names))}")
    if base is float and prefix == "int":
        raise UserError(f"not an integer; expected {rest}")
    if base is int and prefix not in ("log", "int"):
        raise UserError(f"an integer; expected int:{text}")
    low, high = (leaf_value(kind, bound, leaf) for bound in bounds[:2])
    if low >= high:
        raise UserError(f"LOW = {low} must be below HIGH = {high}")
    if prefix == "log" and low <= 0:
        raise UserError(f"LOW = {low} must be > 0 for a logarithm")
    if base is float:
        return FloatDistribution(low, high, log=prefix == "log")
    step = (bounds[2:] or ["1"])[0]
    if not step.isdecimal() or not int(step) or (high - low) % int(step):
        raise UserError(
            f"HIGH = {high} must be LOW = {low} plus a multiple of STEP = {step}"
        )
    return IntDistribution(low, high, log=prefix == "log", step=int(step))


def to_flags(values: Mapping[str, Any]) -> list[str]:
    """Return values as flags of `lmjax train`."""
    return [f"--config.{leaf}={value}" for leaf, value in values.items()]


def format_value(value: Any) -> str:
    """Return a value, rounded if it is a float."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
