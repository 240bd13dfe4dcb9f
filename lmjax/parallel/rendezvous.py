"""The first meeting of the processes of a run, before jax connects them.

The first process listens at the coordinator's address until all others have come, and
tells all whether they belong together; then jax's service takes over the address. The
runtime itself aborts a process whose peers do not come, without naming any of them.
"""

import contextlib
import dataclasses
import errno
import json
import os
import selectors
import socket
import time
from collections.abc import Iterator, Mapping, Sequence

from lmjax.errors import UserError

# A greeting is one line of JSON; so is the answer, to all at the same time.
_NAME = "lmjax"
_MAX_BYTES = 1 << 16
_RETRY_SECONDS, _CONNECT_SECONDS = 0.25, 5.0
_PORT_SECONDS = 15.0  # for which a port of an attempt before may still be taken
# After it is clear that the processes do not belong together, others may come for a
# while, to be told so as well.
_LATE_SECONDS = 5.0
_ANSWER_SECONDS = 2.0  # for sending an answer, and for its way
_MAX_NAMED = 10  # processes in an error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greeting:
    """What a process says of itself."""

    index: int
    num_processes: int
    host: str
    pid: int
    versions: Mapping[str, str]  # of packages that must be the same everywhere

    @property
    def name(self) -> str:
        """The process, for an error."""
        return f"process {self.index} on {self.host}"


def greeting(
    *, index: int, num_processes: int, versions: Mapping[str, str]
) -> Greeting:
    """Return the greeting of this process."""
    return Greeting(
        index=index,
        num_processes=num_processes,
        host=socket.gethostname(),
        pid=os.getpid(),
        versions=versions,
    )


def meet(own: Greeting, *, address: str, bind: str, seconds: float) -> None:
    """Wait until all processes of the run have come.

    Args:
      own: of this process.
      address: HOST:PORT of the first process.
      bind: HOST:PORT that the first process listens at; "" for all its addresses.
      seconds: to wait for.

    Raises:
      UserError: some did not come, or they do not belong together; all that came are
        told the same.
    """
    if own.num_processes == 1:
        return
    deadline = time.monotonic() + seconds
    if own.index == 0:
        problem = _receive_all(own, address, bind, deadline, seconds)
    else:
        problem = _greet_first(own, address, deadline, seconds)
    if problem:
        raise UserError(problem)


def split_address(address: str) -> tuple[str, int]:
    """Return the host and the port of HOST:PORT.

    Raises:
      ValueError: it is not one.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(address)
    return host.removeprefix("[").removesuffix("]"), int(port)


class _Meeting:
    """The others at the first process: who has come, and what is wrong with them.

    A process that leaves before all have come has not come.
    """

    def __init__(self, own: Greeting) -> None:
        self.own = own
        self.problem = ""
        self.received: dict[socket.socket, bytes] = {}  # from those that still talk
        self.came: dict[socket.socket, Greeting] = {}

    def greetings(self) -> dict[int, Greeting]:
        """Return those of the processes that have come, in order."""
        all_of_them = {g.index: g for g in (*self.came.values(), self.own)}
        return dict(sorted(all_of_them.items()))

    def missing(self) -> list[int]:
        """Return the processes that have not come."""
        return sorted(set(range(self.own.num_processes)) - self.greetings().keys())

    def read(self, connection: socket.socket) -> bool:
        """Read what has arrived; return whether the connection is still of use."""
        try:
            data = connection.recv(_MAX_BYTES)
        except OSError:
            data = b""
        if not data or connection in self.came:
            self.came.pop(connection, None)
            return False
        text = self.received[connection] = self.received.get(connection, b"") + data
        if not text.endswith(b"\n"):
            return len(text) < _MAX_BYTES
        other = _parse_greeting(self.received.pop(connection))
        if other is None:  # someone else, who tries all ports
            return False
        self.problem = self.problem or _disagreement(self.greetings(), other)
        self.came[connection] = other
        return True


def _receive_all(
    own: Greeting, address: str, bind: str, deadline: float, seconds: float
) -> str:
    """Receive the greetings of all others; return what is wrong, or ""."""
    meeting = _Meeting(own)
    with (
        contextlib.ExitStack() as connections,
        _listen(bind, address) as server,
        selectors.DefaultSelector() as selector,
    ):
        selector.register(server, selectors.EVENT_READ)
        while meeting.missing() and time.monotonic() < deadline:
            for key, _ in selector.select(timeout=_RETRY_SECONDS):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                if ready is server:
                    with contextlib.suppress(OSError):
                        connection, _ = server.accept()
                        connections.enter_context(connection)
                        connection.setblocking(False)
                        selector.register(connection, selectors.EVENT_READ)
                    continue
                if not meeting.read(ready):
                    selector.unregister(ready)
                    ready.close()
            if meeting.problem:
                deadline = min(deadline, time.monotonic() + _LATE_SECONDS)
        problem = meeting.problem
        if not problem and (missing := meeting.missing()):
            problem = _describe_missing(missing, meeting, address, seconds)
        answer = json.dumps({_NAME: "answer", "problem": problem}).encode() + b"\n"
        for connection in meeting.came:
            with contextlib.suppress(OSError):
                connection.settimeout(_ANSWER_SECONDS)
                connection.sendall(answer)
    return problem


@contextlib.contextmanager
def _listen(bind: str, address: str) -> Iterator[socket.socket]:
    """Yield the socket that others connect to.

    Raises:
      UserError: the port is taken, or the address is not one of this host.
    """
    host, port = split_address(bind or f"[::]:{split_address(address)[1]}")
    every = host in ("", "::", "0.0.0.0")
    dual = every and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or (":" in host and not every) else socket.AF_INET
    until = time.monotonic() + _PORT_SECONDS
    while True:
        try:
            server = socket.create_server(
                ("" if every else host, port),
                family=family,
                backlog=4096,
                dualstack_ipv6=dual,
            )
            break
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < until:
                time.sleep(_RETRY_SECONDS)
                continue
            why = error.strerror or error
            raise UserError(
                f"{bind or address}: the first process, on {socket.gethostname()}, "
                f"cannot listen there: {why}"
            ) from error
    with server:
        server.setblocking(False)
        yield server


def _parse_greeting(line: bytes) -> Greeting | None:
    try:
        fields = json.loads(line)
        return Greeting(**fields) if fields.pop(_NAME) == "greeting" else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _disagreement(came: Mapping[int, Greeting], other: Greeting) -> str:
    """Return why a process does not belong to the first one's run, or ""."""
    first = came[0]
    if other.num_processes != first.num_processes:
        return (
            f"{other.name} was started as one of {other.num_processes} processes, "
            f"{first.name} as one of {first.num_processes}"
        )
    if (same := came.get(other.index)) is not None:
        return (
            f"two processes were started as process {other.index}: "
            f"pid {same.pid} on {same.host} and pid {other.pid} on {other.host}"
        )
    for package in first.versions.keys() | other.versions.keys():
        here, there = (g.versions.get(package, "none") for g in (first, other))
        if here != there:
            return f"{other.name} has {package} {there}, {first.name} has {here}"
    return ""


