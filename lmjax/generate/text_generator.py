"""Choose between sampling and beam search, and decode texts for encoded rows."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.config import decoding
from lmjax.config.decoding import DecodingConfig
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError
from lmjax.generate.beam import BeamSearch
from lmjax.generate.decode import Generator
from lmjax.generate.prompts import decode_continuation
from lmjax.generate.sampling import Sampling
from lmjax.models import Model
from lmjax.types import Params


def choose_decoding(
    *,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    num_beams: int = 1,
    **search: Any,
) -> Sampling | DecodingConfig:
    """Return a beam search if there is more than one beam, else sampling.

    Args:
      temperature: of `Sampling`, by default 1.
      top_k: of `Sampling`.
      top_p: of `Sampling`.
      num_beams: of `DecodingConfig`.
      search: its other leaves.

    Raises:
      ConfigError: an option is out of range, or belongs to the other way of decoding.
    """
    config = decoding.build_decoding(num_beams=num_beams, **search)
    if num_beams == 1:
        _check_no_search(config)
        return Sampling(
            temperature=1.0 if temperature is None else temperature,
            top_k=top_k,
            top_p=top_p,
            min_tokens=config.min_tokens,
            no_repeat_ngram=config.no_repeat_ngram,
        )
    sampling = {"temperature": temperature or 0, "top_k": top_k, "top_p": top_p}
    unset = {"temperature": 0, "top_k": 0, "top_p": 1}
    for name, value in sampling.items():
        if value != unset[name]:
            raise ConfigError(
                f"{name} = {value}: must be {unset[name]} or left out with num_beams = "
                f"{num_beams}, which samples nothing"
            )
    return config


def _check_no_search(config: DecodingConfig) -> None:
    """Check that the leaves which only a search reads have their defaults."""
    default = DecodingConfig()
    for name in ("length_penalty", "early_finish"):
        if (value := getattr(config, name)) != getattr(default, name):
            raise ConfigError(
                f"{name} = {value}: is for beam search; give num_beams of 2 or more"
            )


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
            params, **inputs, config=self.config, stop_ids=self.tokenizer.stop_ids
        )
        contexts = inputs["prompts"] if "sources" not in inputs else [()] * len(rows)
        return [
            [
                text.to_dict(decode_continuation(self.tokenizer, context, text.tokens))
                for text in row
            ]
            for context, row in zip(contexts, hypotheses, strict=True)
        ]

    def cached_tokens(self, length: Any) -> Any:
        """Return the most tokens that are cached for a row: its own, and of beams."""
        return length + self.config.num_beams * (length + self.config.max_tokens)

    @functools.cached_property
    def _search(self) -> BeamSearch:
        return BeamSearch(Generator(self.model, self.tokenizer.vocab_size))
