"""The config of the optimizer and its learning rate schedule."""

import dataclasses
import fnmatch
from collections.abc import Iterator
from typing import Literal

from lmjax.config.leaf_types import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    Rate,
    runtime_field,
)
from lmjax.config.prune import PruneConfig

# The leaves that only some optimizers or schedules use, for each of them.
OPTIMIZER_LEAVES: dict[str, set[str]] = {
    "adamw": {"b1", "b2", "epsilon", "momentum_dtype"},
    "adafactor": set(),
    "adagrad": {"epsilon"},
    "lion": {"b1", "b2", "momentum_dtype"},
    # b2, epsilon: for the parameters left to AdamW
    "muon": {"b1", "b2", "epsilon", "momentum_dtype", "muon_also"},
    "sgd": {"b1", "momentum_dtype"},
}
SCHEDULE_LEAVES: dict[str, set[str]] = {
    "constant": set(),
    "cosine": {"final_fraction"},
    "linear": {"final_fraction"},
    "inverse_sqrt": set(),
    "wsd": {"final_fraction", "decay_fraction"},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer, the learning rate schedule, and the trainable parameters."""

    # muon: Muon for hidden matrices; AdamW for all other parameters, such as
    # embeddings, heads, classifiers, poolers, norms, biases and adapters
    name: Literal["adamw", "adafactor", "adagrad", "lion", "muon", "sgd"] = "adamw"
    learning_rate: NonNegativeFloat = runtime_field(3e-4)  # the peak, after warmup
    # wsd: warmup, stable, then linear decay in the last decay_fraction of num_steps
    schedule: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd"] = (
        runtime_field("cosine")
    )
    warmup_steps: NonNegativeInt = runtime_field(0)  # linear warmup
    # the final learning rate of a decay, as a fraction of learning_rate
    final_fraction: Fraction = runtime_field(0.1)
    decay_fraction: Fraction = runtime_field(0.2)  # wsd
    # patterns of parameter names: other matrices that muon updates too
    muon_also: tuple[str, ...] = ()
    b1: Rate = runtime_field(0.9)  # sgd, muon: momentum
    b2: Rate = runtime_field(0.95)
    epsilon: NonNegativeFloat = runtime_field(1e-8)
    # in which the first moment (the momentum) is kept; bfloat16 halves its memory. The
    # second moment stays in float32: its changes are too small for bfloat16
    momentum_dtype: Literal["float32", "bfloat16"] = "float32"
    weight_decay: NonNegativeFloat = runtime_field(0.1)  # decoupled, as in AdamW
    # the kinds of parameters that weight decay applies to
    decay_kinds: tuple[Literal["kernel", "embedding", "scale", "bias"], ...] = (
        runtime_field(("kernel", "embedding"))
    )
    clip_norm: NonNegativeFloat = runtime_field(1.0)  # of all gradients; 0: no clipping
    # patterns of parameter names, such as "decoder.blocks.*", that are not trained
    frozen: tuple[str, ...] = ()
    # exceptions from `frozen`; set alone, everything else is frozen. With LoRA, the
    # adapters (and a label head) are added here, and everything else is frozen
    trainable: tuple[str, ...] = ()
    # also keep an exponential moving average of the parameters and evaluate it; 0:
    # none. After t steps the decay is at most (1 + t) / (10 + t), so that the average
    # of a short run is not that of its beginning
    ema_decay: Rate = 0.0
    # when loss or gradients are not finite: stop the run, or skip the update
    on_nonfinite: Literal["stop", "skip"] = runtime_field("stop")
    prune: PruneConfig = PruneConfig()

    def is_trainable(self, name: str) -> bool:
        """Return whether `trainable` matches a parameter, or `frozen` does not."""

        def matches(patterns: tuple[str, ...]) -> bool:
            return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

        return matches(self.trainable) or not matches(self.frozen)

    def decay_steps(self, num_steps: int) -> int:
        """Return in how many of the last steps "wsd" decays."""
        return round(self.decay_fraction * num_steps)

    def unused_leaves(self, path: str) -> Iterator[str]:
        """Yield a line for each leaf that is set, but that this optimizer ignores.

        These are no errors: an experiment may set leaves for its own optimizer while
        the command line selects another one.
        """
        yield from self.prune.unused_leaves(f"{path}.prune")
        for choice, table in (
            ("name", OPTIMIZER_LEAVES),
            ("schedule", SCHEDULE_LEAVES),
        ):
            chosen = getattr(self, choice)
            for leaf in sorted(set().union(*table.values()) - table[chosen]):
                if getattr(self, leaf) != getattr(OptimConfig, leaf):
                    yield (
                        f"{path}.{leaf} = {getattr(self, leaf)}: ignored with "
                        f"{path}.{choice} = {chosen!r}"
                    )
