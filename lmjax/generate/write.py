"""Answers that a model writes for a batch of rows, by a beam search."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.config import WriteConfig
from lmjax.data.tokenizer import Tokenizer
from lmjax.generate.beam import Beams, BeamSearch
from lmjax.generate.constraints import Constraints
from lmjax.generate.decode import Generator
from lmjax.models import Model
from lmjax.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Writer:
    """A model that answers as `config` says, compiled once for each shape of batch."""

    config: WriteConfig
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
        c = self.config
        found = self._search.hypotheses(
            params,
            **columns,
            max_tokens=c.max_tokens,
            beams=Beams(
                num_beams=c.num_beams,
                length_penalty=c.length_penalty,
                early_finish=c.early_finish,
                num_return=c.num_return,
            ),
            constraints=Constraints(
                min_tokens=c.min_tokens, no_repeat_ngram=c.no_repeat_ngram
            ),
            stop_ids=self.tokenizer.stop_ids,
        )
        return [
            [text.told(self.tokenizer.decode(text.tokens)) for text in row]
            for row in found
        ]

    def slots(self, length: Any) -> Any:
        """Return the most places that a row of `length` takes, and what follows it."""
        return length + self.config.num_beams * (length + self.config.max_tokens)

    @functools.cached_property
    def _search(self) -> BeamSearch:
        return BeamSearch(Generator(self.model, self.tokenizer.vocab_size))
