"""Special token ids, by the same names for every kind of tokenizer."""

import dataclasses
from typing import Any, ClassVar


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class SpecialIds:
    """The special ids of a tokenizer: the base class of all tokenizers.

    Attributes:
      bos_id: begins a document, if anything does.
      eos_id: ends one.
      pad_id: the padding of the model that the tokenizer was made for.
      mask_id: stands for a token to be predicted.
      stop_ids: all that end a generated text; by default `eos_id`.
      sentinel_ids: each stands for a span to be predicted; the first is used first.
      prefix_ids: before a single text, as its own model expects.
      suffix_ids: after a single text.
      pair_ids: between two texts.
      separates_words: pieces are whole words, with white space between any two.
    """

    separates_words: ClassVar[bool] = False

    @property
    def cleans_up(self) -> bool:
        """Return whether decoded texts lose spaces; see `spaces.clean_up`."""
        return False

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
            if isinstance(value, list):  # read from JSON
                setattr(self, field.name, tuple(value))
        if not self.stop_ids:
            self.stop_ids = not_none(self.eos_id)

    def special_ids(self) -> dict[str, Any]:
        """Return the ids by name, as the constructor takes them."""
        fields = dataclasses.fields(SpecialIds)
        return {field.name: getattr(self, field.name) for field in fields}


def not_none(*ids: int | None) -> tuple[int, ...]:
    """Return the ids that are not None."""
    return tuple(i for i in ids if i is not None)


def without_bos(special: SpecialIds) -> SpecialIds:
    """Return the same ids without a BOS."""
    kept = tuple(i for i in special.prefix_ids if i != special.bos_id)
    return dataclasses.replace(special, bos_id=None, prefix_ids=kept)
