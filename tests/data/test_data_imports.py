import subprocess
import sys

CODE = """
import importlib, pkgutil, sys
import lmjax.data
for module in pkgutil.walk_packages(lmjax.data.__path__, "lmjax.data."):
    importlib.import_module(module.name)
heavy = {"jax", "flax", "tensorflow", "grain", "tensorflow_datasets", "rich"}
print(sorted(heavy & set(sys.modules)))
"""


def test_importing_every_module_of_data_imports_no_heavy_package():
    result = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
