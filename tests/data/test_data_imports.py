import subprocess
import sys

CODE = """
import importlib, pkgutil, sys
import lmjax.data
for module in pkgutil.iter_modules(lmjax.data.__path__):
    importlib.import_module(f"lmjax.data.{module.name}")
heavy = {"jax", "flax", "tensorflow", "grain", "tensorflow_datasets", "rich"}
print(sorted(heavy & set(sys.modules)))
"""


def test_importing_the_data_room_brings_nothing_heavy():
    result = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
