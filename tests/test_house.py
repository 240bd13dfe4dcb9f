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
    ("parsing",),
    (
        "data_config",
        "model_config",
        "optim_config",
        "task_config",
        "task_rules",
        "tokenizer_config",
        "write_config",
    ),
    ("config", "types"),
    ("sharding", "data"),
    ("nn",),
    ("models", "device", "flops"),
    ("tasks", "optim", "generate", "checkpoint", "workdir", "compress"),
    ("step", "interop"),
    ("program", "predict"),
    ("evaluate", "language_model", "logging", "init_from", "init_embedding"),
    ("held_out", "report", "answer_file"),
    ("loop", "predict_file"),
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
    assert room(file) in FLOOR, "every room has a floor"
    parts = [name.split(".") for name in imports(file)]
    inner = {p[1] for p in parts if p[0] == "lmjax" and p[1] in FLOOR}
    above = {r for r in inner - {room(file)} if FLOOR[r] > FLOOR[room(file)]}
    assert not above, f"{room(file)} is below {above}"


# Transforms are jax's own: their nnx twins cost Python time at each step.
NNX = {"Module", "Param", "Variable", "Rngs", "split", "merge", "to_pure_dict"}


@pytest.mark.parametrize("directory", ["nn", "models"])
def test_only_the_plain_parts_of_nnx_are_used(directory):
    for file in (ROOT / directory).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Attribute(value=ast.Name(id="nnx"), attr=name):
                    assert name in NNX, f"{file}: nnx.{name}"


def run(code):
    """Run code in a fresh process, and return what it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT.parent, capture_output=True, text=True, check=True
    ).stdout


def test_importing_lmjax_is_instant():
    code = "import sys, lmjax, lmjax.cli, lmjax.config; print(*sys.modules)"
    heavy = {"jax", "numpy", "flax", "optax", "orbax", "sentencepiece", "rich"}
    assert not heavy & set(run(code).split())


def test_importing_every_module_touches_no_device():
    """Where TensorFlow and PyTorch cannot be imported, too."""
    names = [".".join(file.relative_to(ROOT.parent).parts)[:-3] for file in FILES]
    code = f"""
import importlib, sys
sys.modules["tensorflow"] = sys.modules["torch"] = None
for name in {[name.removesuffix(".__init__") for name in names]}:
    importlib.import_module(name)
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
"""
    assert run(code).strip() == "False"
