"""What `lmjax clean` is asked to do, checked before any file is read."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from lmjax.data.clean.language import check_languages
from lmjax.data.clean.lines import LINE_RULES, LineRule
from lmjax.data.clean.personal import KINDS
from lmjax.data.clean.rules import RULES, SOURCES, Rule
from lmjax.errors import UserError, nearest

DEFAULT_RULES = ("characters", "gopher", "gopher_repetition")
DUPLICATES = ("near", "exact", "keep")
_ALL: Mapping[str, Rule | LineRule] = {**RULES, **LINE_RULES}
_PATTERN_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The rules that are on, and their limits. See `choose`."""

    limits: Mapping[str, float]
    languages: tuple[str, ...]
    personal: tuple[str, ...]
    patterns: Mapping[str, str]
    ngram: int
    duplicates: str
    similarity: float
    skip_bad: bool


def choose(
    *,
    rules: Sequence[str] = DEFAULT_RULES,
    limits: Sequence[str] = (),
    languages: Sequence[str] = (),
    personal: Sequence[str] = tuple(KINDS),
    patterns: Sequence[str] = (),
    ngram: int = 13,
    duplicates: Literal["near", "exact", "keep"] | str = "near",
    similarity: float = 0.8,
    skip_bad: bool = False,
) -> Settings:
    """Return what is asked for.

    Args:
      rules: sets of rules: characters, gopher, gopher_repetition, c4.
      limits: NAME=NUMBER turns a rule on with a limit, NAME=off turns it off.
      languages: codes of those that stay, such as en; none: all stay.
      personal: kinds of personal data that are replaced.
      patterns: NAME=REGEX of more, replaced by <NAME>.
      ngram: words of an n-gram that marks a document as held out.
      duplicates: near and exact ones are left out, exact ones, or none.
      similarity: of near duplicates, at least: the share of 5-grams that both have.
      skip_bad: documents that cannot be read are left out and counted.

    Raises:
      UserError: one of them is wrong, by the name of its flag.
    """
    if duplicates not in DUPLICATES:
        raise UserError(
            f"--duplicates={duplicates}: must be one of {', '.join(DUPLICATES)}"
        )
    if not 0.3 <= similarity <= 1:
        raise UserError(f"--similarity={similarity}: must be from 0.3 to 1")
    if ngram < 1:
        raise UserError(f"--ngram={ngram}: must be >= 1")
    _check_names("--rules", rules, [*SOURCES])
    _check_names("--personal", personal, [*KINDS])
    if languages:
        check_languages(languages)
    return Settings(
        limits=_choose_limits(rules, limits),
        languages=tuple(languages),
        personal=tuple(personal),
        patterns=dict(map(_parse_pattern, patterns)),
        ngram=ngram,
        duplicates=duplicates,
        similarity=similarity,
        skip_bad=skip_bad,
    )


def _check_names(flag: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise UserError(
                f"{flag}={name}: no such name{nearest(name, known)}; must be among "
                f"{', '.join(known)}, or none"
            )


def _choose_limits(rules: Sequence[str], limits: Sequence[str]) -> dict[str, float]:
    chosen = {n: rule.limit for n, rule in _ALL.items() if rule.group in rules}
    for limit in limits:
        name, equals, value = limit.partition("=")
        if name not in _ALL:
            raise UserError(
                f"--limit={limit}: no such rule{nearest(name, [*_ALL])}; must be one "
                f"of {', '.join(_ALL)}"
            )
        if value == "off":
            chosen.pop(name, None)
            continue
        try:
            chosen[name] = float(value) if equals else _ALL[name].limit
        except ValueError as error:
            raise UserError(f"--limit={limit}: must be a number, or off") from error
    return {name: chosen[name] for name in _ALL if name in chosen}


def _parse_pattern(pattern: str) -> tuple[str, str]:
    name, _, regex = pattern.partition("=")
    if not _PATTERN_NAME.fullmatch(name) or not regex or name in KINDS:
        raise UserError(
            f"--pattern={pattern}: must be NAME=REGEX, with a name of its own in lower "
            "case, as in ticket='TCK-[0-9]+'"
        )
    try:
        re.compile(regex)
    except re.error as error:
        raise UserError(f"--pattern={pattern}: not a pattern: {error}") from error
    return name, regex
