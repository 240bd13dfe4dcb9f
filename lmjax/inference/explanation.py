"""What tokens a prediction rests on, as numbers and as coloured text.

T tokens, R rows of scores.
"""

import dataclasses
import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.text import Text

# Of scores above and below 0, as red, green and blue.
POSITIVE, NEGATIVE = (46, 160, 67), (218, 54, 51)


@dataclasses.dataclass(frozen=True)
class ExplainedToken:
    """A token of a text, and the characters that it covers."""

    piece: str
    start: int
    end: int
    text: int = 0  # which of `Explanation.texts`


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Scores of the tokens of a text for one prediction.

    Attributes:
      method: by which they were computed.
      target: the prediction that is explained.
      value: the log-probability of the target, in nats; for an answer in a text, the
        mean of those of its start and its end.
      texts: one, or both of a pair, or the question and its context.
      tokens: of the texts; special tokens are left out.
      scores: float64 (T,); attention weights and the logit lens have rows, (R, T).
      rows: what each row is, () where there is but one: the tokens of the target, or
        the layers.
      cells: of the logit lens, the most likely token at each place.
      baseline_value: of integrated gradients, the log-probability of the target given
        the baseline. The scores add up to the difference.
    """

    method: str
    target: str
    value: float
    texts: tuple[str, ...]
    tokens: tuple[ExplainedToken, ...]
    scores: np.ndarray
    rows: tuple[str, ...] = ()
    cells: tuple[tuple[str, ...], ...] = ()
    baseline_value: float | None = None

    @property
    def completeness_error(self) -> float | None:
        """Return by how much the sum of integrated gradients is off, relatively."""
        if self.baseline_value is None:
            return None
        change = self.value - self.baseline_value
        return abs(float(self.scores.sum()) - change) / max(abs(change), 1e-6)

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the tokens with the largest scores, whatever their sign."""
        scores_T = self._token_scores()
        best = np.argsort(-np.abs(scores_T), kind="stable")[:count]
        return [(self.tokens[i].piece, float(scores_T[i])) for i in best]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON, with scores of six digits."""
        found: dict[str, Any] = {
            "method": self.method,
            "target": self.target,
            "value": round(self.value, 6),
            "tokens": [
                {"piece": t.piece, "start": t.start, "end": t.end}
                | ({"text": t.text} if len(self.texts) > 1 else {})
                for t in self.tokens
            ],
            "scores": np.round(self.scores, 6).tolist(),
        }
        if self.rows:
            found["rows"] = [*self.rows]
        if self.cells:
            found["cells"] = [[*row] for row in self.cells]
        if self.baseline_value is not None:
            found["baseline_value"] = round(self.baseline_value, 6)
        return found

    def __str__(self) -> str:
        pairs = ", ".join(f"{piece} {score:+.3f}" for piece, score in self.top())
        return f"{self.target} ({self.value:.3f} nats) by {self.method}: {pairs}"

    def __rich__(self) -> "Text":
        """Return the texts, coloured, for rich's `print` and consoles."""
        from rich.text import Text

        shown = Text(f"{self.target}  {self.value:.3f} nats, {self.method}\n")
        for part, weight in self._parts():
            red, green, blue = _shade(weight)
            style = f"black on rgb({red},{green},{blue})" if weight else ""
            shown.append(part, style=style)
        return shown

    def show(self) -> None:
        """Print it in a terminal, coloured."""
        from rich.console import Console

        Console().print(self)

    def to_html(self) -> str:
        """Return HTML that needs nothing else: coloured text, or a table of scores."""
        head = f"<b>{html.escape(self.target)}</b> {self.value:.3f} nats, {self.method}"
        body = self._html_table() if self.rows else self._html_text()
        style = "font-family:sans-serif;line-height:1.8;color:#111;background:#fff"
        return f'<div style="{style};padding:6px"><div>{head}</div>{body}</div>'

    def _repr_html_(self) -> str:
        return self.to_html()

    def _html_text(self) -> str:
        parts = []
        for part, weight in self._parts():
            text = html.escape(part).replace("\n", "<br>")
            parts.append(_colour(text, weight) if weight else text)
        return f'<div style="white-space:pre-wrap">{"".join(parts)}</div>'

    def _html_table(self) -> str:
        shade_RT = self.scores / max(float(np.abs(self.scores).max(initial=0)), 1e-12)
        if self.cells:  # log-probabilities: the likelier, the darker
            shade_RT = np.exp(self.scores)
        pieces = "".join(f"<th>{html.escape(t.piece)}</th>" for t in self.tokens)
        lines = [f"<tr><th></th>{pieces}</tr>"]
        for r, row in enumerate(self.rows):
            cells = "".join(
                _cell(
                    self.cells[r][t] if self.cells else f"{self.scores[r, t]:.2f}",
                    float(shade_RT[r, t]),
                )
                for t in range(len(self.tokens))
            )
            lines.append(f"<tr><th>{html.escape(row)}</th>{cells}</tr>")
        style = "border-collapse:collapse;font-size:85%"
        return f'<table style="{style}">{"".join(lines)}</table>'

    def _token_scores(self) -> np.ndarray:
        return self.scores.mean(axis=0) if self.rows else self.scores

    def _parts(self) -> Iterator[tuple[str, float]]:
        """Yield the texts in parts, each with its score from -1 to 1.

        Tokens that cover the same characters, such as the bytes of one, are added up.
        """
        scores_T = self._token_scores()
        for number, text in enumerate(self.texts):
            spans: dict[tuple[int, int], float] = {}
            for token, score in zip(self.tokens, scores_T, strict=True):
                if token.text == number and token.end > token.start:
                    span = token.start, token.end
                    spans[span] = spans.get(span, 0.0) + float(score)
            largest = max(map(abs, spans.values()), default=0.0) or 1.0
            done = 0
            for (start, end), score in sorted(spans.items()):
                if end <= done:
                    continue
                if start > done:
                    yield text[done:start], 0.0
                yield text[max(start, done) : end], score / largest
                done = end
            rest = text[done:] + ("\n" if number + 1 < len(self.texts) else "")
            if rest:
                yield rest, 0.0


def _shade(weight: float) -> tuple[int, ...]:
    """Return a colour between white and that of the sign of a weight."""
    full, share = (POSITIVE if weight > 0 else NEGATIVE), min(abs(weight), 1.0)
    return tuple(round(255 - share * (255 - part)) for part in full)


def _colour(text: str, weight: float) -> str:
    style = f"background:rgb{_shade(weight)};border-radius:3px"
    return f'<span style="{style}" title="{weight:+.2f}">{text}</span>'


def _cell(text: str, weight: float) -> str:
    style = f"background:rgb{_shade(weight)};padding:1px 4px;text-align:center"
    return f'<td style="{style}">{html.escape(text)}</td>'
