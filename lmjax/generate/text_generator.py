"""Texts for encoded rows, by beam search."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.config.decoding import DecodingConfig
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.generate.beam import BeamSearch
from lmjax.generate.decode import Generator
from lmjax.generate.prompts import begin_texts, decode_continuation, drop_forced
from lmjax.generate.text_stream import cut_text
from lmjax.models import Model
from lmjax.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class TextGenerator:
    """Beam search as a config has it, compiled once for each shape of batch."""

    config: DecodingConfig
    tokenizer: Tokenizer
    model: Model

    def generate(
        self, params: Params, rows: Sequence[Mapping[str, Sequence[int]]]
    ) -> list[list[dict[str, Any]]]:
        """Return the texts that the search finds for each row, the best first.

        Each has `text`, without its end, and as what follows the prompt of a decoder;
        `score`, by which hypotheses compare; and `log_prob`, in nats, of its end too
        where that was generated.

        Args:
          params: of the model.
          rows: of each the ids of `prompts`, which the texts continue, and of an
            encoder-decoder those of `sources`.
        """
        inputs: Any = {name: [row[name] for row in rows] for name in rows[0]}
        hypotheses = self._search.search(
            params,
            **begin_texts(inputs, decoding=self.config, config=self.model.config),
            config=self.config,
            stop_ids=self.config.stop_ids or self.tokenizer.stop_ids,
        )
        contexts = inputs["prompts"] if "sources" not in inputs else [()] * len(rows)
        return [
            [h.to_dict(self._decode(context, h.tokens)) for h in row]
            for context, row in zip(contexts, hypotheses, strict=True)
        ]

    def _decode(self, context: Sequence[int], tokens: Sequence[int]) -> str:
        decoding, config = self.config, self.model.config
        tokens = drop_forced(tokens, decoding=decoding, config=config)
        text = decode_continuation(self.tokenizer, context, tokens)
        return cut_text(text, decoding.stop)

    def cached_tokens(self, length: Any) -> Any:
        """Return the most tokens that are cached for a row: its own, and of beams."""
        return length + self.config.num_beams * (length + self.config.max_tokens)

    @functools.cached_property
    def _search(self) -> BeamSearch:
        return BeamSearch(Generator(self.model, self.tokenizer.vocab_size))
