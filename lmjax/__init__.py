"""Train language models with JAX and Flax: sharded, exact, fast."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lmjax.inference.language_model import LanguageModel, load

__all__ = ["LanguageModel", "load"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import lmjax` is instant and touches no device.
    if name in __all__:
        from lmjax.inference import language_model

        return getattr(language_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
