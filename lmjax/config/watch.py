"""The config of how a run is watched for processes that hang or die."""

import dataclasses
from typing import Annotated, Literal

from lmjax.config.leaf_types import Interval

Seconds = Annotated[float, Interval(1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """When a run counts as hung, and what then happens.

    The Python stacks of a process that hangs are written to WORKDIR/stacks.
    """

    # what a hang does: it ends all processes, or is warned of; "auto": ends several,
    # which a scheduler starts again
    on_hang: Literal["auto", "end", "warn"] = "auto"
    # of several processes one that is silent for so long is lost; a busy host may be
    # silent for some seconds
    lost_seconds: Annotated[float, Interval(5)] = 45.0
    # a step hangs when it takes so many times the median of the steps before it,
    step_factor: Annotated[float, Interval(2)] = 10.0
    step_seconds: Seconds = 300.0  # and at least so long
    phase_seconds: Seconds = 3600.0  # the same for restoring, compiling, saving, ...
    data_seconds: Seconds = 86400.0  # and for making the tokenizer and the stores
