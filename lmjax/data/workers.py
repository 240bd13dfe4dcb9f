"""Work in processes: a function on many items; what they share is sent once."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from lmjax.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Shared = TypeVar("Shared")


def map_in_processes(
    work: Callable[[Shared, Item], Result],
    items: Sequence[Item],
    *,
    shared: Shared,
    num_workers: int = 0,
    killed: Callable[[int], str],
) -> Iterator[Result]:
    """Yield `work(shared, item)` of each item, in the order in which they finish.

    Args:
      work: a function of a module.
      items: of the work.
      shared: sent to each process once.
      num_workers: processes; 0: one for each core; 1: this one alone.
      killed: from the number of processes to the error if one of them was killed.

    Raises:
      UserError: a process was killed.
    """
    num_workers = min(num_workers or os.cpu_count() or 1, len(items))
    if num_workers <= 1:
        yield from (work(shared, item) for item in items)
        return
    pool = futures.ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),  # threads of jax do not fork
        initializer=_start,
        initargs=(work, shared),
    )
    try:
        pending = [pool.submit(_work_on, item) for item in items]
        for future in futures.as_completed(pending):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(killed(num_workers)) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: Callable[[Any, Any], Any]  # of a worker process, and what it shares
_shared: Any


def _start(work: Callable[[Any, Any], Any], shared: Any) -> None:
    global _work, _shared
    _work, _shared = work, shared
    # A terminal sends it to all processes: the one that started this one handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work_on(item: Any) -> Any:
    return _work(_shared, item)
