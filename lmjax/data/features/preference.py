"""Features of preferences: completions that people chose, rejected, liked or not.

B rows, T tokens in a row.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from lmjax.config.data import FieldsConfig
from lmjax.config.experiment import Config
from lmjax.config.preference import PreferenceConfig
from lmjax.data.features.chat import cut_start, find_borders, mark_targets
from lmjax.data.features.features import FIELDS, Columns, Features, Row
from lmjax.data.features.prompted_lm import make_prompted_batch
from lmjax.data.formats import fields
from lmjax.data.formats.chats import Messages, parse_messages
from lmjax.data.formats.examples import Example
from lmjax.data.tokenizers.chat_template import encode_rendered, find_template
from lmjax.data.tokenizers.continuation import encode_continuations
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError, UserError

if TYPE_CHECKING:
    from lmjax.types import HostBatch

_ROWS_VERSION = 2  # part of the fingerprint: to be raised when rows change
_REJECTED = "rejected_"
_LABELS = {True: 1, False: 0, "true": 1, "false": 0, "1": 1, "0": 0}  # also 1 and 0
_Text = str | Messages


class _Pair(NamedTuple):
    """The tokens of a prompt and of a completion, and which of the latter are learnt.

    A template may write some within a turn that the assistant does not.
    """

    prompt: np.ndarray
    target: np.ndarray
    is_learnt: np.ndarray
    truncated: bool = False


class Preferred(NamedTuple):
    """A prompt and its completions; KTO's only one is there twice."""

    prompt: _Text
    chosen: _Text
    rejected: _Text
    is_desirable: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceFeatures(Features):
    """A prompt with either completion, each in a row; all are texts, or messages.

    A prompt that is too long is cut at the start, a completion at the end, as in
    `PromptedLMFeatures`. KTO's second row has the completion of another prompt: that of
    the nearest example before, in a circle; where there is none, it is not trained on.

    Columns: `tokens`, `prompt` (as in `PromptedLMFeatures`, for the parts of a
    completion), the same with "rejected_" before their names; `is_desirable`.
    """

    fields: FieldsConfig
    loss: str
    chat_template: str
    length: int
    target_length: int

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Return the features of a config."""
        task = config.task
        assert isinstance(task, PreferenceConfig)
        return cls(
            fields=config.data.fields,
            loss=task.loss,
            chat_template=config.tokenizer.chat_template,
            length=config.data.length,
            target_length=config.data.target_length,
        )

    def texts(self, example: Example) -> list[str]:
        """Return the prompt and the completions."""
        parsed = self.parse(example)
        texts = [parsed.prompt, parsed.chosen, parsed.rejected]
        return [text for part in texts for text in _list_texts(part)]

    def parse(self, example: Example, *, labelled: bool = True) -> Preferred:
        """Return the prompt and its completions."""
        if self.loss == "kto":
            prompt, completion = self._completions(example, ("completion",))
            label = self._label(example) if labelled else True
            return Preferred(prompt, completion, completion, label)
        prompt, chosen, rejected = self._completions(example, ("chosen", "rejected"))
        if chosen == rejected:
            names = self.fields.chosen, self.fields.rejected
            raise UserError(f"{names[0]!r} and {names[1]!r} are the same")
        return Preferred(prompt, chosen, rejected)

    def encode(
        self, parsed: Sequence[Preferred], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return a row for each; of KTO the rows also depend on their order."""
        first = [(p.prompt, p.chosen) for p in parsed]
        second = [(p.prompt, p.rejected) for p in parsed]
        is_whole = [True] * len(parsed)
        if self.loss == "kto":
            others = _find_others(parsed)
            is_whole = [other is not None for other in others]
            second = [
                (p.prompt, p.chosen if other is None else parsed[other].chosen)
                for p, other in zip(parsed, others, strict=True)
            ]
        encoded = self._encode_pairs([*first, *second], tokenizer)
        pairs = zip(encoded[: len(parsed)], encoded[len(parsed) :], strict=True)
        return [
            [self._row(one, other, p.is_desirable, is_whole=whole)]
            for p, (one, other), whole in zip(parsed, pairs, is_whole, strict=True)
        ]

    def batch(self, rows: Sequence[Columns | None], *, length: int) -> "HostBatch":
        """Return the arrays of both completions, each (B, T); for KTO their labels."""
        groups = [[] if row is None else [row] for row in rows]
        others = [[_second(row) for row in group] for group in groups]
        batch = make_prompted_batch(groups, length=length)
        second = make_prompted_batch(others, length=length)
        batch |= {_REJECTED + name: array for name, array in second.items()}
        if self.loss == "kto":
            labels = [int(row["is_desirable"][0]) if row else 0 for row in rows]
            batch["is_desirable"] = np.array(labels, np.float32)
        return batch

    def example_from_text(self, text: str) -> Example:
        """Refuse: a text alone is no example.

        Raises:
          ConfigError: always.
        """
        raise ConfigError("config.task.kind = 'preference': a text has no completions")

    def postprocess(
        self,
        parsed: Preferred,
        rows: Sequence[Columns],
        outputs: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Return the log-probabilities in nats, and which completion has the higher."""
        one, other = (float(x) for x in outputs[0]["log_probs"])
        if self.loss == "kto":
            return {"log_prob": one}
        preferred = "chosen" if one > other else "rejected"
        log_probs = {"chosen_log_prob": one, "rejected_log_prob": other}
        return {"preferred": preferred, **log_probs}

    def identity(self) -> Any:
        """Return the fields, the kind of the loss, the template and the lengths."""
        f = self.fields
        names = f.prompt, f.chosen, f.rejected, f.completion, f.label
        kind = "single" if self.loss == "kto" else "pairs"
        sizes = self.length, self.target_length
        version = ["Preference", _ROWS_VERSION]
        return [*version, *names, kind, self.chat_template, *sizes]

    def tokenizer_identity(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """Return the text of the template, if there is one."""
        try:
            return (find_template(tokenizer, self.chat_template).text,)
        except ConfigError:  # examples of messages will say so
            return ()

    def _label(self, example: Example) -> bool:
        name = self.fields.label
        value = fields.get_field(example, name, leaf=f"{FIELDS}.label")
        value = value.lower() if isinstance(value, str) else value
        if isinstance(value, float | list | Mapping) or value not in _LABELS:
            raise UserError(f"{name!r} = {value!r}: must be true or false")
        return bool(_LABELS[value])

    def _completions(self, example: Example, leaves: Sequence[str]) -> list[_Text]:
        """Return the prompt and the completions of an example, all of one kind."""
        names = [getattr(self.fields, leaf) for leaf in leaves]
        values = [
            fields.get_field(example, name, leaf=f"{FIELDS}.{leaf}")
            for name, leaf in zip(names, leaves, strict=True)
        ]
        prompt_name = self.fields.prompt
        are_chats = all(isinstance(value, list) for value in values)
        given = example.get(prompt_name)
        if are_chats and (given is None or any(len(value) > 1 for value in values)):
            # whole chats, which begin alike
            prompt, chats = _split_prompt(self._parse_all(names, values))
            if given is not None and not _ends_with(prompt, given, name=prompt_name):
                raise UserError(
                    f"{' and '.join(map(repr, names))} must begin alike, and with "
                    f"{prompt_name!r}, if they are whole chats"
                )
        else:
            prompt = fields.get_field(example, prompt_name, leaf=f"{FIELDS}.prompt")
            names, values = [prompt_name, *names], [prompt, *values]
            if {*map(type, values)} == {str}:
                return [
                    fields.get_text(example, name, leaf=f"{FIELDS}.{name}")
                    for name in names
                ]
            prompt, *chats = self._parse_all(names, values)
        for name, chat in zip(names[-len(chats) :], chats, strict=True):
            if [message["role"] for message in chat] != ["assistant"]:
                raise UserError(
                    f"{name!r} must be one turn of the assistant after the prompt"
                )
        if not prompt or prompt[-1]["role"] == "assistant":
            raise UserError(f"{prompt_name!r} has no last turn to answer")
        return [prompt, *chats]

    def _parse_all(self, names: Sequence[str], values: Sequence[Any]) -> list[Messages]:
        kinds = {type(value).__name__ for value in values}
        if str in map(type, values):
            raise UserError(
                f"{', '.join(map(repr, names))} hold {' and '.join(sorted(kinds))}: "
                "all must be texts, or all lists of messages"
            )
        pairs = zip(names, values, strict=True)
        return [parse_messages(value, name=name) for name, value in pairs]

    def _encode_pairs(
        self, pairs: Sequence[tuple[_Text, _Text]], tokenizer: Tokenizer
    ) -> list[_Pair]:
        """Return the tokens of each prompt and completion, with their ends."""
        are_texts = [isinstance(prompt, str) for prompt, _ in pairs]
        texts: Any = [p for p, is_text in zip(pairs, are_texts, strict=True) if is_text]
        chats: Any = [
            p for p, is_text in zip(pairs, are_texts, strict=True) if not is_text
        ]
        found = {
            True: iter(self._encode_texts(texts, tokenizer) if texts else []),
            False: iter(self._encode_chats(chats, tokenizer) if chats else []),
        }
        return [next(found[is_text]) for is_text in are_texts]

    def _encode_texts(
        self, pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer
    ) -> Iterator[_Pair]:
        if tokenizer.eos_id is None:
            raise ConfigError("config.tokenizer: has no end of text to end a target")
        bos, eos = not_none(tokenizer.bos_id), not_none(tokenizer.eos_id)
        encoded = encode_continuations(tokenizer, pairs, keep_context=True)
        for prompt, completion in encoded:
            start = [*bos, *prompt.tolist()] or eos  # there must be one to continue
            target = np.append(completion, eos).astype(np.int32)
            is_learnt = np.ones(len(target), bool)
            pair = _Pair(np.array(start, np.int32), target, is_learnt)
            yield self._cut(pair, tokenizer)

    def _encode_chats(
        self, pairs: Sequence[tuple[Messages, Messages]], tokenizer: Tokenizer
    ) -> Iterator[_Pair]:
        template = find_template(tokenizer, self.chat_template)
        texts, targets = [], []
        for prompt, completion in pairs:
            chat = [*prompt, *completion]
            text, spans = template.render_with_spans(chat)
            texts.append(text)
            targets.append(template.turn_spans((text, spans), chat, len(prompt)))
            if not targets[-1]:
                raise UserError(f"{template.name} writes nothing for a completion")
        encodings = encode_rendered(template, tokenizer, texts)
        for encoding, spans in zip(encodings, targets, strict=True):
            is_target = mark_targets(encoding, spans)
            borders = find_borders(is_target) if is_target.any() else [len(is_target)]
            first, stop = int(borders[0]), int(borders[-1])
            ids = encoding.ids
            pair = _Pair(ids[:first], ids[first:stop], is_target[first:stop])
            yield self._cut(pair, tokenizer)

    def _cut(self, pair: _Pair, tokenizer: Tokenizer) -> _Pair:
        """Return a pair without the start of its prompt and the end of its target.

        The mark of the beginning stays.
        """
        room = self.length - self.target_length
        is_long = len(pair.prompt) > room or len(pair.target) > self.target_length
        return _Pair(
            cut_start(pair.prompt, room, bos_id=tokenizer.bos_id),
            pair.target[: self.target_length],
            pair.is_learnt[: self.target_length],
            truncated=is_long,
        )

    def _row(
        self, one: _Pair, other: _Pair, is_desirable: bool, *, is_whole: bool
    ) -> Row:
        columns = {
            **_columns(one),
            **{_REJECTED + name: x for name, x in _columns(other).items()},
            "is_desirable": np.array([is_desirable], np.int32),
        }
        longest = max(len(columns["tokens"]), len(columns["rejected_tokens"]))
        has_targets = bool(one.is_learnt.any() and other.is_learnt.any())
        return Row(
            columns=columns,
            size=longest - 1,
            truncated=one.truncated or other.truncated,
            used_for_training=has_targets and is_whole,
        )


def _columns(pair: _Pair) -> dict[str, np.ndarray]:
    size = len(pair.prompt)
    borders = size + find_borders(pair.is_learnt)
    if not len(borders):
        borders = np.array([size, size], np.int32)
    tokens = np.concatenate([pair.prompt, pair.target]).astype(np.int32)
    return {"tokens": tokens[: borders[-1]], "prompt": borders[:-1]}


def _second(row: Columns) -> dict[str, np.ndarray]:
    return {name: row[_REJECTED + name] for name in ("tokens", "prompt")}


def _list_texts(part: _Text) -> list[str]:
    if isinstance(part, str):
        return [part]
    return [str(message.get("content", "")) for message in part]


def _find_others(parsed: Sequence[Preferred]) -> list[int | None]:
    """Return the nearest example before each that has another prompt, in a circle.

    Only like goes with like: a prompt of messages, and an answer of one.
    """
    found: list[int | None] = [None] * len(parsed)
    for kind in (str, tuple):
        group = [i for i, p in enumerate(parsed) if isinstance(p.prompt, kind)]
        for i, before in zip(group * 2, (group[-1:] + group * 2), strict=False):
            is_same = parsed[i].prompt == parsed[before].prompt
            found[i] = found[before] if is_same else before
    return found


def _ends_with(chat: Messages, prompt: Any, *, name: str) -> bool:
    """Return whether messages are those of a prompt, or end with its text."""
    if isinstance(prompt, str):
        last = str(chat[-1].get("content", "")) if chat else ""
        return last.rstrip().endswith(prompt.strip())
    return chat == parse_messages(prompt, name=name)


def _split_prompt(chats: Sequence[Messages]) -> tuple[Messages, list[Messages]]:
    """Return the messages with which chats begin alike, and the rest of each."""
    size = 0
    while all(len(chat) > size + 1 and chat[size] == chats[0][size] for chat in chats):
        size += 1
    return chats[0][:size], [chat[size:] for chat in chats]
