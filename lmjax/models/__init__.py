"""One file for each architecture, and `build`, which makes any of them."""

from lmjax.models.model import Model, build

__all__ = ["Model", "build"]
