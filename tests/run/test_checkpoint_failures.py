"""Saves that fail in the background, and the barrier of those that write."""

import errno
import os
import pathlib
import threading
import time

import jax
import pytest
from test_checkpoint import make_mesh, make_state, model, open_all

from lmjax.errors import UserError
from lmjax.run.checkpoint_barrier import CommitBarrier
from lmjax.run.checkpoint_items import host_bytes

FIXTURES = (model,)


def steps(directory):
    names = (path.name for path in (directory / "checkpoints").iterdir())
    return {int(name) for name in names if name.isdigit()}


@pytest.fixture
def full_disk(monkeypatch):
    """Let the renaming of some checkpoints to their steps fail."""

    def fill(*names):
        rename = os.rename

        def refuse(source, target, **options):
            if pathlib.Path(target).name in names:
                raise OSError(errno.ENOSPC, "No space left on device", str(target))
            return rename(source, target, **options)

        monkeypatch.setattr(os, "rename", refuse)
        monkeypatch.setattr(os, "replace", refuse)

    return fill


def test_a_failed_save_keeps_the_old_and_is_told_until_it_was_heard(
    model, tmp_path, full_disk
):
    checkpoints = open_all(tmp_path, keep=1)
    checkpoints.save(make_state(model, make_mesh(), step=1), metrics=None)
    checkpoints.wait()
    assert not checkpoints.has_failed
    full_disk("2")
    checkpoints.save(make_state(model, make_mesh(), step=2), metrics=None)
    deadline = time.monotonic() + 30
    while not checkpoints.has_failed and time.monotonic() < deadline:
        time.sleep(0.01)
    for wait in (checkpoints.check_for_errors, checkpoints.wait):
        with pytest.raises(UserError, match=r"No space left on device") as error:
            wait()
        assert "complete ones: [1]" in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        checkpoints.save(make_state(model, make_mesh(), step=3), metrics=None)
    checkpoints.close()  # says nothing twice
    assert 1 in steps(tmp_path) and 2 not in steps(tmp_path)
    assert open_all(tmp_path).steps() == [1]


def test_an_old_checkpoint_is_there_until_a_newer_one_is(model, tmp_path, monkeypatch):
    """At the moment at which the new one becomes visible the old one still is."""
    checkpoints = open_all(tmp_path, keep=1)
    rename, seen = os.rename, []

    def look(source, target, **options):
        if pathlib.Path(target).name == "2":
            seen.append(steps(tmp_path) & {1, 2})
        return rename(source, target, **options)

    monkeypatch.setattr(os, "rename", look)
    monkeypatch.setattr(os, "replace", look)
    for step in (1, 2):
        checkpoints.save(make_state(model, make_mesh(), step=step), metrics=None)
    checkpoints.close()
    assert seen == [{1}]
    assert steps(tmp_path) == {2}


def test_the_host_holds_its_share_of_a_state(model):
    """Copies are written by turns: eight of them are not eight times the memory."""
    one, eight = (make_state(model, make_mesh(data=n), step=1).params for n in (1, 8))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(one))
    assert host_bytes(one) == host_bytes(eight) == size


class Fake:
    """A barrier of two, the second of whom comes after some time, or never."""

    def __init__(self, *, comes_after):
        self.start, self.comes_after, self.keys = time.monotonic(), comes_after, []

    def __call__(self, *, key, timeout_ms):
        self.keys.append(key)
        left = self.start + self.comes_after - time.monotonic()
        time.sleep(min(max(left, 0), timeout_ms / 1000))
        if left > timeout_ms / 1000:
            raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out. Missing: 1")


def test_a_barrier_waits_in_slices_and_gives_up_when_told(monkeypatch):
    monkeypatch.setattr("lmjax.run.checkpoint_barrier._SLICE_SECONDS", 0.05)
    fake = Fake(comes_after=0.12)
    CommitBarrier(fake)(key="k", timeout_ms=5000)
    assert fake.keys == ["k.0", "k.1", "k.2"]
    with pytest.raises(RuntimeError, match="Missing: 1"):
        CommitBarrier(Fake(comes_after=60))(key="k", timeout_ms=120)
    barrier = CommitBarrier(Fake(comes_after=60))
    timer = threading.Timer(0.1, barrier.give_up)
    timer.start()
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match="another process"):
        barrier(key="k", timeout_ms=60_000)
    assert time.monotonic() - begin < 5

    def lost(*, key, timeout_ms):
        raise RuntimeError("UNAVAILABLE: the coordinator is gone")

    with pytest.raises(RuntimeError, match="UNAVAILABLE"):
        CommitBarrier(lost)(key="k", timeout_ms=60_000)
