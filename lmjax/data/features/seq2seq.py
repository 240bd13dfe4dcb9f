"""Features of sequence-to-sequence tasks: a source for the encoder, and a target.

B rows, S tokens in a source, T in a target.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lmjax.config.experiment import Config
from lmjax.data.bucketing import MULTIPLE
from lmjax.data.features.features import Columns, Row, pad_token_rows
from lmjax.data.features.text_pairs import TextPair, TextPairFeatures
from lmjax.data.padding import round_up
from lmjax.data.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lmjax.types import HostBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2SeqFeatures(TextPairFeatures):
    """A source with its special tokens; a target with the decoder's prefix and an end.

    A bucket has one length, S, for both: the targets of a batch have the share T of it
    that `target_length` has of `length`, rounded up to a multiple of 8. A row belongs
    to the shortest bucket that holds both its texts. So there are as many shapes as
    buckets, with little padding where the two lengths correlate.

    Columns: `source`, `target`.
    """

    fingerprint_name = "Seq2Seq"
    decoder_prefix_ids: tuple[int, ...]  # all but the first begin the target, too

    @classmethod
    def from_config(cls, config: Config, **more: Any) -> Self:
        """Return the features of a config."""
        prefix_ids = config.model.decoder_prefix_ids
        return super().from_config(config, decoder_prefix_ids=prefix_ids, **more)

    def encode(
        self, parsed: Sequence[TextPair], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return a row for each; sources and targets are cut at the end."""
        self.check_end(tokenizer)
        sources = tokenizer.encode_batch([self.prompt(pair) for pair in parsed])
        targets = tokenizer.encode_batch([pair.target for pair in parsed])
        pairs = zip(sources, targets, strict=True)
        return [[self._row(*pair, tokenizer)] for pair in pairs]

    def batch(self, rows: Sequence[Columns | None], *, length: int) -> "HostBatch":
        """Return the arrays of `tasks.seq2seq`: of sources (B, S), of targets (B, T).

        Tokens are the targets shifted right by one, after the decoder's first id.
        """
        source = pad_token_rows(rows, length=length, column="source")
        batch = pad_token_rows(rows, length=self.target_bucket(length), column="target")
        targets_BT, real_BT = batch["tokens"], batch["segments"]
        tokens_BT = np.roll(targets_BT, 1, axis=1)
        tokens_BT[:, 0] = self.decoder_prefix_ids[0]
        return {
            "source": source["tokens"],
            "source_segments": source["segments"],
            "source_positions": source["positions"],
            **batch,
            "tokens": tokens_BT * real_BT,
            "targets": targets_BT,
            "weights": real_BT.astype(np.float32),
        }

    def prompt_row(self, columns: Columns) -> Row:
        """Return the row of the same example without its target, as it is decoded."""
        prefix = np.array(self.decoder_prefix_ids[1:], np.int32)
        target = np.append(prefix, columns["target"][-1:])  # the last is the end
        size = self._size(columns["source"], target)
        return Row(columns={**columns, "target": target}, size=size)

    def decoder_inputs(self, columns: Columns) -> dict[str, Any]:
        """Return the decoder's first ids, and the source."""
        return {"prompts": [*self.decoder_prefix_ids], "sources": columns["source"]}

    def identity(self) -> Any:
        """Return the fields, the template, the lengths and the prefix of targets."""
        return [*super().identity(), self.decoder_prefix_ids[1:]]

    def target_bucket(self, length: int) -> int:
        """Return the length of targets in a bucket of a length of sources."""
        target_length = -(-length * self.target_length // self.length)
        return round_up(target_length, MULTIPLE)

    def _size(self, source: np.ndarray, target: np.ndarray) -> int:
        """Return the shortest bucket that holds a source and a target."""
        return max(len(source), -(-len(target) * self.length // self.target_length))

    def _row(self, source: np.ndarray, target: np.ndarray, tokenizer: Tokenizer) -> Row:
        prefix, suffix = tokenizer.prefix_ids, tokenizer.suffix_ids
        room = self.length - len(prefix) - len(suffix)
        wrapped = np.concatenate([prefix, source[:room], suffix]).astype(np.int32)
        decoder_prefix = np.array(self.decoder_prefix_ids[1:], np.int32)
        prefixed = np.concatenate([decoder_prefix, target])
        ended = self.end_target(prefixed, tokenizer)
        return Row(
            columns={"source": wrapped, "target": ended},
            size=self._size(wrapped, ended),
            truncated=len(source) > room or len(prefixed) >= self.target_length,
        )
