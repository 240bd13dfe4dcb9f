"""Features of chats: the words of the assistant are targets, all others a prompt."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from lmjax.config.decoding import DecodingConfig
from lmjax.config.experiment import Config
from lmjax.data.features.features import FIELDS, Columns, Row
from lmjax.data.features.prompted_lm import PromptedLMFeatures
from lmjax.data.formats.chats import Messages, get_messages, get_tools
from lmjax.data.formats.examples import Example
from lmjax.data.tokenizers.chat_template import (
    ChatTemplate,
    Span,
    encode_rendered,
    end_chat_decoding,
    find_template,
)
from lmjax.data.tokenizers.chat_window import fit_messages
from lmjax.data.tokenizers.offsets import Encoding
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chat:
    """Messages, of which the last is the assistant's where that is known."""

    messages: Messages
    tools: Sequence[Any] | None

    @property
    def is_answered(self) -> bool:
        """Return whether the last turn is the assistant's."""
        return bool(self.messages[-1]["role"] == "assistant")

    @property
    def question(self) -> Messages:
        """Return the messages before the last answer."""
        return self.messages[:-1] if self.is_answered else self.messages

    @property
    def source(self) -> str:
        """Return the text of the last turn before the answer."""
        return str(self.question[-1].get("content", "")) if self.question else ""

    @property
    def target(self) -> str:
        """Return the text of the last answer."""
        return str(self.messages[-1].get("content", "")) if self.is_answered else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatFeatures(PromptedLMFeatures):
    """The text of a chat, as its template writes it; a loss for each turn to answer.

    A turn of weight 0 has no loss. A chat that is too long loses its end. A prediction
    answers the last turn; so that it has room, the oldest turns are left out.

    Columns: those of `PromptedLMFeatures`; `question`: the tokens before the answer.
    """

    fingerprint_name = "Chat"
    prediction_columns = ("question",)
    chat_template: str
    has_questions: bool = True  # whether rows of answered chats have the column

    @classmethod
    def from_config(cls, config: Config, **more: Any) -> Self:
        """Return the features of a config."""
        chosen = config.tokenizer.chat_template
        return super().from_config(config, chat_template=chosen, **more)

    def for_training_alone(self) -> "ChatFeatures":
        """Return the same without questions, each of which is rendered by itself."""
        return dataclasses.replace(self, has_questions=False)

    def texts(self, example: Example) -> list[str]:
        """Return the texts of the messages."""
        messages = self._messages(example)
        return [str(message.get("content", "")) for message in messages]

    def parse(self, example: Example, *, labelled: bool = True) -> Any:
        """Return the chat; without its last turn, if that is the label."""
        messages, tools = self._messages(example), get_tools(example)
        name = self.fields.messages
        roles = [message["role"] for message in messages]
        if labelled and "assistant" not in roles:
            raise UserError(f"{name!r} has no turn of the assistant")
        if labelled and roles[-1] != "assistant":
            raise UserError(
                f"{name!r} ends with a turn of role {roles[-1]!r}, which nobody "
                "answers; the last turn must be the assistant's"
            )
        if roles[-1] == "assistant" and not labelled:
            messages = messages[:-1]
        if len(messages) == labelled:
            raise UserError(f"{name!r} has no turn to answer")
        return Chat(messages, tools)

    def example_from_text(self, text: str) -> Example:
        """Return the chat of one turn of the user."""
        return {self.fields.messages: [{"role": "user", "content": text}]}

    def encode(
        self, parsed: Sequence[Any], tokenizer: Tokenizer
    ) -> list[Sequence[Row]]:
        """Return a row for each, cut at its end."""
        template = find_template(tokenizer, self.chat_template)
        chats: list[Chat] = [*parsed]
        answered = [chat for chat in chats if chat.is_answered]
        rendered = [_render(chat, template) for chat in answered]
        texts = [text for text, _ in rendered]
        encodings = iter(encode_rendered(template, tokenizer, texts))
        spans = iter([spans for _, spans in rendered])
        rows: list[Sequence[Row]] = []
        for chat in chats:
            question = {}
            if self.has_questions or not chat.is_answered:
                question = {"question": self._question(chat, template, tokenizer)}
            row = (
                self._chat_row(next(encodings), next(spans), question)
                if chat.is_answered
                else self._prompt_row(question["question"])
            )
            rows.append([row])
        return rows

    def identity(self) -> Any:
        """Return the field, the template's name and the lengths."""
        sizes = self.length, self.target_length
        names = self.fingerprint_name, self.fields.messages, self.chat_template
        return [*names, *sizes, "weights"]

    def tokenizer_identity(self, tokenizer: Tokenizer) -> tuple[str, ...]:
        """Return the text of the template."""
        return (find_template(tokenizer, self.chat_template).text,)

    def prompt_row(self, columns: Columns) -> Row:
        """Return the row of the tokens before the last answer."""
        return self._prompt_row(columns["question"])

    def decoder_inputs(self, columns: Columns) -> dict[str, Any]:
        """Return the ids to continue."""
        return {"prompts": columns["question"]}

    def end_decoding(
        self, decoding: DecodingConfig, tokenizer: Tokenizer
    ) -> DecodingConfig:
        """Return the decoding that also ends where the assistant's turn does."""
        template = find_template(tokenizer, self.chat_template)
        return end_chat_decoding(decoding, template, tokenizer)

    def _messages(self, example: Example) -> Messages:
        return get_messages(example, self.fields.messages, leaf=f"{FIELDS}.messages")

    def _question(
        self, chat: Chat, template: ChatTemplate, tokenizer: Tokenizer
    ) -> np.ndarray:
        """Return the ids of the messages to answer, without the oldest if need be."""
        room = self.length - self.target_length
        found = fit_messages(
            chat.question, template, tokenizer, room=room, tools=chat.tools
        )
        ids = np.array(found.ids, np.int32)
        return cut_start(ids, room, bos_id=tokenizer.bos_id)

    def _prompt_row(self, question: np.ndarray) -> Row:
        size = len(question)
        borders = np.array([size], np.int32)
        columns = {"tokens": question, "prompt": borders, "question": question}
        return Row(columns=columns, size=size)

    def _chat_row(
        self, encoding: Encoding, spans: Sequence[Span], question: Columns
    ) -> Row:
        is_target = mark_targets(encoding, spans)
        truncated = len(is_target) > self.length + 1
        is_target = is_target[: self.length + 1]
        borders = find_borders(is_target)
        columns = {
            "tokens": encoding.ids[: borders[-1] if len(borders) else 0],
            "prompt": borders[:-1],
            **question,
        }
        return Row(
            columns=columns,
            size=max(len(columns["tokens"]) - 1, 0),
            truncated=truncated,
            used_for_training=len(borders) > 0,
        )

    def postprocess(
        self,
        parsed: Any,
        rows: Sequence[Columns],
        outputs: Sequence[Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Return the best answer, without white space around it; and the others."""
        best = super().postprocess(parsed, rows, outputs)
        return {**best, "text": best["text"].strip()}


def _render(chat: Chat, template: ChatTemplate) -> tuple[str, list[Span]]:
    """Return the text of a chat, and what of it is trained on.

    Raises:
      UserError: the template refuses the messages, or nobody can tell whose words are
        whose.
    """
    messages, tools = chat.messages, chat.tools
    text, spans = template.render_with_spans(messages, tools=tools)
    left_out: set[Span] = set()
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and message.get("weight", 1) == 0:
            own = template.turn_spans((text, spans), messages, i, tools=tools)
            if not own and message.get("content"):
                raise UserError(
                    f"{template.name}: what it writes for messages[{i}], of weight 0, "
                    "cannot be told from other turns"
                )
            left_out |= {*own}
    return text, [span for span in spans if span not in left_out]


def cut_start(ids: np.ndarray, room: int, *, bos_id: int | None) -> np.ndarray:
    """Return the last ids that fit a room, after the first one if it is `bos_id`."""
    if len(ids) <= room:
        return ids
    num_kept = int(ids[0] == bos_id)
    return np.concatenate([ids[:num_kept], ids[len(ids) - room + num_kept :]])


def mark_targets(encoding: Encoding, spans: Sequence[Span]) -> np.ndarray:
    """Return which tokens have a character of a span, bool (T,); not the first token.

    There is nothing to predict that one from.
    """
    is_target = np.zeros(len(encoding.ids), bool)
    starts, stops = encoding.offsets.T
    for span in spans:
        first = int(np.searchsorted(stops, span.start, side="right"))
        is_target[first : int(np.searchsorted(starts, span.stop, side="left"))] = True
    is_target[:1] = False
    return is_target


def find_borders(is_target: np.ndarray) -> np.ndarray:
    """Return where targets begin and, in turn, end, int32."""
    steps = np.diff(is_target.astype(np.int8), prepend=0, append=0)
    return np.flatnonzero(steps).astype(np.int32)
