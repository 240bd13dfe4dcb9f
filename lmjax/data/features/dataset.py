"""Examples with the features that make rows of them."""

import dataclasses

from lmjax.data.features.features import Features
from lmjax.data.formats.examples import Examples, explain_bad_example
from lmjax.data.sources.documents import hash_json
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import UserError

VERSION = 2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ExamplePart:
    """Examples, and what a task makes of them; to a tokenizer, documents."""

    examples: Examples
    features: Features
    on_bad_example: str
    kept: bool  # the store keeps the examples themselves, too

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int, /) -> str:
        """Return the text of one example; of one that cannot be read "" if skipped."""
        try:
            return "\n".join(self.features.texts(self.examples[index]))
        except UserError as error:
            if self.on_bad_example == "skip":
                return ""
            raise explain_bad_example(error, self.examples.where(index)) from error

    def size(self, index: int, /) -> int:
        """Return the bytes of one example's text."""
        return len(self[index].encode())

    def fingerprint(self) -> str:
        """Hash the examples, and what decides the rows."""
        identity = self.features.identity()
        options = self.on_bad_example, self.kept
        return hash_json(self.examples.fingerprint(), identity, *options)

    def identity(self, tokenizer: Tokenizer) -> str:
        """Hash what decides the rows of a store."""
        return hash_json(VERSION, self.fingerprint(), tokenizer.fingerprint())
