"""Prompts and their targets for a model that goes on from what it has read.

B rows, T tokens in a row.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.data.features.features import Columns, Row, token_rows
from lmjax.data.features.text_pairs import TextPair, TextPairs
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.data.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lmjax.types import HostBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedLM(TextPairs):
    """A prompt and a target with its end, one after the other in one row.

    A prompt has what `length` leaves beside `target_length`, however long its target
    is: so it is the same where nobody knows the target. Of one that is too long the
    beginning is cut off, for its end asks for the target.

    A row: `tokens`, `prompt` (how many of them are).
    """

    fingerprint_name = "PromptedLM"

    def encode(
        self, readings: Sequence[TextPair], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return rows; of a prompt the beginning is cut off, of a target the end."""
        pairs = self.encoded(readings, tokenizer)
        return [(self._row(*pair, tokenizer),) for pair in pairs]

    def batch(self, rows: Sequence[Columns | None], *, length: int) -> "HostBatch":
        """Return tokens, targets, segments, positions and weights, each (B, T).

        Weights are 0 where the target is a token of the prompt.
        """
        inputs = [row and {"tokens": row["tokens"][:-1]} for row in rows]
        batch = token_rows(inputs, length=length)
        batch["targets"] = np.zeros_like(batch["tokens"])
        batch["weights"] = np.zeros(batch["tokens"].shape, np.float32)
        for b, row in enumerate(rows):
            if row is not None:
                first, stop = int(row["prompt"][0]) - 1, len(row["tokens"]) - 1
                batch["targets"][b, :stop] = row["tokens"][1:]
                batch["weights"][b, first:stop] = 1.0
        return batch

    def asked(self, row: Columns) -> dict[str, Any]:
        """Return what is written for a row: after which tokens."""
        return {"prompts": row["tokens"][: int(row["prompt"][0])]}

    def _row(self, prompt: np.ndarray, target: np.ndarray, tokenizer: Tokenizer) -> Row:
        begin = np.array(not_none(tokenizer.bos_id), np.int32)
        room = self.length - self.target_length - len(begin)
        kept = prompt[max(len(prompt) - room, 0) :]
        asked = np.concatenate([begin, kept])
        if not len(asked):  # there must be something to go on from
            asked = np.array(not_none(tokenizer.eos_id), np.int32)
        tokens = np.concatenate([asked, self.ended(target, tokenizer)])
        return Row(
            columns={"tokens": tokens, "prompt": np.array([len(asked)], np.int32)},
            size=len(tokens) - 1,
            truncated=len(prompt) > room or len(target) >= self.target_length,
        )
