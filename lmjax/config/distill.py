"""How a task learns from a teacher beside its targets."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated

from lmjax.config.leaf_types import Fraction, Interval, NonNegativeFloat


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Distillation: the loss is (1 - weight) hard + weight soft + hidden + relations.

    Hard is the task's own loss. Soft is the divergence of the student's probabilities
    from the teacher's, both at a temperature, times its square, which keeps gradients
    of a size (Hinton et al. 2015).
    """

    # a workdir of the same task, and of the same tokenizer and labels; "": no teacher
    teacher: str = ""
    temperature: Annotated[float, Interval(0.01, 1000)] = 1.0
    weight: Fraction = 0.5  # of soft targets; the others are those of the data
    # weight of the squared difference of the last hidden states, as in TinyBERT (Jiao
    # et al. 2020), whose width must be the same
    hidden: NonNegativeFloat = 0.0
    # weight of the divergence of how alike the last hidden states of a row's tokens
    # are, of any width (MiniLM, Wang et al. 2020: there of values)
    relations: NonNegativeFloat = 0.0

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        if self.teacher and not (self.weight or self.hidden or self.relations):
            yield (
                f"{path}.weight = 0.0: must be > 0, or {path}.hidden or "
                f"{path}.relations, for something to learn from {path}.teacher"
            )
