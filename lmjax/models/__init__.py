"""Networks, one file for each architecture, and `build`, which makes any of them.

`Model` is all that the packages above see: pure functions of parameters and batches.
A model answers for itself: decoding, FLOPs, what "auto" means. Losses are in `tasks`.
"""

from lmjax.models.model import Model, build

__all__ = ["Model", "build"]
