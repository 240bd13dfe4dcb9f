"""What rules took, and what they changed: counts, and the first examples of each."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

_MAX_EXAMPLES = 3  # of a rule
_EXCERPT = 160  # characters


@dataclasses.dataclass(kw_only=True)
class Tally:
    """Counts of documents and bytes.

    Attributes:
      num_documents: that were read.
      num_bytes: of their text.
      taken: by rule: documents, bytes, examples.
      changed: by rule, or kind of personal data: documents, times, examples.
    """

    num_documents: int = 0
    num_bytes: int = 0
    taken: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    changed: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def read(self, num_bytes: int) -> None:
        """Count a document."""
        self.num_documents += 1
        self.num_bytes += num_bytes

    def take(
        self,
        rule: str,
        num_bytes: int,
        *,
        where: Callable[[], str],
        value: float | str,
        text: str,
        **more: Any,
    ) -> None:
        """Count a document that a rule took; `value` is what the rule measured."""
        noted = self.taken.setdefault(
            rule, {"documents": 0, "bytes": 0, "examples": []}
        )
        noted["documents"] += 1
        noted["bytes"] += num_bytes
        if len(noted["examples"]) < _MAX_EXAMPLES:
            example = {"where": where(), "value": value, "text": excerpt(text)}
            noted["examples"].append({**example, **more})

    def change(
        self, rule: str, times: int, *, where: Callable[[], str], text: str
    ) -> None:
        """Count a document that a rule changed."""
        noted = self.changed.setdefault(
            rule, {"documents": 0, "times": 0, "examples": []}
        )
        noted["documents"] += 1
        noted["times"] += times
        if len(noted["examples"]) < _MAX_EXAMPLES:
            noted["examples"].append({"where": where(), "text": text})


def add_up(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of tallies, with the first examples."""
    total = Tally()
    for tally in tallies:
        total.num_documents += tally.num_documents
        total.num_bytes += tally.num_bytes
        for sums, parts in (
            (total.taken, tally.taken),
            (total.changed, tally.changed),
        ):
            for rule, noted in parts.items():
                _add(sums, rule, noted)
    return total


def _add(sums: dict[str, dict[str, Any]], rule: str, noted: dict[str, Any]) -> None:
    own = sums.setdefault(rule, {name: type(v)() for name, v in noted.items()})
    for name, value in noted.items():
        own[name] += value
    own["examples"] = own["examples"][:_MAX_EXAMPLES]


def excerpt(text: str) -> str:
    """Return the beginning of a text in one line."""
    line = " ".join(text[: 4 * _EXCERPT].split())
    return line if len(line) <= _EXCERPT else f"{line[:_EXCERPT]}..."
