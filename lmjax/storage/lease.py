"""Locks on object storage: an object with its owner, which the owner keeps renewing.

Storage releases nothing when a process dies. So whoever wants a lock watches it: an
owner that has died on this host, or that renews it no more, has lost it. Only what is
observed counts, not the clocks of other hosts.
"""

import contextlib
import json
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from lmjax.errors import UserError
from lmjax.storage.paths import RemotePath

RENEW_SECONDS = 10.0
LOST_SECONDS = 35.0  # without a renewal
_SETTLE_SECONDS = 1.0  # until another that takes over at the same moment is seen

_held: set[str] = set()  # the tokens of this process
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold_lease(lock: RemotePath, *, flag: str = "") -> Iterator[None]:
    """Hold a lock.

    Args:
      lock: its object.
      flag: "": wait until it is free; else the name of its directory on the command
        line: whether its owner lives is known after at most `LOST_SECONDS`.

    Raises:
      UserError: another process holds it.
      OSError: the storage cannot be written.
    """
    lease = _Lease(lock)
    lease.acquire(flag=flag)
    try:
        yield
    finally:
        lease.release()


class _Lease:
    def __init__(self, lock: RemotePath) -> None:
        self.lock, self.token = lock, uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def acquire(self, *, flag: str) -> None:
        first_seen: dict[str, Any] | None = None
        since = time.monotonic()
        while not self._try_create():
            owner = self._read()
            if owner is None:  # released just now
                continue
            if owner != first_seen:
                renewed = first_seen and first_seen["token"] == owner["token"]
                if renewed and flag:
                    raise UserError(
                        f"{flag}={self.lock.parent}: in use by process "
                        f"{owner['process']} on {owner['host']}"
                    )
                first_seen, since = owner, time.monotonic()
            if _is_dead(owner) or time.monotonic() - since > LOST_SECONDS:
                self._take_over(owner)
            else:
                time.sleep(random.uniform(0.2, 0.6))
        _held.add(self.token)
        self._thread.start()

    def release(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        _held.discard(self.token)
        with contextlib.suppress(OSError):
            if self._is_own():
                self.lock.unlink(missing_ok=True)

    def _try_create(self) -> bool:
        try:
            self.lock.create(self._content())
        except FileExistsError:
            return self._is_own()  # the answer to an earlier try was lost
        return True

    def _take_over(self, owner: dict[str, Any]) -> None:
        if self._read() == owner:
            self.lock.write_bytes(self._content())
            time.sleep(_SETTLE_SECONDS)

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                if not self._is_own():
                    _log.error("%s: another process has taken this lock", self.lock)
                    return
                self.lock.write_bytes(self._content())
            except OSError as error:
                _log.warning("%s: cannot be renewed: %s", self.lock, error.strerror)

    def _is_own(self) -> bool:
        owner = self._read()
        return owner is not None and owner["token"] == self.token

    def _read(self) -> dict[str, Any] | None:
        try:
            owner = json.loads(self.lock.read_bytes())
            return {name: owner[name] for name in ("token", "host", "process", "time")}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):  # not written by this version
            return {"token": "", "host": "unknown", "process": 0, "time": 0}

    def _content(self) -> bytes:
        owner = {"host": socket.gethostname(), "process": os.getpid()}
        return json.dumps({**owner, "token": self.token, "time": time.time()}).encode()


def _is_dead(owner: dict[str, Any]) -> bool:
    """Return whether the owner was a process of this host that is gone."""
    if owner["host"] != socket.gethostname():
        return False
    if owner["process"] == os.getpid():  # of an earlier life of a container
        return owner["token"] not in _held
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
