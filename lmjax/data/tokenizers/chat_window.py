"""How much of a chat fits a model: its newest turns, and what the system says."""

import bisect
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from lmjax.data.tokenizers.chat_template import (
    ChatTemplate,
    Message,
    encode_rendered,
)
from lmjax.data.tokenizers.tokenizer import Tokenizer


class FittedChat(NamedTuple):
    """The tokens that an answer follows, and how many messages were left out."""

    ids: list[int]
    num_dropped: int


def fit_messages(
    messages: Sequence[Message],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    room: int,
    tools: Sequence[Any] | None = None,
) -> FittedChat:
    """Return the tokens of the newest messages that fit, up to where an answer begins.

    The system's stay; of the others the oldest are left out, up to a turn of the user.
    The last one stays even if it does not fit by itself.

    Args:
      messages: the last of them is to be answered.
      template: of the chat.
      tokenizer: of the model.
      room: the most tokens.
      tools: of the template.

    Raises:
      UserError: the template refuses the messages.
    """
    first = next((i for i, m in enumerate(messages) if not _is_system(m)), 0)
    starts = [first, *_later_questions(messages, first)]

    @functools.cache
    def encode(start: int) -> list[int]:
        kept = [*messages[:first], *messages[start:]]
        text = template.render(kept, tools=tools, add_generation_prompt=True)
        return [int(i) for i in encode_rendered(template, tokenizer, [text])[0].ids]

    start = starts[0]
    if len(starts) > 1 and len(encode(start)) > room:
        # The later it begins the shorter it is: few of many turns are encoded.
        later = starts[1:-1]
        place = bisect.bisect_left(later, True, key=lambda s: len(encode(s)) <= room)
        start = starts[1 + place]
    ids = encode(start)
    return FittedChat(ids, start - first)


def _is_system(message: Message) -> bool:
    return message["role"] in ("system", "developer")


def _later_questions(messages: Sequence[Message], first: int) -> list[int]:
    """Return where a chat can begin in place of its first message."""
    places = range(first + 1, len(messages))
    return [i for i in places if messages[i]["role"] == "user"]
