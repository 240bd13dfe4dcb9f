"""The task of learning which of two completions people prefer."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from lmjax.config.data import RECORDS
from lmjax.config.decoding import MIN_TARGET_LENGTH, SamplingConfig
from lmjax.config.leaf_types import Interval, NonNegativeFloat, runtime_field
from lmjax.config.model import CAUSAL_KINDS
from lmjax.config.text_task import VocabularyTaskConfig

WITH_REFERENCE = ("dpo", "ipo", "kto")
# The losses that heed a leaf; for the others it must have its default.
_LEAVES = {
    "label_smoothing": ("dpo", "simpo"),
    "margin": ("simpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "z_loss": (),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceConfig(VocabularyTaskConfig):
    """Prefer the completion that people have chosen to the one that they rejected.

    The reference of dpo, ipo and kto is the model as the run begins: with LoRA the
    model without its adapters, else a second copy of `init_from`.
    """

    kind: Literal["preference"] = "preference"
    # dpo, ipo, orpo, simpo: of pairs; kto: of single completions that people like or
    # not
    loss: Literal["dpo", "ipo", "orpo", "kto", "simpo"] = "dpo"
    # dpo, ipo, kto: how close the model stays to the reference; simpo: the scale of
    # rewards; orpo: the weight of the odds ratio
    beta: Annotated[float, Interval(1e-6, 1e6)] = 0.1
    margin: NonNegativeFloat = 0.5  # simpo: that the chosen one should lead by (gamma)
    desirable_weight: NonNegativeFloat = 1.0  # kto
    undesirable_weight: NonNegativeFloat = 1.0  # kto
    write: SamplingConfig = runtime_field(SamplingConfig())  # texts that continue one
    model_kinds = CAUSAL_KINDS
    example_sources = RECORDS
    has_target = True
    can_distill = False

    @property
    def needs_reference(self) -> bool:
        """Return whether the loss compares the model with how it began."""
        return self.loss in WITH_REFERENCE

    def default_target_length(
        self, length: int, decoder_prefix_ids: Sequence[int]
    ) -> int:
        """Return half a row."""
        return length // 2

    def validate(self, path: str) -> Iterator[str]:
        """Yield leaves that the loss does not heed."""
        for leaf, losses in _LEAVES.items():
            value, default = getattr(self, leaf), getattr(PreferenceConfig, leaf)
            if value != default and self.loss not in losses:
                yield (
                    f"{path}.{leaf} = {value}: must be {default:g} for {path}.loss = "
                    f"{self.loss!r}"
                )

    def conflicts(self, config: Any, path: str) -> Iterator[str]:
        """Yield the conflicts of the task with other sections of a `Config`."""
        data = config.data
        if self.loss == "kto" and config.num_microbatches > 1:
            yield (
                f"{path}.num_microbatches = {config.num_microbatches}: must be 1 for "
                f"{path}.task.loss = 'kto', which compares the completions of a batch"
            )
        longest = data.length - MIN_TARGET_LENGTH
        if not MIN_TARGET_LENGTH <= data.target_length <= longest:
            yield (
                f"{path}.data.target_length = {data.target_length}: must be 0 or from "
                f"{MIN_TARGET_LENGTH} to {path}.data.length - {MIN_TARGET_LENGTH} = "
                f"{longest}"
            )
