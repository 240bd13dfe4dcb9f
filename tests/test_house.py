"""Who may import whom."""

import ast
import importlib
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "lmjax"
FILES = sorted(ROOT.rglob("*.py"))
# A package imports only itself and packages of lower floors.
FLOORS = [
    ("errors",),
    ("types", "fileio", "progress", "config", "storage"),
    ("parallel", "metrics"),
    ("data", "nn"),
    ("models", "run"),
    ("tasks", "interop", "report"),
    ("generate",),
    ("inference",),
    ("compress",),
    ("training",),
    ("api", "plan"),
    ("cli",),
]
# The same inside `lmjax/data`.
DATA_FLOORS = [
    ("order", "padding", "prefetch", "sources", "workers"),
    ("formats", "tokenizers", "bucketing", "clean"),
    ("features",),
    ("stores",),
    ("datasets", "example_datasets"),
    ("lm",),
    ("batches", "compressors", "pipeline"),
]


def numbered(floors):
    return {name: i for i, names in enumerate(floors) for name in names}


FLOOR, DATA_FLOOR = numbered(FLOORS), numbered(DATA_FLOORS)


def imports(file):
    """Return the dotted names that a file imports, wherever it does so."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package(file):
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports(file):
    packages = {name.split(".")[0] for name in imports(file)}
    assert not packages & {"experiments", "tests", "tools", "tensorflow", "torch"}
    path = file.relative_to(ROOT).as_posix()
    if not path.startswith("run/checkpoint"):
        assert "orbax" not in packages
    if package(file) not in ("nn", "models"):
        assert "flax" not in packages
    if package(file) == "data":
        assert "jax" not in packages
    if path == "__init__.py":
        return
    above = higher(imports(file), package(file), "lmjax", FLOOR)
    assert not above, f"{package(file)} is below {above}"
    if package(file) == "data" and path != "data/__init__.py":
        own = path.split("/")[1].removesuffix(".py")
        above = higher(imports(file), own, "lmjax.data", DATA_FLOOR)
        assert not above, f"data/{own} is below {above}"


def higher(names, own, parent, floor):
    """Return which of the imported packages of a parent stand above one's own."""
    assert own in floor, "every package has a floor"
    depth = parent.count(".") + 1
    inner = {n.split(".")[depth] for n in names if n.startswith(parent + ".")}
    return {name for name in inner & floor.keys() if floor[name] > floor[own]}


# Transforms are jax's own: their nnx twins cost Python time at each step.
NNX = {"Module", "Param", "Variable", "Rngs", "split", "merge", "to_pure_dict"}


@pytest.mark.parametrize("directory", ["nn", "models"])
def test_only_the_plain_parts_of_nnx_are_used(directory):
    for file in (ROOT / directory).rglob("*.py"):
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
    names = "sys, lmjax, lmjax.cli.main, lmjax.config.experiment"
    code = f"import {names}; print(*sys.modules)"
    heavy = {"jax", "numpy", "flax", "optax", "orbax", "sentencepiece", "rich"}
    assert not heavy & set(run(code).split())


@pytest.mark.slow
def test_importing_every_module_touches_no_device():
    """Nor TensorFlow or PyTorch, not even through a library that tries to."""
    names = [".".join(file.relative_to(ROOT.parent).parts)[:-3] for file in FILES]
    code = f"""
import importlib, sys
tried = []
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ("tensorflow", "torch"):
            tried.append(name)
            raise ImportError(name)
sys.meta_path.insert(0, Finder())
for name in {[name.removesuffix(".__init__") for name in names]}:
    importlib.import_module(name)
from jax._src import xla_bridge
print(tried, xla_bridge.backends_are_initialized())
"""
    assert run(code).strip() == "[] False"


REPOSITORY = ROOT.parent
SCRIPTS = [*REPOSITORY.glob("tools/**/*.py"), *REPOSITORY.glob("experiments/**/*.py")]


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda f: f.stem)
def test_scripts_use_names_that_exist(file):
    """Type checks cover lmjax/ alone."""
    modules = {}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lmjax"):
            for alias in node.names:
                value = resolve(node.module, alias.name)
                if isinstance(value, types.ModuleType):
                    modules[alias.asname or alias.name] = value
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if name in modules:
                assert hasattr(modules[name], attr), f"{file.name}: {name}.{attr}"


def resolve(module, name):
    """Return a name of a module: an attribute, or a module inside it."""
    value = importlib.import_module(module)
    if hasattr(value, name):
        return getattr(value, name)
    return importlib.import_module(f"{module}.{name}")
