"""Validation of the leaves of rotary positions, `config.model.rope_*`."""

from collections.abc import Iterator
from typing import Any

# The leaves that only some values of `rope_scaling` read, with their defaults.
_SCALING_LEAVES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "rope_beta_fast": (32.0, ("yarn",)),
    "rope_beta_slow": (1.0, ("yarn",)),
    "rope_truncate": (True, ("yarn",)),
    "rope_attention_factor": (0.0, ("yarn", "longrope")),
    "rope_short_factors": ((), ("longrope",)),
    "rope_long_factors": ((), ("longrope",)),
}


def validate_rope(model: Any, path: str) -> Iterator[str]:
    """Yield the problems between the leaves of a `TransformerConfig` with RoPE."""
    c = model
    for name in ("rope_theta", "rope_factor", "rope_fraction"):
        if getattr(c, name) <= 0:
            yield f"{path}.{name} = {getattr(c, name)}: must be > 0"
    if c.rotary_dim % 2 or not c.rotary_dim:
        of = f" * {path}.rope_fraction = {c.rope_fraction}"
        yield (
            f"{path}.head_dim = {c.head_dim}{of if c.rope_fraction != 1 else ''}: must "
            f"be even and > 0 for {path}.position = 'rope'"
        )
    if c.rope_local_theta and not c.window:
        yield f"{path}.rope_local_theta = {c.rope_local_theta}: needs {path}.window"
    if c.rope_low_frequency_factor >= c.rope_high_frequency_factor:
        yield (
            f"{path}.rope_low_frequency_factor = {c.rope_low_frequency_factor}: must "
            f"be below {path}.rope_high_frequency_factor"
        )
    for name, (default, scalings) in _SCALING_LEAVES.items():
        if c.rope_scaling not in scalings and getattr(c, name) != default:
            yield (
                f"{path}.{name} = {getattr(c, name)}: needs {path}.rope_scaling = "
                f"{' or '.join(map(repr, scalings))}, not {c.rope_scaling!r}"
            )
    match c.rope_scaling:
        case "yarn":
            yield from _validate_yarn(c, path)
        case "longrope":
            yield from _validate_longrope(c, path)
        case "dynamic" if c.rotary_dim == 2:
            yield (
                f"{path}.rope_scaling = 'dynamic': needs more than 2 rotated "
                f"dimensions ({path}.head_dim = {c.head_dim})"
            )


def _validate_yarn(model: Any, path: str) -> Iterator[str]:
    c = model
    if not 0 < c.rope_beta_slow < c.rope_beta_fast:
        yield (
            f"{path}.rope_beta_slow = {c.rope_beta_slow}: must be > 0 and below "
            f"{path}.rope_beta_fast = {c.rope_beta_fast}"
        )
    if c.rope_theta <= 1:
        yield f"{path}.rope_theta = {c.rope_theta}: must be > 1 for yarn"


def _validate_longrope(model: Any, path: str) -> Iterator[str]:
    c = model
    for name in ("rope_short_factors", "rope_long_factors"):
        factors = getattr(c, name)
        if len(factors) != c.rotary_dim // 2 or min(factors, default=0) <= 0:
            yield (
                f"{path}.{name} = {factors}: must be {c.rotary_dim // 2} numbers > 0, "
                f"half of the rotated dimensions, for {path}.rope_scaling = 'longrope'"
            )
    if c.rope_factor > 1 and c.rope_original_length < 2:
        yield f"{path}.rope_original_length = 1: must be > 1 for longrope"
