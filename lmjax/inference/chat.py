"""Answers to the last turn of a chat, and conversations of many turns."""

import dataclasses
import logging
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmjax.config.decoding import DecodingConfig
from lmjax.data.formats.chats import Messages, parse_messages
from lmjax.data.tokenizers.chat_template import (
    ChatTemplate,
    end_chat_decoding,
    find_template,
)
from lmjax.data.tokenizers.chat_window import fit_messages
from lmjax.data.tokenizers.named_templates import NAMED_TEMPLATES
from lmjax.errors import UserError, nearest

if TYPE_CHECKING:
    from lmjax.inference.language_model import LanguageModel

DEFAULT_ANSWER_TOKENS = 512

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What an answer continues, and how it is written.

    Attributes:
      ids: of the messages that fit, and the start of the answer.
      max_tokens: of the answer.
      decoding: which ends with the turn of the assistant.
      num_dropped: messages that were left out, the oldest.
    """

    ids: list[int]
    max_tokens: int
    decoding: DecodingConfig
    num_dropped: int


def choose_template(lm: "LanguageModel", name: str | None) -> ChatTemplate:
    """Return the template of a name; None: that of the model's config.

    Raises:
      UserError: there is none, or the model does not continue texts.
    """
    config = lm.model.config
    if config.is_encoder_decoder or not config.can_generate:
        raise UserError(
            f"chat: config.model.kind = {config.kind!r} does not continue texts"
        )
    names = ["own", *NAMED_TEMPLATES]
    if name is not None and name not in names:
        raise UserError(
            f"chat_template = {name!r}: must be one of {', '.join(names)}"
            f"{nearest(name, names)}"
        )
    return find_template(lm.tokenizer, name or lm.config.tokenizer.chat_template)


def check_messages(messages: Sequence[Mapping[str, Any]]) -> Messages:
    """Return messages whose last one can be answered.

    Raises:
      UserError: they are none, or the last is the assistant's.
    """
    checked = parse_messages(messages, name="messages")
    if checked[-1]["role"] == "assistant":
        raise UserError(
            "messages: the last turn is the assistant's: there is nothing to answer"
        )
    return checked


def ask(
    lm: "LanguageModel",
    messages: Messages,
    template: ChatTemplate,
    *,
    decoding: DecodingConfig,
    max_tokens: int | None = None,
    tools: Sequence[Any] | None = None,
) -> Question:
    """Return the tokens to continue: those of the newest turns that fit the model.

    Args:
      lm: the model that answers.
      messages: the chat; see `check_messages`.
      template: that writes it.
      decoding: of the answer.
      max_tokens: that the answer may have; by default up to 512, as far as they fit.
      tools: JSON schemas for the template.

    Raises:
      UserError: the last turn alone does not fit, or the template refuses the messages.
    """
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"max_tokens = {max_tokens}: must be >= 1")
    config = lm.model.config
    wanted = max_tokens or decoding.max_tokens or DEFAULT_ANSWER_TOKENS
    reserved = max_tokens or min(wanted, config.longest_text // 2)
    room = config.longest_text - reserved
    fitted = fit_messages(messages, template, lm.tokenizer, room=room, tools=tools)
    size = len(fitted.ids)
    if size > room:
        raise UserError(
            f"messages: the last turn takes {size} tokens, but "
            f"config.model.max_length = {config.max_length} leaves {max(room, 0)} "
            f"beside max_tokens = {reserved} of the answer"
        )
    most = max(config.longest_continuation(size) - size, 1)
    return Question(
        ids=fitted.ids,
        max_tokens=max_tokens or min(wanted, most),
        decoding=end_chat_decoding(decoding, template, lm.tokenizer),
        num_dropped=fitted.num_dropped,
    )


class Conversation:
    """A chat that grows turn by turn.

    Args:
      lm: the model that answers.
      system: what the system says first; "": nothing.
      seed: of the first answer; each has the next one.
      options: those of `LanguageModel.stream_chat`.
    """

    def __init__(
        self, lm: "LanguageModel", *, system: str = "", seed: int = 0, **options: Any
    ) -> None:
        self._lm, self._options, self._seed = lm, options, seed
        self._system = [{"role": "system", "content": system}] if system else []
        self._has_told = False
        self.messages: list[dict[str, str]] = [*self._system]

    def reset(self) -> None:
        """Forget all turns but what the system says."""
        self.messages = [*self._system]

    def answer(self, text: str) -> Generator[str, None, None]:
        """Yield the answer to a turn of the user in pieces, and keep both.

        An answer that is not read to its end is kept as far as it was; a turn that
        cannot be answered is forgotten.

        Raises:
          UserError: as `ask`.
        """
        self.messages.append({"role": "user", "content": text})
        written: list[str] = []
        try:
            pieces = self._lm.stream_chat(
                self.messages,
                seed=(self._seed + len(self.messages)) % (1 << 32),
                on_dropped=self._tell,
                **self._options,
            )
            for piece in pieces:
                written.append(piece)
                yield piece
        except UserError:
            self.messages.pop()
            raise
        finally:
            if self.messages and self.messages[-1]["role"] == "user":
                whole = "".join(written).strip()
                self.messages.append({"role": "assistant", "content": whole})

    def _tell(self, num_dropped: int) -> None:
        if not self._has_told:
            tell_dropped(num_dropped)
        self._has_told = True


def tell_dropped(num_dropped: int) -> None:
    """Log that the oldest turns are left out."""
    _log.warning(
        "the chat is longer than the model reads: its oldest %d messages are left out",
        num_dropped,
    )
