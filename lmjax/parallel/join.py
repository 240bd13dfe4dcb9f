"""How a process joins the other processes of its run, and leaves them."""

import logging
import os
import threading
from urllib.request import getproxies

import jax
import jaxlib.version

from lmjax.errors import UserError
from lmjax.parallel import identity, rendezvous
from lmjax.parallel.identity import LAUNCHER as LAUNCHER

log = logging.getLogger(__name__)

JOIN_SECONDS = 120  # for which processes wait for each other, by default
# All processes are there when the runtime connects them.
_CONNECT_SECONDS = 60
# After which the runtime ends the processes of a run that has lost one.
_HEARTBEAT_SECONDS = 12
# For which processes that are done wait for the others: the first still reports.
_SHUTDOWN_SECONDS = 300


def join_processes(*, detect: bool, seconds: float = JOIN_SECONDS) -> None:
    """Join the other processes of the run, if the environment names them.

    Must be called before anything touches a device.

    Args:
      detect: ask the cluster for what the launcher's variables do not say; see
        `identity` for the order.
      seconds: to wait for the others.

    Raises:
      UserError: the environment tells a part only, or the processes do not find each
        other, or have other versions.
    """
    own = identity.find_identity(detect=detect)
    if own is None:
        if ignored := identity.describe_ignored():
            log.warning(ignored)
        return
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.version.__version__}
    greeting = rendezvous.greeting(
        index=own.index, num_processes=own.num_processes, versions=versions
    )
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "")
    rendezvous.meet(greeting, address=own.address, bind=bind, seconds=seconds)
    _use_no_proxy(own.address)
    # The training loop handles SIGTERM; jax's own service would catch it first.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            own.address,
            own.num_processes,
            own.index,
            local_device_ids=own.gpus,
            cluster_detection_method="deactivate",  # jax would hide GPUs
            initialization_timeout=_CONNECT_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        text = str(error).strip().splitlines()[0]
        raise UserError(f"{own.address} ({own.source}): {text}") from error
    log.info(
        "process %d of %d on %s, met at %s (as told by: %s)",
        own.index,
        own.num_processes,
        greeting.host,
        own.address,
        own.source,
    )


def _use_no_proxy(address: str) -> None:
    """Let the runtime connect to an address directly, where a proxy is set."""
    if not getproxies():
        return
    host, _ = rendezvous.split_address(address)
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        others = os.environ.get(name, "")
        os.environ[name] = ",".join(filter(None, (others, host)))


def has_joined() -> bool:
    """Return whether this process has joined others, or itself alone."""
    return jax.distributed.is_initialized()


def leave_processes(*, seconds: float) -> None:
    """Leave the other processes after a failure, which some of them may not know of.

    They are waited for, since the end of the first process aborts those that fail
    together with it. Others are busy, and find this process gone once it has ended;
    which it must without Python's clean-up: that would wait once more.
    """
    thread = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    thread.start()
    thread.join(seconds)
