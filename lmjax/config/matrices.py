"""The sections of a Transformer's matrices: adapters, low rank, fewer bits."""

import dataclasses
import fnmatch
from collections.abc import Iterator, Sequence
from typing import Literal

from lmjax.config.leaf_types import (
    NonNegativeFloat,
    NonNegativeInt,
    Rate,
    SizeOrZero,
)
from lmjax.errors import nearest

# The weight matrices of a block, to which LoRA adapters can be added.
MATRICES = (
    *(f"attention.{name}" for name in ("query", "key", "value", "out")),
    *(f"cross_attention.{name}" for name in ("query", "key", "value", "out")),
    *(f"mlp.{name}" for name in ("up", "gate", "down")),
)


def check_targets(targets: Sequence[str], *, path: str) -> Iterator[str]:
    """Yield the problems of patterns of `MATRICES`; `path` is that of their config."""
    for target in targets:
        if not fnmatch.filter(MATRICES, target):
            yield (
                f"{path}.targets: {target!r} matches no matrix of a block"
                f"{nearest(target, MATRICES)}; must match any of {', '.join(MATRICES)}"
            )


def matches(matrix: str, targets: Sequence[str]) -> bool:
    """Return whether patterns name one of `MATRICES`."""
    return any(fnmatch.fnmatchcase(matrix, target) for target in targets)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """LoRA: low-rank adapters added to weight matrices (Hu et al. 2021)."""

    rank: SizeOrZero = 0  # 0: no adapters
    alpha: NonNegativeFloat = 16.0  # adapters are scaled by alpha / rank
    # the matrices that have an adapter: patterns of "attention.query", "mlp.up", ...
    targets: tuple[str, ...] = ("*attention.query", "*attention.value")

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        yield from check_targets(self.targets, path=path)

    def rank_of(self, matrix: str) -> int:
        """Return the rank of the adapter of one of `MATRICES`; 0: it has none."""
        return self.rank if matches(matrix, self.targets) else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRankConfig:
    """Weight matrices as products of two thin ones; `lmjax compress` makes them."""

    fraction: Rate = 0.0  # of the weights of each matrix that its factors have
    # the matrices that are products: patterns of "attention.query", "mlp.up", ...
    targets: tuple[str, ...] = ("*",)

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        yield from check_targets(self.targets, path=path)

    def rank_of(self, matrix: str, num_inputs: int, num_outputs: int) -> int:
        """Return the rank of one of `MATRICES` of this size; 0: it is whole."""
        if not self.fraction or not matches(matrix, self.targets):
            return 0
        whole = num_inputs * num_outputs
        return max(1, int(self.fraction * whole / (num_inputs + num_outputs)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Weights in fewer bits than float32; `lmjax compress` makes them."""

    # of the matrices of blocks. int8, fp8 (e4m3): with a scale for each output; int4,
    # nf4 (QLoRA's): with one for each group of inputs; "": float32
    weights: Literal["", "int8", "int4", "fp8", "nf4"] = ""
    group: NonNegativeInt = 0  # int4, nf4: inputs that share a scale
    # the embedding table and the output layer: with a scale for each token; "": float32
    embeddings: Literal["", "int8"] = ""
    # int8: the inputs of the matrices, too, are rounded, each token by its own scale
    activations: Literal["", "int8"] = ""
    # int8: keys and values of earlier tokens in decoding, each vector by its own scale
    cache: Literal["", "int8"] = ""
    # parameters stay float32, and are rounded in each product: to train what will be
    # quantized (gradients pass straight through)
    aware: bool = False

    @property
    def stores_codes(self) -> bool:
        """Whether the matrices of blocks are stored in fewer bits."""
        return bool(self.weights) and not self.aware

    @property
    def stores_table(self) -> bool:
        """Whether the embedding table is stored in fewer bits."""
        return bool(self.embeddings) and not self.aware

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        has_groups = self.weights in ("int4", "nf4")
        if has_groups and (self.group < 2 or self.group % 2):
            yield (
                f"{path}.group = {self.group}: must be even and >= 2, such as 64, for "
                f"{path}.weights = {self.weights!r}"
            )
        if self.group and not has_groups:
            yield (
                f"{path}.group = {self.group}: must be 0 for {path}.weights = "
                f"{self.weights!r}, which has a scale for each output"
            )
        if self.activations and self.weights != "int8":
            yield (
                f"{path}.activations = {self.activations!r}: needs {path}.weights = "
                f"'int8', not {self.weights!r}"
            )
        if self.aware and not (self.weights or self.embeddings):
            yield f"{path}.aware = True: needs {path}.weights or {path}.embeddings"
