"""Features of instruction tuning: prompts, and the targets that continue them.

B rows, T tokens in a row.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.data.features.features import Columns, Row
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

    Columns: `tokens`; `prompt`: where a prompt and, in turn, a target end, but for the
    last target, which ends the tokens. A pair has one number, a chat one for each turn.
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

        Weights are 0 where the target is a token of a prompt.
        """
        groups = [[] if row is None else [row] for row in rows]
        return self.batch_packed(groups, length=length)

    def batch_packed(
        self, groups: Sequence[Sequence[Columns]], *, length: int
    ) -> "HostBatch":
        """Return the same of several examples in a row, a segment for each."""
        return make_prompted_batch(groups, length=length)

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


def make_prompted_batch(
    groups: Sequence[Sequence[Columns]], *, length: int
) -> "HostBatch":
    """Return tokens, targets, segments, positions and weights, each (B, T).

    Args:
      groups: the examples of each row, with the columns of `PromptedLMFeatures`; each
        is a segment.
      length: T.
    """
    ids = ("tokens", "targets", "segments", "positions")
    shape = (len(groups), length)
    batch = {name: np.zeros(shape, np.int32) for name in ids}
    batch["weights"] = np.zeros(shape, np.float32)
    for b, group in enumerate(groups):
        begin = 0
        for segment, row in enumerate(group, start=1):
            tokens, size = row["tokens"], len(row["tokens"]) - 1
            place = slice(begin, begin + size)
            batch["tokens"][b, place] = tokens[:-1]
            batch["targets"][b, place] = tokens[1:]
            batch["segments"][b, place] = segment
            batch["positions"][b, place] = np.arange(size)
            borders = [*row["prompt"].tolist(), len(tokens)]
            pairs = zip(borders[::2], borders[1::2], strict=True)
            for first, stop in pairs:
                # a target is what is predicted one token before
                batch["weights"][b, begin + first - 1 : begin + stop - 1] = 1.0
            begin += size
    return batch
