"""The types of config leaves: numbers with limits, and leaves that may change.

`parse.py` reads these types to check values and to describe what is allowed.
"""

import dataclasses
import math
from typing import Annotated, TypeVar


@dataclasses.dataclass(frozen=True)
class Interval:
    """The numbers that a leaf allows: low <= number <= high, and number < below."""

    low: float = -math.inf
    high: float = math.inf
    below: float = math.inf

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high and number < self.below

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"in [{self.low:g}, {self.high:g}]"
        limit = f", < {self.below}" if self.below < math.inf else ""
        return f">= {self.low:g}{limit}"


PositiveInt = Annotated[int, Interval(1, below=1 << 31)]  # step counters are int32
NonNegativeInt = Annotated[int, Interval(0, below=1 << 31)]
Size = Annotated[int, Interval(1, below=1 << 20)]  # a dim, a number of layers or heads
SizeOrZero = Annotated[int, Interval(0, below=1 << 20)]
NonNegativeFloat = Annotated[float, Interval(0)]
Fraction = Annotated[float, Interval(0, 1)]
Rate = Annotated[float, Interval(0, below=1)]  # of dropout, of decay: 1 would give NaN

T = TypeVar("T")


def runtime_field(default: T) -> T:
    """Declare a leaf that may change when a run resumes: speed, logging, schedule.

    All other leaves are fixed once a run has begun.
    """
    return dataclasses.field(default=default, metadata={"runtime": True})
