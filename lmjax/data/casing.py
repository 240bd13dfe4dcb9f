"""How words are spelled, where the vocabulary itself is of small letters."""

from lmjax.task_config import CASES

_NONE, _LOWER, _UPPER, _TITLE, _MIXED = range(len(CASES))


def case_of(word: str) -> int:
    """Return which of `CASES` a word is; a single capital begins a word."""
    if word.islower():
        return _LOWER
    if word.isupper() and len(word) > 1:
        return _UPPER
    if word[:1].isupper() and not any(map(str.isupper, word[1:])):
        return _TITLE
    return _MIXED if any(map(str.isupper, word)) else _NONE
