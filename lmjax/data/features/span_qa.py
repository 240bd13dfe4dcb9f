"""Examples of extractive question answering: a question, a context, and answers in it.

B rows, T tokens in a row.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lmjax.config.data import FieldsConfig
from lmjax.config.task import SpanQAConfig
from lmjax.data.features.features import FIELDS, Columns, Row, around, token_rows
from lmjax.data.formats import fields
from lmjax.data.formats.answers import Answer, find_answer_tokens, get_answers
from lmjax.data.formats.examples import Example
from lmjax.data.tokenizers.offsets import Encoding
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError
from lmjax.metrics import squad

if TYPE_CHECKING:
    from lmjax.types import HostBatch


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, the text that may answer it, and all answers that are right."""

    text: str
    context: str
    answers: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanQA:
    """Question and context between special tokens, as in BERT (Devlin et al. 2019).

    A long context gives several rows, windows that overlap. One special token stands
    for no answer: the first, or of what reads from left to right the last, which alone
    has seen the question and the text (as in XLNet, Yang et al. 2019).

    A row: `tokens`, `context` (where the window begins and ends), `span` (the first and
    the last token of the answer, or twice what stands for none where the window has not
    all of it).
    """

    fields: FieldsConfig
    task: SpanQAConfig
    length: int
    none_at: Literal["first", "last"] = "first"

    judges = ("exact_match", "f1")
    compares_answers = True

    def texts(self, example: Example) -> list[str]:
        """Return the question and the context."""
        return [
            fields.get_text(
                example, getattr(self.fields, name), leaf=f"{FIELDS}.{name}"
            )
            for name in ("question", "context")
        ]

    def read(self, example: Example, *, labelled: bool = True) -> Question:
        """Return the question, the context, and the answers if they are known."""
        question, context = self.texts(example)
        if not labelled:
            return Question(question, context, ())
        name, leaf = self.fields.answers, f"{FIELDS}.answers"
        answers = get_answers(example, name, context=context, leaf=leaf)
        if not answers and not self.task.no_answer:
            raise ConfigError("has no answer (config.task.no_answer=True reads it so)")
        return Question(question, context, answers)

    def encode(
        self, readings: Sequence[Question], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return a row for each window of each context; of each text once encoded.

        Raises:
          ConfigError: the tokenizer has no special token to stand last.
        """
        pairs = ((reading.text, reading.context) for reading in readings)
        texts = [*dict.fromkeys(text for pair in pairs for text in pair)]
        found = dict(zip(texts, _encoded(texts, tokenizer), strict=True))
        return [
            [*self._rows(r, found[r.text].ids, found[r.context], tokenizer)]
            for r in readings
        ]

    def batch(self, rows: Sequence[Columns | None], *, length: int) -> "HostBatch":
        """Return what is (B, T): tokens, segments, positions, token_types, context.

        And starts, ends, no_answer, weights (B,), the last but one of what stands for
        none. Types are 1 from the window on; `context` is so only within it.
        """
        batch = token_rows(rows, length=length)
        place_T = np.arange(length)
        for name in ("token_types", "context"):
            batch[name] = np.zeros_like(batch["tokens"])
        for name in ("starts", "ends", "no_answer"):
            batch[name] = np.zeros(len(rows), np.int32)
        batch["weights"] = np.zeros(len(rows), np.float32)
        for b, row in enumerate(rows):
            if row is not None:
                first, stop = row["context"]
                real_T = batch["segments"][b] > 0
                batch["token_types"][b] = real_T & (place_T >= first)
                batch["context"][b] = (place_T >= first) & (place_T < stop)
                batch["starts"][b], batch["ends"][b] = row["span"]
                batch["no_answer"][b] = self._none(len(row["tokens"]))
                batch["weights"][b] = 1.0
        return batch

    def of_text(self, text: str) -> Example:
        """Return the example of a question alone, which lacks its context."""
        return {self.fields.question: text}

    def answer(
        self,
        reading: Question,
        rows: Sequence[Row],
        outputs: Sequence[Mapping[str, np.ndarray]],
    ) -> dict[str, Any]:
        """Return the best span of all windows: its text, first character and score.

        Where there may be no answer that is "", if the lowest score of none in a window
        is above the best span's by more than the threshold.
        """
        row, best = max(zip(rows, outputs, strict=True), key=lambda x: x[1]["score"])
        assert row.offsets is not None
        here = row.offsets[[best["start"], best["end"]] - row.columns["context"][0]]
        text = reading.context[here[0, 0] : here[1, 1]]
        start = int(here[0, 0]) + len(text) - len(text.lstrip())
        score = float(best["score"])
        found = {"answer": text.strip(), "start": start, "score": round(score, 4)}
        if not self.task.no_answer:
            return found
        none = min(float(output["no_answer"]) for output in outputs)
        if none - score > self.task.no_answer_threshold:
            found |= {"answer": "", "start": None}
        return {**found, "no_answer_score": round(none, 4)}

    def judge(
        self, answers: Sequence[Mapping[str, Any]], readings: Sequence[Question]
    ) -> dict[str, float]:
        """Return SQuAD's exact match and F1, means over the questions in 0..1."""
        pairs = [
            (given["answer"], [answer.text for answer in reading.answers])
            for given, reading in zip(answers, readings, strict=True)
        ]
        scores = squad.exact_match, squad.f1
        return {
            name: sum(squad.best(score, *pair) for pair in pairs) / len(pairs)
            for name, score in zip(self.judges, scores, strict=True)
        }

    def identity(self) -> Any:
        """Return the fields, the length, and how windows are cut and chosen."""
        names = self.fields.question, self.fields.context, self.fields.answers
        task = self.task
        cuts = self.length, task.max_question_tokens, task.stride
        learnt = task.negative_windows, task.no_answer
        return ["span_qa", *names, *cuts, *learnt, self.none_at]

    def _none(self, size: int) -> int:
        """Return which of a row's tokens stands for no answer."""
        return 0 if self.none_at == "first" else size - 1

    def _rows(
        self,
        reading: Question,
        question: np.ndarray,
        context: Encoding,
        tokenizer: Tokenizer,
    ) -> Iterator[Row]:
        prefix, between, suffix = self._around(tokenizer)
        head = [*prefix, *question[: self.task.max_question_tokens], *between]
        windows = self._windows(len(context.ids), self.length - len(head) - len(suffix))
        answered, no_span = bool(reading.answers), (0, -1)
        span = (
            find_answer_tokens(reading.answers, context.offsets)
            if answered
            else no_span
        )
        inside = [w.start <= span[0] <= span[1] < w.stop for w in windows]
        cut = len(question) > self.task.max_question_tokens
        lost = answered and not any(inside)
        cut |= lost
        for window, holds in zip(windows, inside, strict=True):
            ids = context.ids[window.start : window.stop]
            parts = [np.asarray(part, np.int32) for part in (head, ids, suffix)]
            tokens = np.concatenate(parts)
            place = np.array(span) + len(head) - window.start
            columns = {
                "tokens": tokens,
                "context": np.array([len(head), len(head) + len(ids)], np.int32),
                "span": place if holds else np.array([self._none(len(tokens))] * 2),
            }
            yield Row(
                columns=columns,
                size=len(tokens),
                truncated=cut,
                learnt=holds
                or not (lost or (answered and not self.task.negative_windows)),
                offsets=context.offsets[window.start : window.stop],
            )

    def _around(self, tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int]]:
        """Return the ids before, between and after the texts.

        Raises:
          ConfigError: none is left to stand for no answer.
        """
        prefix, between, suffix = around(tokenizer)
        if self.none_at == "last":
            suffix = suffix or between
        if self.none_at == "last" and not suffix:
            raise ConfigError(
                "config.task.kind = 'span_qa': the tokenizer has no end of text, which "
                "stands for no answer in what reads from left to right"
            )
        return prefix, between, suffix

    def _windows(self, num_tokens: int, room: int) -> list[range]:
        """Return which tokens of a context each window holds; together they hold all.

        Each part of up to `room - stride` tokens is whole in one of them.
        """
        assert room > self.task.stride, "config says so: task_rules.MOST_SPECIAL"
        count = 1 + -(-max(num_tokens - room, 0) // self.task.stride)
        firsts = (i * self.task.stride for i in range(count))
        return [range(first, min(first + room, num_tokens)) for first in firsts]


def _encoded(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Encoding]:
    """Yield the tokens of texts; one that has none is still given a place."""
    for text, found in zip(texts, tokenizer.encode_with_offsets(texts), strict=True):
        if len(found.ids):
            yield found
        else:
            ids = tokenizer.encode("?")
            yield Encoding(ids, np.array([[0, len(text)]] * len(ids), np.int32))
