"""Sources and targets for a model that reads the one and writes the other.

B rows, S tokens in a source, T in a target.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax.data.bucketing import MULTIPLE
from lmjax.data.features.features import Columns, Row, token_rows
from lmjax.data.features.text_pairs import TextPair, TextPairs
from lmjax.data.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lmjax.types import HostBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2Seq(TextPairs):
    """A source with what the tokenizer puts around it; a target, opened and ended.

    Buckets have one length, S, for both: targets of a batch have the share T of it
    that `target_length` is of `length`, rounded up to a multiple of 8. A row goes
    where both its parts fit. That gives as many shapes as buckets, and as little
    padding as the two lengths go together.

    A row: `source`, `target`.
    """

    fingerprint_name = "Seq2Seq"
    decoder_prefix_ids: tuple[int, ...]  # read first; all but one are the target's, too

    def encode(
        self, readings: Sequence[TextPair], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return rows; what is too long of a source or a target is cut off."""
        pairs = self.encoded(readings, tokenizer)
        return [(self._row(*pair, tokenizer),) for pair in pairs]

    def batch(self, rows: Sequence[Columns | None], *, length: int) -> "HostBatch":
        """Return the arrays of `tasks.seq2seq`: of sources (B, S), of targets (B, T).

        Tokens are the targets one place later, after the start.
        """
        read = token_rows(rows, length=length, column="source")
        batch = token_rows(rows, length=self.room(length), column="target")
        targets_BT, real_BT = batch["tokens"], batch["segments"]
        before_BT = np.roll(targets_BT, 1, axis=1)
        before_BT[:, 0] = self.decoder_prefix_ids[0]
        return {
            "source": read["tokens"],
            "source_segments": read["segments"],
            "source_positions": read["positions"],
            **batch,
            "tokens": before_BT * real_BT,
            "targets": targets_BT,
            "weights": real_BT.astype(np.float32),
        }

    def asked(self, row: Columns) -> dict[str, Any]:
        """Return what is written for a row: after which tokens, and of what source."""
        return {"prompts": [*self.decoder_prefix_ids], "sources": row["source"]}

    def identity(self) -> Any:
        """Return what decides sources and targets, and what these begin with."""
        return [*super().identity(), self.decoder_prefix_ids[1:]]

    def room(self, length: int) -> int:
        """Return the length of targets in a bucket."""
        room = -(-length * self.target_length // self.length)
        return -(-room // MULTIPLE) * MULTIPLE

    def _row(self, source: np.ndarray, target: np.ndarray, tokenizer: Tokenizer) -> Row:
        prefix, suffix = tokenizer.prefix_ids, tokenizer.suffix_ids
        room = self.length - len(prefix) - len(suffix)
        read = np.concatenate([prefix, source[:room], suffix]).astype(np.int32)
        opened = np.concatenate(
            [np.array(self.decoder_prefix_ids[1:], np.int32), target]
        )
        written = self.ended(opened, tokenizer)
        size = max(len(read), -(-len(written) * self.length // self.target_length))
        return Row(
            columns={"source": read, "target": written},
            size=size,
            truncated=len(source) > room or len(opened) >= self.target_length,
        )
