"""What is written: by a search, or drawn; and answers to the rows of a batch."""

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
from lmjax.generate.sampling import Sampling
from lmjax.models import Model
from lmjax.types import Params


def choose_decoding(
    *,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    num_beams: int = 1,
    **write: Any,
) -> Sampling | DecodingConfig:
    """Return how to write: by a search of more than one beam, else by sampling.

    Args:
      temperature: of `Sampling`, by default 1.
      top_k: of `Sampling`.
      top_p: of `Sampling`.
      num_beams: of `DecodingConfig`.
      write: more of its leaves.

    Raises:
      ConfigError: an option out of range, or one that asks for chance in a search.
    """
    config = decoding.checked(num_beams=num_beams, **write)
    if num_beams == 1:
        _refuse_search(config)
        return Sampling(
            temperature=1.0 if temperature is None else temperature,
            top_k=top_k,
            top_p=top_p,
            min_tokens=config.min_tokens,
            no_repeat_ngram=config.no_repeat_ngram,
        )
    given = {"temperature": temperature or 0, "top_k": top_k, "top_p": top_p}
    none = {"temperature": 0, "top_k": 0, "top_p": 1}
    for name, value in given.items():
        if value != none[name]:
            raise ConfigError(
                f"{name} = {value}: must be {none[name]} or left out with num_beams = "
                f"{num_beams}, which draws nothing"
            )
    return config


def _refuse_search(config: DecodingConfig) -> None:
    """Raise if leaves that only a search reads are not as they are by default."""
    default = DecodingConfig()
    for name in ("length_penalty", "early_finish"):
        if (value := getattr(config, name)) != getattr(default, name):
            raise ConfigError(
                f"{name} = {value}: is for a search; give num_beams of 2 or more"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Writer:
    """A model that answers as `config` says, compiled once for each shape of batch."""

    config: DecodingConfig
    tokenizer: Tokenizer
    model: Model

    def texts(
        self, params: Params, asked: Sequence[Mapping[str, Sequence[int]]]
    ) -> list[list[dict[str, Any]]]:
        """Return the texts written for each of some rows, the best first.

        Each has `text`, without its end; `score`, what texts compare by; `log_prob`, in
        nats, of its end too where it was written.

        Args:
          params: the model's.
          asked: of each row `prompts`, the tokens that it goes on from, and of a model
            that reads one its `sources`.
        """
        columns: Any = {name: [row[name] for row in asked] for name in asked[0]}
        found = self._search.search(
            params, **columns, config=self.config, stop_ids=self.tokenizer.stop_ids
        )
        return [
            [text.to_dict(self.tokenizer.decode(text.tokens)) for text in row]
            for row in found
        ]

    def slots(self, length: Any) -> Any:
        """Return the most places that a row of `length` takes, and what follows it."""
        return length + self.config.num_beams * (length + self.config.max_tokens)

    @functools.cached_property
    def _search(self) -> BeamSearch:
        return BeamSearch(Generator(self.model, self.tokenizer.vocab_size))
