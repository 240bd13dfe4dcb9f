"""A split of examples, and the features that encode them."""

import dataclasses

from lmjax.data.features.features import Features
from lmjax.data.formats.examples import Examples, explain_bad_example
from lmjax.data.sources.documents import hash_json
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import UserError

VERSION = 2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ExamplePart:
    """The examples of one split, and how they are encoded.

    As documents, which a tokenizer is trained on, they are their texts.
    """

    examples: Examples
    features: Features
    on_bad_example: str
    keeps_examples: bool  # the store holds the examples themselves, too

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int, /) -> str:
        """Return the text of one example; "" for one that is skipped as bad."""
        try:
            return "\n".join(self.features.texts(self.examples[index]))
        except UserError as error:
            if self.on_bad_example == "skip":
                return ""
            raise explain_bad_example(error, self.examples.where(index)) from error

    def size(self, index: int, /) -> int:
        """Return the number of bytes of one example's text."""
        return len(self[index].encode())

    def fingerprint(self) -> str:
        """Hash the examples, and all that decides their rows but the tokenizer."""
        identity = self.features.identity()
        options = self.on_bad_example, self.keeps_examples
        return hash_json(self.examples.fingerprint(), identity, *options)

    def identity(self, tokenizer: Tokenizer) -> str:
        """Hash all that decides the rows of a store."""
        own = self.features.tokenizer_identity(tokenizer)
        return hash_json(VERSION, self.fingerprint(), tokenizer.fingerprint(), *own)
