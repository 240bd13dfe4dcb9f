"""The steps that flags of `lmjax compress` ask for."""

from pathlib import Path

from lmjax.compress.calibrate import NUM_WINDOWS, Calibration
from lmjax.compress.low_rank import make_low_rank_step
from lmjax.compress.prune import make_prune_step
from lmjax.compress.quantize import make_quantize_step
from lmjax.compress.step import Step
from lmjax.errors import UserError


def choose_steps(
    *,
    prune: str | None = None,
    low_rank: str | None = None,
    quantize: str | None = None,
    method: str | None = None,
    embeddings: str | None = None,
    activations: str | None = None,
    cache: str | None = None,
    calibrate: Path | None = None,
    num_windows: int | None = None,
) -> list[Step]:
    """Return the steps that the flags ask for, in the order in which they apply.

    Args:
      prune: METHOD:AMOUNT, see `prune.make_prune_step`.
      low_rank: FRACTION:PATTERN,..., see `low_rank.parse_low_rank`.
      quantize: the format of the matrices; see `quantize.parse_format`.
      method: how they are rounded, one of `quantize.METHODS`.
      embeddings: "int8" by default, or "float".
      activations: "float" by default, or "int8".
      cache: the same.
      calibrate: the text of steps that read one.
      num_windows: of it; by default 64.

    Raises:
      UserError: a flag is wrong, or none asks for a step.
    """
    if num_windows and calibrate is None:
        raise UserError(f"--windows={num_windows}: needs --calibrate=FILE")
    calibration = None
    if calibrate is not None:
        calibration = Calibration(
            file=calibrate, num_windows=num_windows or NUM_WINDOWS
        )
    steps: list[Step] = []
    options = {
        "method": method,
        "embeddings": embeddings,
        "activations": activations,
        "cache": cache,
    }
    for name, value in options.items():
        if value is not None and quantize is None:
            raise UserError(f"--{name}={value}: needs --quantize")
    if prune is not None:
        steps.append(make_prune_step(prune, calibration=calibration))
    if low_rank is not None:
        if quantize is not None:
            raise UserError(f"--low_rank={low_rank}: cannot be used with --quantize")
        steps.append(make_low_rank_step(low_rank, calibration=calibration))
    if quantize is not None:
        steps.append(make_quantize_step(quantize, calibration=calibration, **options))
    if not steps:
        raise UserError("--prune, --quantize or --low_rank: must be given")
    if calibration is not None and not any(step.reads_text for step in steps):
        raise UserError(f"--calibrate={calibrate}: none of the steps reads a text")
    return steps
