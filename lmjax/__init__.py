"""Train language models with JAX and Flax: sharded, exact, fast.

From Python: `lmjax.train`, `lmjax.load`, `lmjax.evaluate`, `lmjax.predict_file`.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lmjax.api import TrainResult, evaluate, train
    from lmjax.inference.language_model import LanguageModel, load
    from lmjax.inference.predict_file import predict_file

__all__ = ["LanguageModel", "TrainResult", "evaluate", "load", "predict_file", "train"]

# Imported when they are first used: `import lmjax` is instant and touches no device.
_MODULES = {
    "LanguageModel": "lmjax.inference.language_model",
    "TrainResult": "lmjax.api",
    "evaluate": "lmjax.api",
    "load": "lmjax.inference.language_model",
    "predict_file": "lmjax.inference.predict_file",
    "train": "lmjax.api",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
