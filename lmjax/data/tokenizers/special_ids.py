"""The ids that stand for no text, which every kind of tokenizer tells in one way."""

import dataclasses
from typing import Any


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class SpecialIds:
    """What a tokenizer says of its special ids; its class is built on this one.

    Attributes:
      bos_id: what begins a document, if anything does.
      eos_id: what ends one.
      pad_id: what its own model was padded with.
      mask_id: what stands for a token to be guessed.
      stop_ids: all that end a generation; by default `eos_id`.
      sentinel_ids: what stands for a span to be guessed, the first used first.
      prefix_ids: what stands before a single text, as its own model expects.
      suffix_ids: what stands after one.
      pair_ids: what stands between two texts.
    """

    bos_id: int | None = None
    eos_id: int | None = None
    pad_id: int | None = None
    mask_id: int | None = None
    stop_ids: tuple[int, ...] = ()
    sentinel_ids: tuple[int, ...] = ()
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    pair_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(SpecialIds):
            value = getattr(self, field.name)
            if isinstance(value, list):  # as JSON gives it back
                setattr(self, field.name, tuple(value))
        if not self.stop_ids:
            self.stop_ids = not_none(self.eos_id)

    def special_ids(self) -> dict[str, Any]:
        """Return the ids by their names, as the constructor takes them."""
        fields = dataclasses.fields(SpecialIds)
        return {field.name: getattr(self, field.name) for field in fields}


def not_none(*ids: int | None) -> tuple[int, ...]:
    """Return the ids that there are."""
    return tuple(i for i in ids if i is not None)


def without_bos(special: SpecialIds) -> SpecialIds:
    """Return the same ids, with nothing that begins a document."""
    kept = tuple(i for i in special.prefix_ids if i != special.bos_id)
    return dataclasses.replace(special, bos_id=None, prefix_ids=kept)
