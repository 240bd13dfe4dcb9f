"""A vocabulary of whole words, counted in the text by the `tokenizers` library.

The most frequent words come first; the word vectors of `config.tokenizer.path`, where
there are some, bring theirs after those of the text: words that training never sees,
and a model that takes their vectors over understands.
"""

import hashlib
import logging
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from lmjax.config.tokenizer import TokenizerConfig
from lmjax.data.sources.documents import Documents
from lmjax.data.tokenizers import stop_words
from lmjax.data.tokenizers.hf import tokenizer
from lmjax.data.tokenizers.special_ids import SpecialIds, not_none
from lmjax.data.tokenizers.word_vectors import WordVectors
from lmjax.errors import ConfigError

UNKNOWN, BOS, EOS, MASK = "<unk>", "<s>", "</s>", "<mask>"
_LEAF = "config.tokenizer.path"
# As the vectors of Pennington et al. 2014 have words: numbers with their points, "do
# n't" and "she 's" in two, every other mark alone.
_WORD = (
    r"\p{N}+(?:[.,:]\p{N}+)*|\w+(?=[nN]'[tT]\b)|[nN]'[tT]\b"
    r"|'(?i:s|re|ve|ll|d|m)\b|\w+|[^\s\w]"
)

_log = logging.getLogger(__name__)


def train(
    config: TokenizerConfig, parts: Sequence[Documents], *, made_from: str
) -> tokenizer.HFTokenizer:
    """Make the vocabulary that a config describes, of all of the text.

    Equally frequent words are in the order of the alphabet: the same text in another
    order gives the same vocabulary. It may be smaller than `config.vocab_size`.

    Raises:
      ConfigError: a file cannot be used, or no word is left.
    """
    core = _counted(config, parts)
    words, num_special = core.get_vocab(), len(_special_words(config))
    if len(words) <= num_special:
        raise ConfigError(
            f"config.tokenizer.vocab_size = {config.vocab_size}: leaves no word of the "
            f"text (config.tokenizer.min_count = {config.min_count})"
        )
    more = list(_more_words(core, config, words)) if config.path else []
    vocabulary = words | {word: len(words) + i for i, word in enumerate(more)}
    model = tokenizer.import_tokenizers().models.WordLevel
    core.model = model(vocabulary, unk_token=UNKNOWN)
    _log.info("vocabulary: %s", _summary(len(words) - num_special, len(more), config))
    return tokenizer.HFTokenizer(
        core,
        serialized=core.to_str().encode(),
        special=_special_ids(config, vocabulary),
        files={},
        made_from=made_from,
    )


def _counted(config: TokenizerConfig, parts: Sequence[Documents]) -> Any:
    """Return the library's tokenizer, with a vocabulary of the text's words."""
    library = tokenizer.import_tokenizers()
    core = library.Tokenizer(library.models.WordLevel({}, unk_token=UNKNOWN))
    if config.lowercase:
        core.normalizer = library.normalizers.Lowercase()
    core.pre_tokenizer = _splitter(library, config)
    trainer = library.trainers.WordLevelTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_count,
        special_tokens=_special_words(config),
        show_progress=False,
    )
    texts = (part[i] for part in parts for i in range(len(part)))
    core.train_from_iterator(texts, trainer)
    return core


def files_fingerprint(config: TokenizerConfig) -> list[str]:
    """Return hashes of what a vocabulary is made of beside the text.

    Raises:
      ConfigError: a file cannot be read.
    """
    words = " ".join(stop_words.read(config.stop_words))
    hashes = [hashlib.sha256(words.encode()).hexdigest()]
    if config.path:
        hashes.append(WordVectors(config.path, leaf=_LEAF).fingerprint())
    return hashes


def _special_words(config: TokenizerConfig) -> list[str]:
    sentinels = [f"<extra_id_{i}>" for i in range(config.num_sentinels)]
    return [UNKNOWN, *[BOS] * config.bos, EOS, *[MASK] * config.mask, *sentinels]


def _special_ids(config: TokenizerConfig, vocabulary: dict[str, int]) -> SpecialIds:
    bos_id = vocabulary[BOS] if config.bos else None
    eos_id = vocabulary[EOS]
    sentinels = [f"<extra_id_{i}>" for i in range(config.num_sentinels)]
    return SpecialIds(
        bos_id=bos_id,
        eos_id=eos_id,
        mask_id=vocabulary[MASK] if config.mask else None,
        sentinel_ids=tuple(vocabulary[word] for word in sentinels),
        prefix_ids=not_none(bos_id),
        suffix_ids=(eos_id,),
        pair_ids=(eos_id,),
    )


def _splitter(library: Any, config: TokenizerConfig) -> Any:
    """Return what parts a text into words, and drops some of them."""
    split = library.pre_tokenizers.Split
    steps = [
        library.pre_tokenizers.WhitespaceSplit()
        if config.split == "white_space"
        else split(library.Regex(_WORD), "removed", invert=True)
    ]
    if dropped := stop_words.read(config.stop_words):
        either = "|".join(map(re.escape, dropped))
        steps.append(split(library.Regex(rf"\A(?i:{either})\z"), "removed"))
    return library.pre_tokenizers.Sequence(steps)


def _more_words(
    core: Any, config: TokenizerConfig, words: Collection[str]
) -> Iterator[str]:
    """Yield the words of the vectors that a text can hold, as many as there is room."""
    seen, room = set(words), config.vocab_size - len(words)
    for word in WordVectors(config.path, leaf=_LEAF).words():
        if room <= 0:
            return
        if word not in seen and _is_whole(core, word):
            seen.add(word)
            room -= 1
            yield word


def _is_whole(core: Any, word: str) -> bool:
    """Return whether a text that is a word comes out as that word."""
    normalizer = core.normalizer
    if normalizer is not None and normalizer.normalize_str(word) != word:
        return False
    return [part for part, _ in core.pre_tokenizer.pre_tokenize_str(word)] == [word]


def _summary(num_words: int, num_more: int, config: TokenizerConfig) -> str:
    more = f", {num_more:,} more of {config.path}" if config.path else ""
    return f"{num_words:,} words of the text{more}; room for {config.vocab_size:,}"
