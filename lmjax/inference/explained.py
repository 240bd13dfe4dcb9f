"""What is explained: one prediction, as a row that is labelled with it.

B batch, T length, S source length.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lmjax import tasks
from lmjax.config.experiment import Config
from lmjax.config.model import ModelConfig
from lmjax.config.text_task import CausalLMConfig
from lmjax.data.features.classify import LabelledText
from lmjax.data.features.features import Features, Row, find_label_id
from lmjax.data.features.span_qa import Question
from lmjax.data.features.tag import Sentence, word_separator
from lmjax.data.features.text_pairs import TextPair
from lmjax.data.formats.answers import Answer
from lmjax.data.tokenizers.offsets import Encoding, concatenate_encodings
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import UserError
from lmjax.generate.prompts import check_sources, pad_sources
from lmjax.generate.score import padded_length
from lmjax.generate.scored_texts import encode_scored
from lmjax.inference.explanation import ExplainedToken
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.tasks.task import Task
from lmjax.types import HostBatch

# Tasks whose predictions for examples are explained; others, as of texts.
EXAMPLE_TASKS = ("classify", "tag", "span_qa", "seq2seq", "prompted_lm")
_SEAM = -1  # between the ids of two texts: no id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    """One row, labelled with the prediction: its loss is minus the log-probability.

    Attributes:
      batch: of one row.
      task: whose loss it is.
      target: the prediction, in words.
      texts: whose tokens are explained.
      tokens: of the texts.
      places: the index of each of the tokens in its row, of the source if there is one.
    """

    batch: HostBatch
    task: Task
    target: str
    texts: tuple[str, ...]
    tokens: tuple[ExplainedToken, ...]
    places: np.ndarray

    @property
    def has_source(self) -> bool:
        """Return whether the tokens are those of a source."""
        return "source" in self.batch


def explain_example(
    config: Config,
    features: Features,
    tokenizer: Tokenizer,
    parsed: Any,
    prediction: dict[str, Any],
    target: Any = None,
) -> Explained:
    """Return a prediction for an example, of a task that reads examples.

    Args:
      config: of the run.
      features: of its task.
      tokenizer: of the model.
      parsed: the example.
      prediction: of the model.
      target: what to explain instead: a label, the index of a word, an answer that is
        in the context, or a text.

    Raises:
      UserError: there is no such label, word or answer.
    """
    labelled, name = _label(features, parsed, prediction, target)
    rows = features.encode([labelled], tokenizer)[0]
    row, word = _choose_row(rows, labelled, target)
    length = padded_length(row.size, limit=max(config.data.length, row.size))
    batch = features.batch([row.columns], length=length)
    if word >= 0:
        kept = np.arange(length) == row.columns["place"][word]
        batch["weights"] = batch["weights"] * kept
    texts, encodings = _encode_texts(features, parsed, tokenizer)
    side = "source" if "source" in batch else "tokens"
    segments = "source_segments" if side == "source" else "segments"
    ids = batch[side][0][batch[segments][0] > 0]
    if "prompt" in row.columns:
        ids = ids[: int(row.columns["prompt"][0])]
    places, tokens = _align(ids, encodings, tokenizer)
    return Explained(
        batch=batch,
        task=tasks.build(config.task),
        target=name,
        texts=texts,
        tokens=tokens,
        places=places,
    )


def explain_text(
    tokenizer: Tokenizer, text: str, target: Any, *, config: ModelConfig
) -> Explained:
    """Return the continuation of a text, or the target of a source.

    Args:
      tokenizer: of the model.
      text: a prompt, or the source of an encoder-decoder.
      target: the text after it, or the ids of its tokens.
      config: of the model.

    Raises:
      UserError: there is no token to explain, or there are too many.
    """
    is_text = isinstance(target, str)
    eos = config.is_encoder_decoder and is_text and tokenizer.eos_id is not None
    prompt: Any = text
    if not is_text and not config.is_encoder_decoder:
        prompt = [*_bos(tokenizer), *map(int, tokenizer.encode(text))]
    encoded = encode_scored(tokenizer, [(prompt, target)], config=config, eos=eos)
    before, after = encoded["texts"][0]
    sources = encoded.get("sources")
    check_sources(sources, config=config, name="text")
    if not before or not after:
        raise UserError(f"text: {text!r} and its target {target!r} have too few tokens")
    size = len(before) + len(after) - 1
    if size > config.longest_text:
        raise UserError(
            f"text: {size} tokens with its target; config.model.max_length = "
            f"{config.max_length}"
        )
    batch = _text_batch(
        before, after, length=padded_length(size, limit=config.longest_text)
    )
    explained = before
    if sources is not None:
        explained = sources[0]
        width = padded_length(len(explained), limit=config.longest_source)
        batch |= pad_sources(sources, shape=(1, width))
    encodings = [*_encode_all(tokenizer, [text])]
    places, tokens = _align(np.asarray(explained), encodings, tokenizer)
    kind = Seq2Seq if config.is_encoder_decoder else tasks.TASKS["causal_lm"]
    return Explained(
        batch=batch,
        task=kind(CausalLMConfig()),
        target=target if is_text else tokenizer.decode(target),
        texts=(text,),
        tokens=tokens,
        places=places,
    )


def _bos(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]


def _text_batch(
    before: Sequence[int], after: Sequence[int], *, length: int
) -> HostBatch:
    """Return one row of a text, whose last tokens alone are targets."""
    ids, size = [*before, *after], len(before) + len(after) - 1
    batch: HostBatch = {
        name: np.zeros((1, length), np.int32)
        for name in ("tokens", "targets", "segments", "positions")
    }
    batch["tokens"][0, :size], batch["targets"][0, :size] = ids[:-1], ids[1:]
    batch["segments"][0, :size], batch["positions"][0, :size] = 1, np.arange(size)
    batch["weights"] = np.zeros((1, length), np.float32)
    batch["weights"][0, len(before) - 1 : size] = 1.0
    return batch


def _label(
    features: Any, parsed: Any, prediction: dict[str, Any], target: Any
) -> tuple[Any, str]:
    """Return an example that is labelled with a prediction, and that in words."""
    replace = dataclasses.replace
    if isinstance(parsed, LabelledText):
        label = prediction["label"] if target is None else _text(target, "a label")
        return replace(parsed, label=find_label_id(label, features.labels)), label
    if isinstance(parsed, Sentence):
        count = len(parsed.words)
        if target is not None and not (isinstance(target, int) and 0 <= target < count):
            raise UserError(
                f"target = {target!r}: must be the index of a word, 0 to {count - 1}"
            )
        tags = prediction["tags"]
        labels = tuple(find_label_id(tag, features.labels) for tag in tags)
        if target is None:
            return replace(parsed, labels=labels), " ".join(tags)
        word = f"{parsed.words[target]}: {tags[target]}"
        return replace(parsed, labels=labels), word
    if isinstance(parsed, Question):
        answer, start = prediction.get("answer"), prediction.get("start")
        if target is not None:
            answer, start = _text(target, "an answer"), parsed.context.find(target)
        if start == -1:
            raise UserError(f"target = {target!r}: is not in the context")
        if not answer:
            return replace(parsed, answers=()), "no answer"
        return replace(parsed, answers=(Answer(answer, int(start or 0)),)), answer
    if not isinstance(parsed, TextPair):
        raise UserError("explain: takes no chats; give their text to a causal_lm")
    text = prediction["text"] if target is None else _text(target, "a text")
    return replace(parsed, target=text), text


def _text(target: Any, kind: str) -> str:
    if not isinstance(target, str):
        raise UserError(f"target = {target!r}: must be {kind}")
    return target


def _choose_row(rows: Sequence[Row], parsed: Any, target: Any) -> tuple[Row, int]:
    """Return the row with the target, and of a word its number there, else -1."""
    if isinstance(parsed, Question):
        answered = [r for r in rows if r.columns["span"][0] >= r.columns["context"][0]]
        inside = [r for r in answered if r.columns["span"][1] < r.columns["context"][1]]
        return (inside or rows)[0], -1
    if isinstance(parsed, Sentence) and target is None and len(rows) > 1:
        raise UserError(
            f"target: must be the number of a word: the sentence has {len(rows)} parts "
            "(config.data.length)"
        )
    if not isinstance(parsed, Sentence) or target is None:
        return rows[0], -1
    for row in rows:
        word = target - int(row.columns["first"][0])
        if 0 <= word < len(row.columns["place"]):
            return row, word
    raise UserError(f"target = {target}: the word is in no row (config.data.length)")


def _encode_texts(
    features: Any, parsed: Any, tokenizer: Tokenizer
) -> tuple[tuple[str, ...], list[Encoding]]:
    """Return the texts of an example, and the tokens of each, as rows have them."""
    if isinstance(parsed, Sentence):
        space, begins, at = word_separator(tokenizer), [], 0
        for word in parsed.words:
            begins.append(at)
            at += len(word) + 1
        words = [(space if i else "") + word for i, word in enumerate(parsed.words)]
        shifted = [
            (begin - len(space) * (i > 0), encoding)
            for i, (begin, encoding) in enumerate(
                zip(begins, tokenizer.encode_with_offsets(words), strict=True)
            )
        ]
        return (" ".join(parsed.words),), [concatenate_encodings(shifted)]
    if isinstance(parsed, LabelledText):
        texts = parsed.texts
    elif isinstance(parsed, Question):
        texts = (parsed.text, parsed.context)
    else:
        texts = (features.prompt(parsed),)
    return texts, [*_encode_all(tokenizer, texts)]


def _encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Encoding]:
    yield from tokenizer.encode_with_offsets(list(texts))


def _align(
    ids: np.ndarray, encodings: Sequence[Encoding], tokenizer: Tokenizer
) -> tuple[np.ndarray, tuple[ExplainedToken, ...]]:
    """Return which ids of a row are tokens of the texts, and these.

    A row has special tokens besides, and may have a part of a text only.
    """
    flat: list[int] = []
    origins: list[tuple[int, int]] = []
    for number, encoding in enumerate(encodings):
        flat += [*map(int, encoding.ids), _SEAM]
        origins += [(number, i) for i in range(len(encoding.ids) + 1)]
    matcher = difflib.SequenceMatcher(None, ids.tolist(), flat, autojunk=False)
    places: list[int] = []
    tokens: list[ExplainedToken] = []
    for block in matcher.get_matching_blocks():
        for k in range(block.size):
            number, i = origins[block.b + k]
            start, end = map(int, encodings[number].offsets[i])
            piece = tokenizer.id_to_piece(int(ids[block.a + k]))
            places.append(block.a + k)
            tokens.append(ExplainedToken(piece, start, end, number))
    return np.array(places, np.int32), tuple(tokens)
