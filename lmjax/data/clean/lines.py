"""Rules that leave out lines of a document: those of C4."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from lmjax.data.clean.words import split_words

_ENDS = (".", "!", "?", '"', "”", "。", "！", "？", "」", "』")
_POLICIES = re.compile(
    "terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies",
    re.IGNORECASE,
)


class LineRule(NamedTuple):
    """A test of a line and its limit, 1 where there is none to choose."""

    group: str
    limit: float
    breaks: Callable[[str, float], bool]
    text: str  # which lines are left out


LINE_RULES: Mapping[str, LineRule] = {
    "line_end": LineRule(
        "c4",
        1,
        lambda line, _: not line.endswith(_ENDS) or line.endswith("..."),
        "lines that do not end with a mark that ends a sentence",
    ),
    "min_line_words": LineRule(
        "c4",
        5,
        lambda line, limit: len(split_words(line)) < limit,
        "lines of fewer words",
    ),
    "line_javascript": LineRule(
        "c4", 1, lambda line, _: "javascript" in line.lower(), "lines with javascript"
    ),
    "line_policy": LineRule(
        "c4",
        1,
        lambda line, _: bool(_POLICIES.search(line)),
        "lines about cookies, privacy and terms of use",
    ),
}


def leave_out_lines(
    text: str, limits: Mapping[str, float]
) -> tuple[str, dict[str, list[str]]]:
    """Return a text without the lines that break a rule, and those by the rules.

    Args:
      text: of a document.
      limits: of the rules that are on; those of documents are left out. Blank lines
        stay.
    """
    rules = [(n, LINE_RULES[n].breaks, limits[n]) for n in LINE_RULES if n in limits]
    if not rules:
        return text, {}
    kept, taken = [], dict[str, list[str]]()
    for line in text.split("\n"):
        stripped = line.strip()
        broken = (name for name, breaks, limit in rules if breaks(stripped, limit))
        if stripped and (name := next(broken, "")):
            taken.setdefault(name, []).append(stripped)
        else:
            kept.append(line)
    return "\n".join(kept).strip() if taken else text, taken
