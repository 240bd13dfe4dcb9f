"""Who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "lmjax"
FILES = sorted(ROOT.rglob("*.py"))
# A room imports only itself and rooms of lower floors; `data` stands on the first.
FLOORS = [
    ("config", "types"),
    ("sharding", "data"),
    ("nn",),
    ("models", "device"),
    ("tasks", "optim", "generate", "checkpoint", "workdir"),
    ("step",),
    ("program",),
    ("evaluate", "language_model", "logging"),
    ("held_out", "report"),
    ("loop",),
    ("cli",),
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}


def imports(file):
    """Return the dotted names that a file imports, wherever it does so."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(file):
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports(file):
    packages = {name.split(".")[0] for name in imports(file)}
    assert not packages & {"experiments", "tests", "tools", "tensorflow", "torch"}
    if room(file) != "checkpoint":
        assert "orbax" not in packages
    if room(file) not in ("nn", "models"):
        assert "flax" not in packages
    if room(file) == "data":
        assert "jax" not in packages
    if room(file) == "__init__":
        return
    parts = [name.split(".") for name in imports(file)]
    inner = {p[1] for p in parts if p[0] == "lmjax" and p[1] in FLOOR}
    above = {r for r in inner - {room(file)} if FLOOR[r] > FLOOR[room(file)]}
    assert not above, f"{room(file)} is below {above}"


def test_importing_lmjax_imports_no_jax():
    code = "import sys, lmjax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent).returncode == 0
