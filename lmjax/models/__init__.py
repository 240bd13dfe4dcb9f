"""Networks, one file for each architecture, and `build`, which makes any of them.

`Model` is all that the packages above see: pure functions of parameters and batches.
Each decides itself how it decodes, its FLOPs and its "auto" leaves. Losses are in
`tasks`.
"""

from lmjax.models.model import Model, build

__all__ = ["Model", "build"]
