"""The processes that train together.

They run the same steps. Where one of them knows what the others cannot (a signal, a
file, a mistake) they ask each other, here.
"""

import contextlib
import os
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from lmjax.errors import ConfigError, UserError

# What a launcher sets, named as jax names it.
LAUNCHER = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join_processes(*, detect: bool) -> None:
    """Make this process one of several, if its environment says that it is.

    Must come before anything touches a device.

    Args:
      detect: ask the cluster what LAUNCHER does not say (SLURM, TPU pods, and what
        else `jax.distributed.initialize` knows).

    Raises:
      ConfigError: LAUNCHER is half set, or the others cannot be reached.
    """
    said = {name: os.environ[name] for name in LAUNCHER if os.environ.get(name)}
    missing = [name for name in LAUNCHER if name not in said]
    if not said and not detect:
        return
    if missing and not detect:
        raise ConfigError(
            f"{' and '.join(missing)}: not set, but {' and '.join(said)} is; set all "
            f"{len(LAUNCHER)}, or let --distributed ask the cluster"
        )
    address, *numbers = (said.get(name) for name in LAUNCHER)
    # Whether to stop is agreed on by the loop, not by jax's own service.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        num, index = (None if text is None else int(text) for text in numbers)
        jax.distributed.initialize(address, num, index)
    except (ValueError, RuntimeError) as error:
        text = str(error).strip().splitlines()[0]
        where = ", ".join(f"{name}={value}" for name, value in said.items())
        raise ConfigError(f"{where or '--distributed'}: {text}") from error


def several_processes() -> bool:
    """Return whether others train with this process; touches no device if not."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Return whether this process is the one that writes."""
    return not several_processes() or jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Return whether the flag is set in any process; all must ask at once."""
    if not several_processes():
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def allgather_strings(text: str) -> list[str]:
    """Return the text of each process, in their order; all must ask at once."""
    if not several_processes():
        return [text]
    raw = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(raw.size, np.int32))
    padded = np.zeros(max(1, sizes.max()), np.uint8)
    padded[: raw.size] = raw
    rows = multihost_utils.process_allgather(padded)
    return [
        row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
    ]


@contextlib.contextmanager
def sync_errors() -> Iterator[None]:
    """Have what ends one process inside the block end all of them after it.

    Raises:
      UserError: another process found the user's mistake.
      SystemExit: another process was told to leave.
      RuntimeError: another process failed.
    """
    failure: BaseException | None = None
    try:
        yield
    except (Exception, SystemExit) as error:
        failure = error
    found = allgather_strings("" if failure is None else _described(failure))
    if failure is not None:
        raise failure
    for kind, _, text in (line.partition(" ") for line in found if line):
        if kind == SystemExit.__name__:
            raise SystemExit(int(text))
        kinds = {cls.__name__: cls for cls in (UserError, ConfigError)}
        raise kinds.get(kind, RuntimeError)(text)


def _described(error: BaseException) -> str:
    if isinstance(error, UserError):
        return f"{type(error).__name__} {error}"
    if isinstance(error, SystemExit):
        return f"{SystemExit.__name__} {error.code}"
    return f"Error process {jax.process_index()}: {type(error).__name__}: {error}"
