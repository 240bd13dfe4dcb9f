"""The config of the tokenizer."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Literal

from lmjax.config.leaf_types import Interval, NonNegativeInt, PositiveInt

# The leaves that only kind = "words" uses.
WORDS_LEAVES = ("split", "lowercase", "min_count", "stop_words")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """How text is tokenized; a trained tokenizer is saved in the workdir."""

    # bytes: UTF-8 bytes; ids: the text is token ids, separated by spaces; tokenizers: a
    # Hugging Face tokenizer; words: whole words, from the training text
    kind: Literal["sentencepiece", "bytes", "ids", "tokenizers", "words"] = (
        "sentencepiece"
    )
    # sentencepiece: a .model file, or "": train one on the train split;
    # tokenizers: a Hugging Face directory, or a tokenizer.json, vocab.txt or .model;
    # words: a file of word vectors, whose words are added to those of the text
    path: str = ""
    algorithm: Literal["unigram", "bpe", "char", "word"] = "bpe"  # to train with
    # sentencepiece to train: its size; words: the maximum; ids: 1 + the largest id;
    # 0: that of the file in `path`, or of bytes
    vocab_size: NonNegativeInt = 0
    bos: bool = True  # begin each document with a BOS token, which is never a target
    # sentencepiece to train: byte fallback, white space kept, no normalization. Without
    # it NFKC makes ASCII of the full-width punctuation of Chinese and Japanese
    lossless: bool = True
    # sentencepiece to train: the size of the random sample of text to train on
    num_training_bytes: Annotated[int, Interval(1, below=1 << 40)] = 4_000_000
    mask: bool = False  # have a mask token, for task.kind = "masked_lm"
    num_sentinels: NonNegativeInt = 0  # sentinel tokens, for "span_corruption"
    # words: split at white space and punctuation, or at white space only. Tagging needs
    # white_space: each word of an example is one token
    split: Literal["punctuation", "white_space"] = "punctuation"
    lowercase: bool = False  # words
    min_count: PositiveInt = 1  # words: how often a word must be in the train split
    # words: those to drop: "english", or a file of words; "": none
    stop_words: str = ""
    # how the messages of a chat become text: the template that a Hugging Face tokenizer
    # comes with, or one of these
    chat_template: Literal["own", "chatml", "llama3", "zephyr", "plain"] = "own"

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        trained = self.kind == "sentencepiece" and not self.path
        if (trained or self.kind in ("words", "ids")) and not self.vocab_size:
            yield (
                f"{path}.vocab_size = 0: must be set for {path}.kind = {self.kind!r}"
                f"{' without a path' if trained else ''}"
            )
        if self.kind in ("bytes", "ids") and self.path:
            yield (
                f"{path}.path = {self.path!r}: must be '' for {path}.kind = "
                f"{self.kind!r}"
            )
        if self.kind == "tokenizers" and not self.path:
            yield f"{path}.path = '': must be set for {path}.kind = 'tokenizers'"
        if trained and self.lossless and self.algorithm == "word":
            yield (
                f"{path}.lossless = True: must be False for {path}.algorithm = 'word'"
            )
        for leaf in WORDS_LEAVES if self.kind != "words" else ():
            if getattr(self, leaf) != getattr(TokenizerConfig, leaf):
                yield (
                    f"{path}.{leaf} = {getattr(self, leaf)!r}: only for {path}.kind = "
                    f"'words', not {self.kind!r}"
                )
