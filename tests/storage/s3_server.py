"""A server of S3 on loopback, by moto, that can be told to misbehave.

As a program it prints its address and serves until stdin is closed.
"""

import random
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

FORBIDDEN = "forbidden"  # the bucket that nobody may use


class Faults:
    """A WSGI application that fails some of the requests of another.

    Args:
      app: the other.

    Attributes:
      share: of the requests that fail, a third each: an answer 500, one that is slow,
        and one that is torn off in the middle.
      broken: a regular expression; writing what matches it fails each time.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app, self.share, self.broken = app, 0.0, ""
        self.counts = {"ok": 0, "500": 0, "slow": 0, "torn": 0}
        self._random = random.Random(0)

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        """Answer a request."""
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path.startswith(f"/{FORBIDDEN}"):
            return _fail(start, "403 Forbidden", "AccessDenied")
        if method == "PUT" and self.broken and re.search(self.broken, path):
            return _fail(start, "500 Internal Server Error", "InternalError")
        kind = "ok"
        if self._random.random() < self.share:
            kind = self._random.choice(["500", "slow", "torn"])
        self.counts[kind] += 1
        if kind == "500":
            # The server reads what was sent, as real ones do.
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return _fail(start, "500 Internal Server Error", "InternalError")
        if kind == "slow":
            time.sleep(0.3)
        answer = self.app(environ, start)
        return _tear(answer) if kind == "torn" else answer


def _fail(start: Any, status: str, code: str) -> list[bytes]:
    body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
    start(status, [("Content-Length", str(len(body)))])
    return [body]


def _tear(answer: Iterable[bytes]) -> Iterable[bytes]:
    """Yield half of an answer, and break the connection."""
    content = b"".join(answer)
    if content:
        yield content[: len(content) // 2]
    raise ConnectionResetError("torn on purpose")


def start_server() -> tuple[Faults, str]:
    """Start the server in a thread; return its faults and its address."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        create_backend_app,
    )
    from werkzeug import serving

    class Quiet(serving.WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *args: Any) -> None:
            """Print nothing."""

        def connection_dropped(self, *args: Any, **options: Any) -> None:
            """Close what was torn off; else its reader waits for the rest."""
            self.close_connection = True

    faults = Faults(DomainDispatcherApplication(create_backend_app))
    server = serving.make_server(
        "127.0.0.1", 0, faults, threaded=True, request_handler=Quiet
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return faults, f"http://127.0.0.1:{server.server_port}"


if __name__ == "__main__":
    faults, address = start_server()
    print(address, flush=True)
    for line in sys.stdin:  # "share broken"
        share, _, faults.broken = line.strip().partition(" ")
        faults.share = float(share)
        print(faults.counts, flush=True)
