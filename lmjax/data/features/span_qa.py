"""Features of extractive question answering: a question, a context, answers in it.

B rows, T tokens in a row.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from lmjax.config.data import FieldsConfig
from lmjax.config.experiment import Config
from lmjax.config.task import SpanQAConfig
from lmjax.data.features.features import (
    FIELDS,
    Columns,
    Features,
    Row,
    pad_token_rows,
    pooling_end,
    wrapper_ids,
)
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
    """A question, the text that may answer it, and all correct answers."""

    text: str
    context: str
    answers: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanQAFeatures(Features):
    """Question and context between special tokens, as in BERT (Devlin et al. 2019).

    A long context becomes several rows, windows that overlap. One special token stands
    for no answer: the first, or for a model that reads from left to right the last,
    which alone has seen question and text (as in XLNet, Yang et al. 2019).

    Columns: `tokens`, `context` (start and stop of the window among them), `span` (the
    first and the last token of the answer; twice the token for no answer where the
    window does not contain all of it), `offsets` (of each token of the window, its
    first character in the context and the one after it).
    """

    fields: FieldsConfig
    task: SpanQAConfig
    length: int
    none_at: Literal["first", "last"] = "first"

    prediction_columns = ("offsets",)
    metric_names = ("exact_match", "f1")

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Return the features of a config."""
        task = config.task
        assert isinstance(task, SpanQAConfig)
        return cls(
            fields=config.data.fields,
            task=task,
            length=config.data.length,
            none_at=pooling_end(config),
        )

    def texts(self, example: Example) -> list[str]:
        """Return the question and the context."""
        return [
            fields.get_text(
                example, getattr(self.fields, name), leaf=f"{FIELDS}.{name}"
            )
            for name in ("question", "context")
        ]

    def parse(self, example: Example, *, labelled: bool = True) -> Question:
        """Return the question, the context, and the answers if it is labelled."""
        question, context = self.texts(example)
        if not labelled:
            return Question(question, context, ())
        name, leaf = self.fields.answers, f"{FIELDS}.answers"
        answers = get_answers(example, name, context=context, leaf=leaf)
        if not answers and not self.task.no_answer:
            raise ConfigError("has no answer (config.task.no_answer=True allows that)")
        return Question(question, context, answers)

    def encode(
        self, parsed: Sequence[Question], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return a row for each window of each context; equal texts are encoded once.

        Raises:
          ConfigError: the tokenizer has no special token to stand for no answer.
        """
        pairs = ((question.text, question.context) for question in parsed)
        texts = [*dict.fromkeys(text for pair in pairs for text in pair)]
        encoded = dict(zip(texts, _encode_texts(texts, tokenizer), strict=True))
        return [
            [*self._rows(q, encoded[q.text].ids, encoded[q.context], tokenizer)]
            for q in parsed
        ]

    def batch(self, rows: Sequence[Columns | None], *, length: int) -> "HostBatch":
        """Return tokens, segments, positions, token_types and context, each (B, T).

        And starts, ends, no_answer (the token that stands for none) and weights (B,).
        Token types are 1 from the window to the end; `context` is 1 within the window.
        """
        batch = pad_token_rows(rows, length=length)
        index_T = np.arange(length)
        for name in ("token_types", "context"):
            batch[name] = np.zeros_like(batch["tokens"])
        for name in ("starts", "ends", "no_answer"):
            batch[name] = np.zeros(len(rows), np.int32)
        batch["weights"] = np.zeros(len(rows), np.float32)
        for b, row in enumerate(rows):
            if row is not None:
                first, stop = row["context"]
                real_T = batch["segments"][b] > 0
                batch["token_types"][b] = real_T & (index_T >= first)
                batch["context"][b] = (index_T >= first) & (index_T < stop)
                batch["starts"][b], batch["ends"][b] = row["span"]
                batch["no_answer"][b] = self._no_answer_token(len(row["tokens"]))
                batch["weights"][b] = 1.0
        return batch

    def example_from_text(self, text: str) -> Example:
        """Return the example of a question alone, which lacks its context."""
        return {self.fields.question: text}

    def postprocess(
        self,
        parsed: Question,
        rows: Sequence[Columns],
        outputs: Sequence[Mapping[str, np.ndarray]],
    ) -> dict[str, Any]:
        """Return the best span of all windows: its text, first character and score.

        Where there may be no answer, the text is "" if the lowest score of no answer in
        any window exceeds that of the best span by more than the threshold.
        """
        row, best = max(zip(rows, outputs, strict=True), key=lambda x: x[1]["score"])
        offsets = row["offsets"].reshape(-1, 2)
        first, last = offsets[[best["start"], best["end"]] - row["context"][0]]
        text = parsed.context[first[0] : last[1]]
        start = int(first[0]) + len(text) - len(text.lstrip())
        score = float(best["score"])
        span = {"answer": text.strip(), "start": start, "score": round(score, 4)}
        if not self.task.no_answer:
            return span
        no_answer = min(float(output["no_answer"]) for output in outputs)
        if no_answer - score > self.task.no_answer_threshold:
            span |= {"answer": "", "start": None}
        return {**span, "no_answer_score": round(no_answer, 4)}

    def compute_metrics(
        self, predictions: Sequence[Mapping[str, Any]], parsed: Sequence[Question]
    ) -> dict[str, float]:
        """Return SQuAD's exact match and F1, means over the questions in 0..1."""
        return squad.score_answers(
            [prediction["answer"] for prediction in predictions],
            [[answer.text for answer in question.answers] for question in parsed],
            language=self.task.language,
        )

    def identity(self) -> Any:
        """Return the fields, the length, and how windows are cut and trained on."""
        names = self.fields.question, self.fields.context, self.fields.answers
        task = self.task
        cuts = self.length, task.max_question_tokens, task.stride
        trained = task.negative_windows, task.no_answer
        return ["span_qa", *names, *cuts, *trained, self.none_at]

    def _no_answer_token(self, size: int) -> int:
        """Return the index of the token that stands for no answer, of a row's size."""
        return 0 if self.none_at == "first" else size - 1

    def _rows(
        self,
        question: Question,
        question_ids: np.ndarray,
        context: Encoding,
        tokenizer: Tokenizer,
    ) -> Iterator[Row]:
        prefix, between, suffix = self._wrapper_ids(tokenizer)
        head = [*prefix, *question_ids[: self.task.max_question_tokens], *between]
        windows = self._windows(len(context.ids), self.length - len(head) - len(suffix))
        answered, no_span = bool(question.answers), (0, -1)
        span = (
            find_answer_tokens(question.answers, context.offsets)
            if answered
            else no_span
        )
        contains = [w.start <= span[0] <= span[1] < w.stop for w in windows]
        lost = answered and not any(contains)  # no window has all of the answer
        cut = lost or len(question_ids) > self.task.max_question_tokens
        negatives = not lost and (self.task.negative_windows or not answered)
        for window, positive in zip(windows, contains, strict=True):
            ids = context.ids[window.start : window.stop]
            parts = [np.asarray(part, np.int32) for part in (head, ids, suffix)]
            tokens = np.concatenate(parts)
            shifted = np.array(span) + len(head) - window.start
            no_answer = np.array([self._no_answer_token(len(tokens))] * 2)
            columns = {
                "tokens": tokens,
                "context": np.array([len(head), len(head) + len(ids)], np.int32),
                "span": shifted if positive else no_answer,
                "offsets": context.offsets[window.start : window.stop].ravel(),
            }
            yield Row(
                columns=columns,
                size=len(tokens),
                truncated=cut,
                used_for_training=positive or negatives,
            )

    def _wrapper_ids(
        self, tokenizer: Tokenizer
    ) -> tuple[list[int], list[int], list[int]]:
        """Return the ids before, between and after the texts.

        Raises:
          ConfigError: there is no token to stand for no answer.
        """
        prefix, between, suffix = wrapper_ids(tokenizer)
        if self.none_at == "last":
            suffix = suffix or between
        if self.none_at == "last" and not suffix:
            raise ConfigError(
                "config.task.kind = 'span_qa': the tokenizer has no end of text, which "
                "stands for no answer for a model that reads from left to right"
            )
        return prefix, between, suffix

    def _windows(self, num_tokens: int, room: int) -> list[range]:
        """Return the tokens of each window; together they contain the whole context.

        Any span of up to `room - stride` tokens is whole in one of them.
        """
        assert room > self.task.stride, "checked by SpanQAConfig"
        count = 1 + -(-max(num_tokens - room, 0) // self.task.stride)
        firsts = (i * self.task.stride for i in range(count))
        return [range(first, min(first + room, num_tokens)) for first in firsts]


def _encode_texts(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Encoding]:
    """Yield the tokens of texts, at least one of each."""
    for text, encoded in zip(texts, tokenizer.encode_with_offsets(texts), strict=True):
        if len(encoded.ids):
            yield encoded
        else:
            ids = tokenizer.encode("?")
            yield Encoding(ids, np.array([[0, len(text)]] * len(ids), np.int32))
