"""Features of instruction tuning: a prompt, and the target that continues it.

B rows, T tokens in a row.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.data.features.features import Columns, Row, pad_token_rows
from lmjax.data.features.text_pairs import TextPair, TextPairFeatures
from lmjax.data.tokenizers.continuation import encode_continuations
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.data.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lmjax.types import HostBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedLMFeatures(TextPairFeatures):
    """A prompt and a target with its end, one after the other in one row.

    A prompt has the room that `length` leaves for `target_length`, however long its
    own target is: it must be the same where the target is not known. A prompt that is
    too long is cut at the start, since its end asks for the target. The target is
    encoded as what follows the prompt.

    Columns: `tokens`, `prompt` (the number of those that are the prompt).
    """

    fingerprint_name = "PromptedLM"

    def encode(
        self, parsed: Sequence[TextPair], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return a row for each; prompts are cut at the start, targets at the end."""
        self.check_end(tokenizer)
        texts = [(self.prompt(pair), pair.target) for pair in parsed]
        pairs = encode_continuations(tokenizer, texts, keep_context=True)
        return [[self._row(*pair, tokenizer)] for pair in pairs]

    def identity(self) -> Any:
        """Return the fields, the template, the lengths, and how the seam is encoded."""
        return [*super().identity(), "continuation"]

    def batch(self, rows: Sequence[Columns | None], *, length: int) -> "HostBatch":
        """Return tokens, targets, segments, positions and weights, each (B, T).

        Weights are 0 where the target is a token of the prompt.
        """
        inputs = [row and {"tokens": row["tokens"][:-1]} for row in rows]
        batch = pad_token_rows(inputs, length=length)
        batch["targets"] = np.zeros_like(batch["tokens"])
        batch["weights"] = np.zeros(batch["tokens"].shape, np.float32)
        for b, row in enumerate(rows):
            if row is not None:
                first, stop = int(row["prompt"][0]) - 1, len(row["tokens"]) - 1
                batch["targets"][b, :stop] = row["tokens"][1:]
                batch["weights"][b, first:stop] = 1.0
        return batch

    def prompt_row(self, columns: Columns) -> Row:
        """Return the row of the same example without its target, as it is decoded."""
        tokens, size = columns["tokens"], int(columns["prompt"][0])
        prompt = np.append(tokens[:size], tokens[-1:])  # the last is the end of text
        return Row(columns={**columns, "tokens": prompt}, size=size)

    def decoder_inputs(self, columns: Columns) -> dict[str, Any]:
        """Return the ids to continue."""
        return {"prompts": columns["tokens"][: int(columns["prompt"][0])]}

    def _row(self, prompt: np.ndarray, target: np.ndarray, tokenizer: Tokenizer) -> Row:
        bos = np.array(not_none(tokenizer.bos_id), np.int32)
        room = self.length - self.target_length - len(bos)
        start = np.concatenate([bos, prompt[max(len(prompt) - room, 0) :]])
        if not len(start):  # there must be a token to continue
            start = np.array(not_none(tokenizer.eos_id), np.int32)
        tokens = np.concatenate([start, self.end_target(target, tokenizer)])
        return Row(
            columns={"tokens": tokens, "prompt": np.array([len(start)], np.int32)},
            size=len(tokens) - 1,
            truncated=len(prompt) > room or len(target) >= self.target_length,
        )
