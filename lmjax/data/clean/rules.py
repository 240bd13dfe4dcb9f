"""The rules that a document must keep, by name, with their sources and limits.

A rule's name begins with min_ or max_: a document whose measure is below or above the
limit is left out. Rules on lines, which change a document, are in `lines`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lmjax.data.clean import measures
from lmjax.data.clean.measures import Measured


class Rule(NamedTuple):
    """A measure of a document and its limit."""

    group: str  # the set that it is in
    limit: float
    measure: Callable[[Measured], float]
    text: str  # what is measured


# Where the rules of a set, and their limits, are from.
SOURCES = {
    "characters": "of lmjax: text that was not decoded, or is none",
    "gopher": "Rae et al. 2021 (Gopher), section A1.1; for English",
    "gopher_repetition": "Rae et al. 2021 (Gopher), table A1",
    "c4": "Raffel et al. 2020 (T5), section 2.2",
}


def _ngram_rules() -> dict[str, Rule]:
    """Return the rules on n-grams, with the limits of table A1."""
    rules = {}
    for size, limit in ((2, 0.20), (3, 0.18), (4, 0.16)):
        measure = functools.partial(measures.top_ngram, size=size)
        text = f"share of characters in the most frequent {size}-gram of words"
        rules[f"max_top_{size}gram"] = Rule("gopher_repetition", limit, measure, text)
    for size in range(5, 11):
        measure = functools.partial(measures.duplicate_ngrams, size=size)
        text = f"share of characters in {size}-grams that occur more than once"
        limit = (20 - size) / 100
        name = f"max_duplicate_{size}grams"
        rules[name] = Rule("gopher_repetition", limit, measure, text)
    return rules


RULES: Mapping[str, Rule] = {
    "max_control_characters": Rule(
        "characters",
        0.001,
        measures.control_characters,
        "share of control characters and U+FFFD",
    ),
    "max_longest_word": Rule(
        "characters", 1000, measures.longest_word, "characters of the longest word"
    ),
    "min_words": Rule("gopher", 50, lambda d: len(d.words), "words"),
    "max_words": Rule("gopher", 100_000, lambda d: len(d.words), "words"),
    "min_mean_word_length": Rule(
        "gopher", 3, measures.mean_word_length, "mean characters of a word"
    ),
    "max_mean_word_length": Rule(
        "gopher", 10, measures.mean_word_length, "mean characters of a word"
    ),
    "max_hash_ratio": Rule("gopher", 0.1, measures.hash_ratio, "# for each word"),
    "max_ellipsis_ratio": Rule(
        "gopher", 0.1, measures.ellipsis_ratio, "ellipses for each word"
    ),
    "max_bullet_lines": Rule(
        "gopher", 0.9, measures.bullet_lines, "share of lines that begin with a bullet"
    ),
    "max_ellipsis_lines": Rule(
        "gopher", 0.3, measures.ellipsis_lines, "share of lines that end with ..."
    ),
    "min_alphabetic_words": Rule(
        "gopher", 0.8, measures.alphabetic_words, "share of words with a letter"
    ),
    "min_stop_words": Rule(
        "gopher",
        2,
        measures.stop_words,
        "of the, be, to, of, and, that, have, with: how many occur (English alone)",
    ),
    "max_duplicate_lines": Rule(
        "gopher_repetition",
        0.30,
        lambda d: measures.duplicates(d.lines),
        "share of lines that occurred before",
    ),
    "max_duplicate_paragraphs": Rule(
        "gopher_repetition",
        0.30,
        lambda d: measures.duplicates(d.paragraphs),
        "share of paragraphs that occurred before",
    ),
    "max_duplicate_line_characters": Rule(
        "gopher_repetition",
        0.20,
        lambda d: measures.duplicate_characters(d.lines),
        "share of characters in lines that occurred before",
    ),
    "max_duplicate_paragraph_characters": Rule(
        "gopher_repetition",
        0.20,
        lambda d: measures.duplicate_characters(d.paragraphs),
        "share of characters in paragraphs that occurred before",
    ),
    **_ngram_rules(),
    "min_sentences": Rule("c4", 3, measures.sentences, "sentences"),
    "max_curly_brackets": Rule("c4", 0, lambda d: d.text.count("{"), "{ in the text"),
    "max_lorem_ipsum": Rule(
        "c4", 0, lambda d: d.text.lower().count("lorem ipsum"), "lorem ipsum"
    ),
}


def find_broken(
    document: Measured, limits: Mapping[str, float]
) -> tuple[str, float] | None:
    """Return the first rule that a document breaks, and its measure; None: none.

    Args:
      document: a text.
      limits: of the rules that are on; those of `lines` are left out.
    """
    for name, limit in limits.items():
        if rule := RULES.get(name):
            value = rule.measure(document)
            if value > limit if name.startswith("max_") else value < limit:
                return name, float(value)
    return None
