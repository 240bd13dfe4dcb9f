"""One of several processes that save, damage and restore: see its test.

    JAX_COORDINATOR_ADDRESS=... JAX_NUM_PROCESSES=... JAX_PROCESS_ID=... \
        python checkpoint_in_processes.py DIRECTORY

Prints one JSON object: what each part found.
"""

import errno
import json
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
import tensorstore
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint._src.checkpointers import async_checkpointer

from lmjax.config.experiment import CheckpointConfig, MeshConfig
from lmjax.errors import UserError
from lmjax.parallel import processes, sharding
from lmjax.run.checkpoint import Checkpoints
from lmjax.types import TrainState

JOIN = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
ROWS = 256  # of each array, of 1 KB each


def make_state(mesh, *, step):
    """Return a state of copies on all devices; its numbers do not compress."""
    rng = np.random.default_rng(step)
    whole = NamedSharding(mesh, P())

    def put(value):
        return jax.make_array_from_callback(
            np.shape(value), whole, lambda index: np.asarray(value)[index]
        )

    noise = lambda: put(rng.standard_normal((ROWS, 256), np.float32))
    key = jax.random.wrap_key_data(put(np.array([0, step], np.uint32)))
    return TrainState(
        step=put(np.int32(step)),
        params={f"w{i}": noise() for i in range(4)},
        opt_state={"m": noise(), "count": put(np.int32(step))},
        key=key,
        num_skipped=put(np.int32(0)),
    )


def shapes(state):
    leaf = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return jax.tree.map(leaf, state)


def bytes_read():
    """Return how many bytes TensorStore has read from files."""
    found = tensorstore.experimental_collect_matching_metrics(
        "/tensorstore/kvstore/file/bytes_read"
    )
    return sum(value.get("value", 0) for metric in found for value in metric["values"])


def same(state, other):
    """Return whether this process's copies are equal, bit for bit."""
    host = lambda x: [np.asarray(s.data).tobytes() for s in x.addressable_shards]
    leaves = lambda s: jax.tree.leaves((s.step, s.params, s.opt_state))
    return [*map(host, leaves(state))] == [*map(host, leaves(other))]


def main(directory):
    """Do all parts, one after another, in all processes."""
    found = {"rank": jax.process_index()}
    mesh = sharding.make_mesh(MeshConfig())
    states = {step: make_state(mesh, step=step) for step in (1, 2, 3)}
    like = shapes(states[1])
    checkpoints = Checkpoints(directory, CheckpointConfig())
    for step in (1, 2):
        checkpoints.save(states[step], metrics=None)
    checkpoints.wait()

    before = bytes_read()
    found["restored"] = same(checkpoints.restore(like), states[2])
    found["bytes_read"] = bytes_read() - before
    leaves = jax.tree.leaves((like.params, like.opt_state))
    found["bytes_of_state"] = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    # Damage in what one process alone reads: all pass it over.
    if processes.is_first():
        data = max((directory / "checkpoints" / "2").rglob("d/*"), key=size)
        content = bytearray(data.read_bytes())
        content[len(content) // 3] ^= 8
        data.write_bytes(content)
    processes.any_process(flag=False)
    found["passed_over"] = same(checkpoints.restore(like), states[1])
    found["steps"] = checkpoints.steps()

    # The last process cannot write its part: all learn of it, soon.
    if jax.process_index() == jax.process_count() - 1:

        def refuse(*args, **options):
            raise OSError(errno.ENOSPC, "No space left on device")

        async_checkpointer._background_wait_for_commit_futures = refuse
    begin = time.monotonic()
    try:
        checkpoints.save(states[3], metrics=None)
        checkpoints.wait()
    except (UserError, RuntimeError) as error:
        found["error"] = f"{type(error).__name__}: {error}"
    checkpoints.close()
    found["seconds_to_error"] = time.monotonic() - begin
    print(json.dumps(found), flush=True)
    processes.any_process(flag=False)
    if processes.is_first():  # it ends last: without it the others are aborted
        time.sleep(2)


def size(path):
    return path.stat().st_size


if __name__ == "__main__":
    address, *numbers = (os.environ[f"JAX_{name}"] for name in JOIN)
    jax.distributed.initialize(address, *map(int, numbers))
    main(Path(sys.argv[1]))
    os._exit(0)
