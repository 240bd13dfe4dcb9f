"""Examples of extractive question answering: a question, a context, and answers in it.

B rows, T tokens in a row.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lmjax.config import ConfigError, FieldsConfig, SpanQAConfig
from lmjax.data import answer_metrics, fields
from lmjax.data.examples import Example
from lmjax.data.features import FIELDS, Columns, Row, around, token_rows
from lmjax.data.offsets import Encoded
from lmjax.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lmjax.types import HostBatch


class Answer(NamedTuple):
    """A part of the context."""

    text: str
    start: int  # its first character


@dataclasses.dataclass(frozen=True)
class Question:
    """A question, the text that may answer it, and all answers that are right."""

    text: str
    context: str
    answers: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanQA:
    """Question and context between special tokens, as in BERT (Devlin et al. 2019).

    A long context gives several rows, windows that overlap. A row: `tokens`, `context`
    (where the window begins and ends), `span` (the first and the last token of the
    answer, or 0 and 0 where the window has not all of it).
    """

    fields: FieldsConfig
    task: SpanQAConfig
    length: int

    judges = ("exact_match", "f1")

    def texts(self, example: Example) -> list[str]:
        """Return the question and the context."""
        return [
            fields.text_of(example, getattr(self.fields, name), leaf=f"{FIELDS}.{name}")
            for name in ("question", "context")
        ]

    def read(self, example: Example, *, labelled: bool = True) -> Question:
        """Return the question, the context, and the answers if they are known."""
        question, context = self.texts(example)
        answers = self._answers(example, context) if labelled else ()
        return Question(question, context, answers)

    def encode(
        self, readings: Sequence[Question], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return a row for each window of each context; of each text once encoded."""
        pairs = ((reading.text, reading.context) for reading in readings)
        texts = [*dict.fromkeys(text for pair in pairs for text in pair)]
        found = dict(zip(texts, _encoded(texts, tokenizer), strict=True))
        return [
            [*self._rows(r, found[r.text].ids, found[r.context], tokenizer)]
            for r in readings
        ]

    def batch(self, rows: Sequence[Columns | None], *, length: int) -> "HostBatch":
        """Return what is (B, T): tokens, segments, positions, token_types, context.

        And starts, ends, weights (B,). Types are 1 from the window on; `context` is so
        only within it.
        """
        batch = token_rows(rows, length=length)
        place_T = np.arange(length)
        for name in ("token_types", "context"):
            batch[name] = np.zeros_like(batch["tokens"])
        for name in ("starts", "ends"):
            batch[name] = np.zeros(len(rows), np.int32)
        batch["weights"] = np.zeros(len(rows), np.float32)
        for b, row in enumerate(rows):
            if row is not None:
                first, stop = row["context"]
                real_T = batch["segments"][b] > 0
                batch["token_types"][b] = real_T & (place_T >= first)
                batch["context"][b] = (place_T >= first) & (place_T < stop)
                batch["starts"][b], batch["ends"][b] = row["span"]
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
        scores = answer_metrics.exact_match, answer_metrics.f1
        return {
            name: sum(answer_metrics.best(score, *pair) for pair in pairs) / len(pairs)
            for name, score in zip(self.judges, scores, strict=True)
        }

    def identity(self) -> Any:
        """Return the fields, the length, and how windows are cut and chosen."""
        names = self.fields.question, self.fields.context, self.fields.answers
        task = self.task
        cuts = self.length, task.max_question_tokens, task.stride
        return ["span_qa", *names, *cuts, task.negative_windows, task.no_answer]

    def _answers(self, example: Example, context: str) -> tuple[Answer, ...]:
        """Return the answers, none of a question that says it is impossible."""
        name = self.fields.answers
        value = fields.part_of(example, name, leaf=f"{FIELDS}.answers")
        answers = tuple(_answer(a, context) for a in _listed(value, name=name))
        if example.get("is_impossible") is True:
            answers = ()
        if not answers and not self.task.no_answer:
            raise ConfigError("has no answer (config.task.no_answer=True reads it so)")
        return answers

    def _rows(
        self,
        reading: Question,
        question: np.ndarray,
        context: Encoded,
        tokenizer: Tokenizer,
    ) -> Iterator[Row]:
        prefix, between, suffix = around(tokenizer)
        head = [*prefix, *question[: self.task.max_question_tokens], *between]
        windows = self._windows(len(context.ids), self.length - len(head) - len(suffix))
        span = _tokens_of(reading, context.offsets)
        inside = [span and w.start <= span[0] and span[1] < w.stop for w in windows]
        cut = len(question) > self.task.max_question_tokens
        cut |= bool(reading.answers) and not any(inside)
        for window, holds in zip(windows, inside, strict=True):
            ids = context.ids[window.start : window.stop]
            parts = [np.asarray(part, np.int32) for part in (head, ids, suffix)]
            place = np.array(span or (0, 0)) + len(head) - window.start
            columns = {
                "tokens": np.concatenate(parts),
                "context": np.array([len(head), len(head) + len(ids)], np.int32),
                "span": place if holds else np.zeros(2, np.int32),
            }
            yield Row(
                columns=columns,
                size=len(columns["tokens"]),
                truncated=cut,
                learnt=bool(holds or self.task.negative_windows or not reading.answers),
                offsets=context.offsets[window.start : window.stop],
            )

    def _windows(self, num_tokens: int, room: int) -> list[range]:
        """Return which tokens of a context each window holds; together they hold all.

        Each part of up to `room - stride` tokens is whole in one of them.
        """
        assert room > self.task.stride, "config says so: task_config.MOST_SPECIAL"
        count = 1 + -(-max(num_tokens - room, 0) // self.task.stride)
        firsts = (i * self.task.stride for i in range(count))
        return [range(first, min(first + room, num_tokens)) for first in firsts]


def _encoded(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """Yield the tokens of texts; one that has none is still given a place."""
    for text, found in zip(texts, tokenizer.encode_with_offsets(texts), strict=True):
        if len(found.ids):
            yield found
        else:
            ids = tokenizer.encode("?")
            yield Encoded(ids, np.array([[0, len(text)]] * len(ids), np.int32))


def _tokens_of(reading: Question, offsets_T2: np.ndarray) -> tuple[int, int] | None:
    """Return the first and the last token of the answer that most people gave."""
    if not reading.answers:
        return None
    answer = max(reading.answers, key=reading.answers.count)
    begin = answer.start + len(answer.text) - len(answer.text.lstrip())
    end = begin + len(answer.text.strip())
    inside_T = (offsets_T2[:, 1] > begin) & (offsets_T2[:, 0] < end)
    (found,) = np.nonzero(inside_T)
    return (int(found[0]), int(found[-1])) if len(found) else None


def _listed(value: Any, *, name: str) -> list[Any]:
    """Return a list of answers; TFDS has lists of their parts instead."""
    if isinstance(value, Mapping):
        columns = [[*value.get(part, ())] for part in ("text", "answer_start")]
        if len(columns[0]) == len(columns[1]):
            pairs = zip(*columns, strict=True)
            value = [{"text": text, "answer_start": start} for text, start in pairs]
    if not isinstance(value, list):
        kind = type(value).__name__
        raise ConfigError(f"{name!r} holds {kind}, not a list of answers")
    return value


def _answer(value: Any, context: str) -> Answer:
    """Return an answer that is where it says it is."""
    parts = value if isinstance(value, Mapping) else {}
    text, start = parts.get("text"), parts.get("answer_start")
    if not isinstance(text, str) or not isinstance(start, int | np.integer):
        raise ConfigError("an answer must have a 'text' and a number 'answer_start'")
    if not text.strip():
        raise ConfigError("an answer is empty")
    if start < 0 or not context.startswith(text, start):
        place = context.find(text)
        hint = f"it is at {place}" if place >= 0 else "nor anywhere else"
        raise ConfigError(
            f"the answer {_short(text)!r} is not at answer_start = {start} of the "
            f"context ({hint})"
        )
    return Answer(text, int(start))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
