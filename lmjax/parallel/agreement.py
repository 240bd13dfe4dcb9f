"""Whether the processes of a run have the same code, config, versions and data.

Processes that disagree about a step wait for each other's devices; those that disagree
about a number train something that nobody asked for.
"""

import json
import platform
import socket
import zlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from lmjax.errors import ConfigError, show
from lmjax.parallel import processes

_PACKAGES = ("lmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_MOST_LISTED = 3  # differences, and hosts, of one line


def check_agreement(facts: Mapping[str, object]) -> None:
    """Check that all processes have the same facts; all must call it together.

    Args:
      facts: JSON values by name, such as leaves of a config.

    Raises:
      ConfigError: they have not; the facts, their values and the processes are named.
    """
    if not processes.several_processes():
        return
    own = dump(facts, host=socket.gethostname())
    if problem := processes.exchange(own, reduce=compare):
        raise processes.share(ConfigError(problem))


def dump(facts: Mapping[str, object], *, host: str) -> str:
    """Return the facts of a process as text for `compare`."""
    return json.dumps([host, facts])


def describe_code() -> dict[str, object]:
    """Return the versions of this process, and a checksum of each file of lmjax."""
    root = Path(__file__).parent.parent
    files = {
        f"lmjax/{path.relative_to(root).as_posix()}": f"{zlib.crc32(content):08x}"
        for path in sorted(root.rglob("*.py"))
        if (content := path.read_bytes())
    }
    return {"Python": platform.python_version(), **_versions(), **files}


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def compare(texts: Sequence[str]) -> str:
    """Return a line about the facts in which processes differ, or ""."""
    hosts, facts = zip(*map(json.loads, texts), strict=True)
    names = [
        name
        for name in sorted(set().union(*facts))
        if any(own.get(name) != facts[0].get(name) for own in facts)
    ]
    lines = []
    for name in names[:_MOST_LISTED]:
        groups: dict[str, list[str]] = {}
        for index, (host, own) in enumerate(zip(hosts, facts, strict=True)):
            value = show(own[name]) if name in own else "absent"
            groups.setdefault(value, []).append(f"process {index} ({host})")
        told = (f"{value} on {_list(where)}" for value, where in groups.items())
        lines.append(f"{name}: {'; '.join(told)}")
    if more := len(names) - len(lines):
        lines.append(f"and {more} more")
    return f"processes differ: {' | '.join(lines)}" if lines else ""


def _list(names: Sequence[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
