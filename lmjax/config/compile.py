"""The config of how programs are compiled."""

import dataclasses
import re
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileConfig:
    """What the compiler is asked for, and where it keeps what it compiled."""

    # "name=value" options of XLA, added to those that lmjax sets for the devices or in
    # their place; one that this jaxlib does not know is left out with a warning
    options: tuple[str, ...] = ()
    # on GPUs: only kernels whose sums have one order, so that a run repeats bit for
    # bit; slower. CPUs and TPUs do so always
    deterministic: bool = False
    # the directory of compiled programs, which the next start reads; "auto":
    # $JAX_COMPILATION_CACHE_DIR, else lmjax/compiled in $XDG_CACHE_HOME or ~/.cache;
    # "": none
    cache: str = "auto"

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        for option in self.options:
            if not re.fullmatch(r"\w+=.*\S.*", option):
                yield (
                    f"{path}.options = {option!r}: must be name=value, as in "
                    "'xla_gpu_enable_latency_hiding_scheduler=true'"
                )
