"""The optimizer and its schedule, as a config section."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from lmjax.config.model import CountOrZero, Fraction, NonNegative, Rate
from lmjax.config.parse import runtime

# Which leaves each choice reads, of those that not all do.
OPTIMIZER_READS: dict[str, set[str]] = {
    "adamw": {"b1", "b2", "epsilon"},
    "adafactor": set(),
    "lion": {"b1", "b2"},
    "muon": {"b1", "b2", "epsilon"},  # the last two where it is AdamW
    "sgd": {"b1"},
}
SCHEDULE_READS: dict[str, set[str]] = {
    "constant": set(),
    "cosine": {"final_fraction"},
    "linear": {"final_fraction"},
    "inverse_sqrt": set(),
    "wsd": {"final_fraction", "decay_fraction"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer, its schedule, and what is done to gradients."""

    name: Literal["adamw", "adafactor", "lion", "muon", "sgd"] = "adamw"
    learning_rate: NonNegative = runtime(3e-4)
    schedule: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd"] = runtime(
        "cosine"
    )
    warmup_steps: CountOrZero = runtime(0)
    final_fraction: Fraction = runtime(0.1)  # of learning_rate, where a decay ends
    decay_fraction: Fraction = runtime(0.2)  # wsd: the last part of the run
    b1: Rate = runtime(0.9)  # sgd, muon: momentum
    b2: Rate = runtime(0.95)
    epsilon: NonNegative = runtime(1e-8)
    weight_decay: NonNegative = runtime(0.1)
    decay_kinds: tuple[Literal["kernel", "embedding", "scale", "bias"], ...] = runtime(
        ("kernel", "embedding")
    )
    clip_norm: NonNegative = runtime(1.0)  # 0: no clipping
    frozen: tuple[str, ...] = ()  # patterns of parameters, "decoder.blocks.*"; not to
    trainable: tuple[str, ...] = ()  # learn, but for these; with LoRA all but adapters
    ema_decay: Rate = 0.0  # 0: no average of the parameters is kept
    on_nonfinite: Literal["stop", "skip"] = runtime("stop")

    def unread(self, path: str) -> Iterator[str]:
        """Yield what is set, but not read by this optimizer or schedule.

        No mistake: who tries another optimizer from the command line need not undo
        what the experiment says for its own.
        """
        for chooser, table in (("name", OPTIMIZER_READS), ("schedule", SCHEDULE_READS)):
            chosen = getattr(self, chooser)
            for leaf in sorted(set().union(*table.values()) - table[chosen]):
                if getattr(self, leaf) != getattr(OptimConfig, leaf):
                    yield (
                        f"{path}.{leaf} = {getattr(self, leaf)}: is not read by "
                        f"{path}.{chooser} = {chosen!r}"
                    )
