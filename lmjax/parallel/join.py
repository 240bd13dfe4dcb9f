"""How a process joins the other processes of its run."""

import os

import jax

from lmjax.errors import UserError

# Environment variables that a launcher sets, by the names that jax gives them.
LAUNCHER = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join_processes(*, detect: bool) -> None:
    """Join the other processes of the run, if the environment names them.

    Must be called before anything touches a device.

    Args:
      detect: take what LAUNCHER does not set from the cluster (SLURM, TPU pods and the
        others that `jax.distributed.initialize` detects).

    Raises:
      UserError: LAUNCHER is set in part, or the processes cannot be reached.
    """
    given = {name: os.environ[name] for name in LAUNCHER if os.environ.get(name)}
    missing = [name for name in LAUNCHER if name not in given]
    if not given and not detect:
        return
    if missing and not detect:
        raise UserError(
            f"{' and '.join(missing)}: not set, but {' and '.join(given)} is; set all "
            f"{len(LAUNCHER)}, or detect the cluster with --distributed"
        )
    address, *numbers = (given.get(name) for name in LAUNCHER)
    # The training loop handles SIGTERM; jax's own service would catch it first.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        num, index = (None if text is None else int(text) for text in numbers)
        jax.distributed.initialize(address, num, index)
    except (ValueError, RuntimeError) as error:
        text = str(error).strip().splitlines()[0]
        where = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UserError(f"{where or '--distributed'}: {text}") from error
