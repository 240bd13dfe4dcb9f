"""Loader processes that are killed or stopped."""

import logging
import multiprocessing
import os
import signal

import numpy as np
import pytest

from lmjax.config.data import DataConfig
from lmjax.data import prefetch as module
from lmjax.data.prefetch import prefetch
from lmjax.errors import UserError


class Numbers:
    """Batches that are their numbers."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"n": np.array([index])}


@pytest.mark.slow
def test_a_worker_that_stops_is_killed_and_started_again(monkeypatch, caplog):
    monkeypatch.setattr(module, "_CHECK_SECONDS", 0.3)
    config = DataConfig(num_workers=1, prefetch_batches=2)
    batches = prefetch(Numbers(), config)
    found = [int(next(batches)["n"][0])]
    workers = [
        child
        for child in multiprocessing.active_children()
        if child.name.startswith(module._WORKER_NAME)
    ]
    assert workers
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)
    with caplog.at_level(logging.WARNING):
        found += [int(batch["n"][0]) for batch in batches]
    assert found == list(range(8))
    assert "is stopped: killed" in caplog.text and "started again" in caplog.text


def test_workers_that_die_again_and_again_end_in_one_line(monkeypatch):
    class Dies:
        close = staticmethod(lambda: None)

        def __next__(self):
            raise RuntimeError("Worker process was terminated unexpectedly")

    monkeypatch.setattr(module, "_start", lambda *args, **options: Dies())
    config = DataConfig(num_workers=1, prefetch_batches=2)
    with pytest.raises(UserError, match=r"config\.data\.num_workers \(now 1\)"):
        next(prefetch(Numbers(), config))