def _describe_missing(
    missing: Sequence[int], meeting: _Meeting, address: str, seconds: float
) -> str:
    came = list(meeting.greetings().values())
    named = ", ".join(f"{g.index} on {g.host}" for g in came[:_MAX_NAMED])
    more = ", ..." if len(came) > _MAX_NAMED else ""
    who = f"{_list(missing)} of {meeting.own.num_processes}"
    return f"{address}: {who} did not come within {seconds:g} s; came: {named}{more}"


def _list(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:_MAX_NAMED]))
    more = len(indices) - _MAX_NAMED
    word = "process" if len(indices) == 1 else "processes"
    return f"{word} {shown}" + (f" and {more} more" if more > 0 else "")


def _greet_first(own: Greeting, address: str, deadline: float, seconds: float) -> str:
    """Greet the first process and wait for its answer; return what is wrong, or ""."""
    line = json.dumps({_NAME: "greeting", **dataclasses.asdict(own)}).encode() + b"\n"
    why = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(
                split_address(address), timeout=min(left, _CONNECT_SECONDS)
            ) as connection:
                connection.sendall(line)
                # The first process waits as long as we do, but began before now.
                connection.settimeout(seconds + _ANSWER_SECONDS)
                if answer := _read_answer(connection):
                    return _parse_answer(answer, own, address)
        except OSError as error:
            why = error.strerror or str(error) or type(error).__name__
        time.sleep(_RETRY_SECONDS)
    who = f"process {own.index} of {own.num_processes}, on {own.host}"
    return f"{address}: {who}, has not reached process 0 there in {seconds:g} s: {why}"


def _read_answer(connection: socket.socket) -> bytes:
    """Return the answer, or what came before the other side was gone."""
    answer = b""
    while not answer.endswith(b"\n") and len(answer) < _MAX_BYTES:
        received = connection.recv(_MAX_BYTES)
        if not received:
            break
        answer += received
    return answer


def _parse_answer(answer: bytes, own: Greeting, address: str) -> str:
    try:
        fields = json.loads(answer)
        if fields[_NAME] == "answer":
            return str(fields["problem"])
    except (ValueError, KeyError, TypeError):
        pass
    return (
        f"{address}: something else than a run that waits for its processes answers "
        f"process {own.index}, on {own.host}; perhaps this run has already begun, or "
        "another program uses the port"
    )
