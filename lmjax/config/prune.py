"""The config of zeros in the weights: those that stay, and those that are made."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from lmjax.config.leaf_types import NonNegativeInt, PositiveInt, Rate, runtime_field

SCHEDULED = ("magnitude", "movement")  # methods that make zeros while a run trains


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Zeros in hidden matrices: not in embeddings, heads, norms and biases."""

    # keep: weights that are 0 when the run begins stay 0, as in a workdir that was
    # pruned. The others do so too, and from begin_step to end_step make more zeros:
    # magnitude: of the smallest weights, which then stay 0 (Zhu and Gupta 2017);
    # movement: of those that training moves towards 0, which may come back until
    # end_step (Sanh et al. 2020)
    method: Literal["none", "keep", "magnitude", "movement"] = "none"
    # what the sparsity is a fraction of: each matrix, or all of them together
    scope: Literal["layer", "model"] = "layer"
    sparsity: Rate = runtime_field(0.5)  # the fraction of zeros at end_step
    # between these steps it grows as 1 - (1 - progress)^3
    begin_step: NonNegativeInt = runtime_field(0)
    end_step: NonNegativeInt = runtime_field(0)  # 0: half of num_steps
    every_steps: PositiveInt = runtime_field(10)  # how often zeros are chosen

    @property
    def is_scheduled(self) -> bool:
        """Return whether zeros are made while the run trains."""
        return self.method in SCHEDULED

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields; defaults are resolved already."""
        if self.is_scheduled and not self.begin_step < self.end_step:
            yield (
                f"{path}.begin_step = {self.begin_step}: must be below {path}.end_step "
                f"= {self.end_step}"
            )

    def unused_leaves(self, path: str) -> Iterator[str]:
        """Yield a line for each leaf that is set, but that the method ignores."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            ignored = not self.is_scheduled and field.name != "method"
            if ignored and value != field.default:
                yield (
                    f"{path}.{field.name} = {value!r}: ignored with {path}.method = "
                    f"{self.method!r}"
                )
