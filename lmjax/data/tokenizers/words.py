"""A vocabulary of whole words, counted in the text by the `tokenizers` library.

The most frequent words come first. The words of `config.tokenizer.path`, a file of word
vectors, follow those of the text: the training text does not have them, but a model
that is initialized from those vectors knows them.
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
from lmjax.data.tokenizers.hf.library import import_tokenizers
from lmjax.data.tokenizers.special_ids import SpecialIds, not_none
from lmjax.data.tokenizers.word_vectors import WordVectors
from lmjax.errors import ConfigError

UNKNOWN, BOS, EOS, MASK = "<unk>", "<s>", "</s>", "<mask>"
_LEAF = "config.tokenizer.path"
# Words as in the vectors of Pennington et al. 2014: numbers with their points, "do n't"
# and "she 's" as two words, every other punctuation mark by itself.
_WORD = (
    r"\p{N}+(?:[.,:]\p{N}+)*|\w+(?=[nN]'[tT]\b)|[nN]'[tT]\b"
    r"|'(?i:s|re|ve|ll|d|m)\b|\w+|[^\s\w]"
)

# Scripts without spaces between words: their letters, and the greatest mean length of
# words in characters.
_WITHOUT_SPACES = {
    "Chinese or Japanese": (
        "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
        "\U00020000-\U0003ffff",
        3,
    ),
    "Thai, Lao, Burmese or Khmer": (
        "\u0e01-\u0e4e\u0e81-\u0ece\u1000-\u104f\u1780-\u17d3",
        8,
    ),
}
_SAMPLES, _SAMPLE_LENGTH = 100, 2000  # documents of a source, characters of each

_log = logging.getLogger(__name__)


def train(
    config: TokenizerConfig, sources: Sequence[Documents], *, recipe: str
) -> tokenizer.HFTokenizer:
    """Build the vocabulary that a config describes from all of the text.

    Equally frequent words are in alphabetical order, so the order of the documents does
    not matter. The vocabulary may be smaller than `config.vocab_size`.

    Raises:
      ConfigError: a file cannot be used, no word is left, or the text has no spaces
        between words.
    """
    _check_script(sources)
    core = _count_words(config, sources)
    words, num_special = core.get_vocab(), len(_special_words(config))
    if len(words) <= num_special:
        raise ConfigError(
            f"config.tokenizer.vocab_size = {config.vocab_size}: leaves no word of the "
            f"text (config.tokenizer.min_count = {config.min_count})"
        )
    vector_words = list(_vector_words(core, config, words)) if config.path else []
    vocabulary = words | {w: len(words) + i for i, w in enumerate(vector_words)}
    model = import_tokenizers().models.WordLevel
    core.model = model(vocabulary, unk_token=UNKNOWN)
    _log.info(
        "vocabulary: %s", _describe(len(words) - num_special, len(vector_words), config)
    )
    return tokenizer.HFTokenizer(
        core,
        serialized=core.to_str().encode(),
        special=_special_ids(config, vocabulary),
        files={},
        recipe=recipe,
    )


def _check_script(sources: Sequence[Documents]) -> None:
    """Raise if most of the text is in scripts that leave no spaces between words.

    A text whose words have been separated is short runs of such letters.
    """
    text = "\n".join(
        documents[i][:_SAMPLE_LENGTH]
        for documents in sources
        for i in range(0, len(documents), 1 + len(documents) // _SAMPLES)
    )
    num_letters = sum(map(str.isalpha, text))
    for script, (letters, longest) in _WITHOUT_SPACES.items():
        runs = re.findall(f"[{letters}]+", text)
        size = sum(map(len, runs))
        if size > num_letters / 2 and size > longest * len(runs):
            raise ConfigError(
                f"config.tokenizer.kind = 'words': the text is in {script}, without "
                "spaces between words; use 'sentencepiece', or a text whose words a "
                "segmenter has separated with spaces"
            )


def _count_words(config: TokenizerConfig, sources: Sequence[Documents]) -> Any:
    """Return a `tokenizers.Tokenizer` with a vocabulary of the words of the text."""
    library = import_tokenizers()
    core = library.Tokenizer(library.models.WordLevel({}, unk_token=UNKNOWN))
    if config.lowercase:
        core.normalizer = library.normalizers.Lowercase()
    core.pre_tokenizer = _build_pre_tokenizer(library, config)
    trainer = library.trainers.WordLevelTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_count,
        special_tokens=_special_words(config),
        show_progress=False,
    )
    texts = (documents[i] for documents in sources for i in range(len(documents)))
    core.train_from_iterator(texts, trainer)
    return core


def files_fingerprint(config: TokenizerConfig) -> list[str]:
    """Return hashes of the files, besides the text, that decide a vocabulary.

    Raises:
      UserError: a file cannot be read.
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


def _build_pre_tokenizer(library: Any, config: TokenizerConfig) -> Any:
    """Return the pre-tokenizer that splits a text into words and drops stop words."""
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


def _vector_words(
    core: Any, config: TokenizerConfig, words: Collection[str]
) -> Iterator[str]:
    """Yield words of the vector file until the vocabulary is full.

    Words that the pre-tokenizer would split or change are left out.
    """
    seen, room = set(words), config.vocab_size - len(words)
    for word in WordVectors(config.path, leaf=_LEAF).words():
        if room <= 0:
            return
        if word not in seen and _is_one_word(core, word):
            seen.add(word)
            room -= 1
            yield word


def _is_one_word(core: Any, word: str) -> bool:
    """Return whether the tokenizer leaves a word as it is."""
    normalizer = core.normalizer
    if normalizer is not None and normalizer.normalize_str(word) != word:
        return False
    return [part for part, _ in core.pre_tokenizer.pre_tokenize_str(word)] == [word]


def _describe(num_words: int, num_more: int, config: TokenizerConfig) -> str:
    more = f" and {num_more:,} of {config.path}" if config.path else ""
    return f"{num_words:,} words of the text{more}; at most {config.vocab_size:,} ids"
