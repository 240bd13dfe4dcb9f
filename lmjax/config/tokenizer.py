"""The tokenizer, as a config section."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

from lmjax.config.model import Count, CountOrZero
from lmjax.config.parse import Range

# Which leaves words alone read.
OF_WORDS = ("split", "lowercase", "min_count", "stop_words")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text becomes token ids; a trained tokenizer is saved in the workdir."""

    kind: Literal["sentencepiece", "bytes", "ids", "tokenizers", "words"] = (
        "sentencepiece"
    )
    # sentencepiece: a .model to use, "": train one on data's train split;
    # tokenizers: a Hugging Face directory, or its tokenizer.json, vocab.txt or .model;
    # words: a file of word vectors, whose words are known beside those of the text
    path: str = ""
    algorithm: Literal["unigram", "bpe", "char", "word"] = "bpe"
    vocab_size: CountOrZero = 0  # 0: what `path` or the bytes have; words: at most
    bos: bool = True  # begin each document with a token that is never predicted
    lossless: bool = True  # byte fallback, white space kept, no normalization
    num_training_bytes: Annotated[int, Range(1, below=1 << 40)] = 4_000_000  # sampled
    mask: bool = False  # have a token that stands for one to be guessed
    num_sentinels: CountOrZero = 0  # tokens that stand for spans to be guessed
    split: Literal["punctuation", "white_space"] = "punctuation"  # what parts words;
    # white_space: each word of a sentence to tag is one, whatever it holds
    lowercase: bool = False
    min_count: Count = (
        1  # how often a word is in the train split to be in the vocabulary
    )
    stop_words: str = ""  # dropped: a file of words, or "english"; "": none

    def mistakes(self, path: str) -> Iterator[str]:
        """Yield the errors between fields."""
        trained = self.kind == "sentencepiece" and not self.path
        if (trained or self.kind == "words") and not self.vocab_size:
            yield f"{path}.vocab_size = 0: must be given for a tokenizer to be trained"
        if self.kind == "ids" and not self.vocab_size:
            yield f"{path}.vocab_size = 0: must be given for texts that are ids"
        if self.kind in ("bytes", "ids") and self.path:
            yield f"{path}.path = {self.path!r}: {self.kind!r} takes no file"
        if self.kind == "tokenizers" and not self.path:
            yield f"{path}.path = '': {path}.kind = 'tokenizers' needs one"
        if trained and self.lossless and self.algorithm == "word":
            yield f"{path}.lossless = True: words cannot be; set it to False"
        for leaf in OF_WORDS if self.kind != "words" else ():
            if getattr(self, leaf) != getattr(TokenizerConfig, leaf):
                yield (
                    f"{path}.{leaf} = {getattr(self, leaf)!r}: only {path}.kind = "
                    "'words' reads it"
                )
