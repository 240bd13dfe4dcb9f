"""Propositions in columns: predicates, and the arguments of each in brackets.

As in CoNLL-2005 (Carreras and Marquez 2005) and, with other columns, CoNLL-2012.
"""

import re
from collections.abc import Iterator, Sequence

from lmjax.config import ConfigError

_CELL = re.compile(r"(?:\(([^()*]+))?\*([^()*]*\))?")
_NO_PREDICATE = ("-", "_")


def propositions(
    predicates: Sequence[str], arguments: Sequence[Sequence[str]] | None
) -> Iterator[tuple[int, list[str] | str | None]]:
    """Yield each predicate's word, by its number, and its tags, or what is wrong.

    Args:
      predicates: the predicate at each word, or "-".
      arguments: of each predicate in turn, a column of brackets; None where nobody
        knows them, and there are no tags.

    Raises:
      ConfigError: there are not as many columns as predicates.
    """
    places = [i for i, name in enumerate(predicates) if name not in _NO_PREDICATE]
    if arguments is None:
        yield from ((place, None) for place in places)
        return
    if len(places) != len(arguments):
        raise ConfigError(
            f"has {len(places)} predicates, but {len(arguments)} columns of arguments"
        )
    for place, column in zip(places, arguments, strict=True):
        try:
            yield place, bio(column)
        except ConfigError as error:
            yield place, f"its arguments: {error}"


def bio(column: Sequence[str]) -> list[str]:
    """Return the tags that brackets stand for: B-A0, I-A0, O of (A0*, *), *.

    Raises:
      ConfigError: brackets that are within others, or do not pair.
    """
    tags, inside = [], ""
    for i, cell in enumerate(column):
        found = _CELL.fullmatch(cell)
        if found is None:
            raise ConfigError(f"{cell!r} at token {i} is not as (A0*, *, *) or (A0*)")
        begun, ended = found.groups()
        if begun and inside:
            raise ConfigError(f"{cell!r} at token {i} is within ({inside}*")
        if ended and not (begun or inside):
            raise ConfigError(f"{cell!r} at token {i} ends what has not begun")
        inside = begun or inside
        tags.append(f"B-{begun}" if begun else f"I-{inside}" if inside else "O")
        inside = "" if ended else inside
    if inside:
        raise ConfigError(f"({inside}* does not end")
    return tags
