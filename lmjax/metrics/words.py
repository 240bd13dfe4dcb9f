"""Words and languages of texts in any script, for metrics that compare words.

Han, kana, Thai and others are written without spaces: there each character is a word,
as in the evaluation of multilingual question answering (MLQA, Lewis et al. 2020).
"""

import collections
import functools
import re
import unicodedata
from collections.abc import Iterable

# Scripts as Unicode names their characters.
CHINESE = ("CJK", "IDEOGRAPHIC")
KANA = ("HIRAGANA", "KATAKANA")
_SOUTHEAST_ASIAN = ("THAI", "LAO", "KHMER", "MYANMAR", "TAI", "JAVANESE", "BALINESE")
UNSPACED = (*CHINESE, *KANA, "BOPOMOFO", *_SOUTHEAST_ASIAN, "BUGINESE")
# Splitting at spaces leaves these whole; Tibetan has a dot after each syllable.
UNSPLIT = (*UNSPACED, "TIBETAN")
LATIN = "LATIN"

# Of the codes of a language in ISO 639-1 and 639-3, that of a group that metrics treat
# alike.
_LANGUAGES = {
    "en": ("en", "eng"),
    "zh": ("zh", "zho", "chi", "cmn", "yue", "wuu"),
    "ja": ("ja", "jpn"),
    "ko": ("ko", "kor"),
    "th": ("th", "tha"),
    "lo": ("lo", "lao"),
    "km": ("km", "khm"),
    "my": ("my", "mya", "bur"),
    "bo": ("bo", "bod", "tib", "dz", "dzo"),
    "de": ("de", "deu", "ger"),
    "es": ("es", "spa"),
    "vi": ("vi", "vie"),
    "ar": ("ar", "ara", "arb"),
}
_BY_CODE = {code: name for name, codes in _LANGUAGES.items() for code in codes}
_ENGLISH = frozenset(("the", "and", "of", "to", "that", "with"))
_ENGLISH_SHARE = 0.05  # of the words of a text; these six are about 0.15


def find_language(code: str) -> str:
    """Return a language's two letters, of a code such as zh-CN or zho_Hans.

    Other codes than those of the languages that metrics know are returned as they are.
    """
    first = re.split("[-_]", code.lower())[0]
    return _BY_CODE.get(first, first)


def is_known_language(code: str) -> bool:
    """Return whether a text is the code of a language that metrics know."""
    return find_language(code) in _LANGUAGES


@functools.cache
def find_script(character: str) -> str:
    """Return the first word of a character's name in Unicode, such as LATIN or CJK."""
    name = unicodedata.name(character, "")
    return re.split("[ -]", re.sub("^(FULL|HALF)WIDTH ", "", name))[0]


class WordTable(dict[int, str]):
    """For `str.translate`: puts spaces between words, and drops all other characters.

    A word has letters, digits, and the marks that combine with them. Invisible
    characters within it, such as joiners, do not count.
    """

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        kept = " "
        if category == "Cf":
            kept = ""
        elif category[0] in "LMN":
            kept = character
        self[code] = separate(character) if kept == character else kept
        return self[code]


def separate(character: str) -> str:
    """Return a character, between spaces if its script is written without them."""
    return f" {character} " if find_script(character) in UNSPACED else character


_WORDS = WordTable()


def split_words(text: str) -> list[str]:
    """Return the words of a text in small letters."""
    return unicodedata.normalize("NFC", text).lower().translate(_WORDS).split()


def count_scripts(texts: Iterable[str]) -> collections.Counter[str]:
    """Count words by the script of their first letter; numbers do not count."""
    words = (word for text in texts for word in split_words(text))
    letters = (next(filter(str.isalpha, word), "") for word in words)
    return collections.Counter(find_script(letter) for letter in letters if letter)


def are_latin(groups: Iterable[Iterable[str]]) -> list[bool]:
    """Return of each group of texts whether most of its words are in the Latin script.

    Where a group has no letters, the words of all groups decide.
    """
    counts = [*map(count_scripts, groups)]
    all_counts = sum(counts, collections.Counter[str]())
    return [_is_latin(some or all_counts) for some in counts]


def _is_latin(counts: collections.Counter[str]) -> bool:
    return 2 * counts[LATIN] >= counts.total()


def is_english(texts: Iterable[str]) -> bool:
    """Return whether the words in the Latin script can be English.

    They have no accents, or a twentieth of them are the most frequent English words.
    """
    words = [word for text in texts for word in split_words(text)]
    latin = [word for word in words if find_script(word[0]) == LATIN]
    if all(map(str.isascii, latin)):
        return True
    return sum(word in _ENGLISH for word in latin) >= _ENGLISH_SHARE * len(latin)
