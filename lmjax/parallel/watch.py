"""Watch one run: its processes, its steps, and the signals that stop it."""

import contextlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

from lmjax.config.watch import WatchConfig
from lmjax.errors import UserError
from lmjax.parallel import coordination, processes
from lmjax.parallel.ending import end_process, on_abort, print_line
from lmjax.parallel.heartbeat import status
from lmjax.parallel.hub import EXIT_LOST
from lmjax.parallel.monitor import Monitor
from lmjax.parallel.watchdog import Watchdog, write_stacks

_run_numbers = itertools.count()


@contextlib.contextmanager
def watch(directory: Path, config: WatchConfig) -> Iterator[Monitor | None]:
    """Watch what is done inside; yield the monitor where there are several processes.

    Args:
      directory: the workdir, for stacks and heartbeats.
      config: what counts as a hang, and what it does.
    """
    status.begin("starting")
    if not processes.several_processes():
        with _watch_alone(directory, config):
            yield None
        return
    monitor = Monitor(
        coordination.Coordination(),
        index=coordination.process_index(),
        num_processes=coordination.num_processes(),
        directory=directory,
        config=config,
        status=status,
        prefix=f"lmjax/watch/{next(_run_numbers)}",
    )
    with contextlib.ExitStack() as inside:
        inside.callback(monitor.close)
        inside.enter_context(on_abort(monitor.handle_abort))
        inside.enter_context(processes.watched_by(monitor))
        monitor.start()
        try:
            yield monitor
        except BaseException as error:
            if not processes.is_shared(error):
                is_known = isinstance(error, UserError | FloatingPointError)
                monitor.fail(error, code=2 if is_known else 1)
            raise
        # Nobody stops listening before all are done.
        status.begin("done")
        processes.any_process(False)


@contextlib.contextmanager
def _watch_alone(directory: Path, config: WatchConfig) -> Iterator[None]:
    watchdog, done = Watchdog(status, config), threading.Event()

    def look() -> None:
        while not done.wait(1.0):
            status.clock.tick()
            hang = watchdog.check()
            if hang and config.on_hang == "end":
                write_stacks(directory, name="0")
                where = directory / "stacks"
                print_line(f"error: {hang} (Python stacks: {where})")
                end_process(EXIT_LOST)
            watchdog.warn(hang, directory, name="0")

    threading.Thread(target=look, daemon=True, name="watchdog").start()
    try:
        yield
    finally:
        done.set()
