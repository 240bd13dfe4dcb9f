"""Chats: lists of messages, as OpenAI and Hugging Face write them, or ShareGPT.

{"messages": [{"role": "user", "content": "..."}, ...]}
{"conversations": [{"from": "human", "value": "..."}, ...]}

A message of the assistant with `"weight": 0` is not trained on, as with OpenAI.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmjax.config.data import SourceConfig
from lmjax.data.formats import fields
from lmjax.data.formats.examples import Example, JsonExamples
from lmjax.data.sources.columns import ColumnRecords
from lmjax.data.sources.plain import strip_suffix
from lmjax.errors import ConfigError, UserError, nearest

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT = "conversations"
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
_COLUMN_FILES = (".parquet", ".pq", ".arrow", ".feather", ".ipc")

Messages = tuple[Mapping[str, Any], ...]


def open_chats(config: SourceConfig, files: Sequence[Path], *, path: str) -> Any:
    """Open files of chats: JSON lines and arrays, or Parquet and Arrow.

    Raises:
      UserError: a file cannot be read.
    """
    options: dict[str, Any] = {
        "on_bad_text": config.on_bad_text,
        "on_bad_file": config.on_bad_file,
        "path": path,
    }
    columns = [strip_suffix(file).lower() in _COLUMN_FILES for file in files]
    if all(columns):
        return ColumnRecords(files, **options)
    if any(columns):
        kinds = sorted({strip_suffix(file) for file in files})
        raise ConfigError(
            f"{path}.path = {config.path!r}: has files of records and of columns: "
            f"{', '.join(kinds)}; give those of one kind"
        )
    return JsonExamples(files, encoding=config.encoding, **options)


def get_messages(example: Example, name: str, *, leaf: str) -> Messages:
    """Return the messages of a chat, each with a role and, as text, its content.

    Args:
      example: has the field, or ShareGPT's `conversations` in its place.
      name: the field.
      leaf: the dotted path of the config leaf that has `name`.

    Raises:
      UserError: there is no such field, or it holds something else.
    """
    if name not in example and _SHAREGPT in example:
        name = _SHAREGPT
    value = fields.get_field(example, name, leaf=leaf)
    return parse_messages(value, name=name)


def parse_messages(value: Any, *, name: str) -> Messages:
    """Check messages, and return them in one form.

    Args:
      value: a list of messages in either form.
      name: of the list, in errors.

    Raises:
      UserError: it is none, or a message has no known role, or no text.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError(f"{name!r} holds {type(value).__name__}, not a list")
    if not value:
        raise UserError(f"{name!r} is empty")
    return tuple(_parse_message(m, name=f"{name}[{i}]") for i, m in enumerate(value))


def get_tools(example: Example) -> list[Any] | None:
    """Return the tools that the assistant of a chat may call; None if there are none.

    Raises:
      UserError: they are not a list of objects, nor JSON of one.
    """
    tools = example.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise UserError(f"'tools' is not JSON: {error}") from error
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(t, Mapping) for t in tools):
        raise UserError("'tools' holds something else than a list of objects")
    return tools


def _parse_message(message: Any, *, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UserError(f"{name} holds {type(message).__name__}, not an object")
    keys = ("from", "value") if "from" in message else ("role", "content")
    role = message.get(keys[0])
    if role is None:
        raise UserError(f"{name} has no 'role'; it has {', '.join(message) or 'none'}")
    role = _SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        hint = nearest(role, ROLES) if isinstance(role, str) else ""
        raise UserError(
            f"{name}: role {role!r}: must be one of {', '.join(ROLES)}{hint}"
        )
    others = {k: v for k, v in message.items() if k not in keys and v is not None}
    if role == "assistant" and others.get("weight", 1) not in (0, 1):
        raise UserError(f"{name}: weight {others['weight']!r}: must be 0 or 1")
    if isinstance(others.get("tool_calls"), list):
        others["tool_calls"] = [_parse_call(call) for call in others["tool_calls"]]
    content = message.get(keys[1])
    if content is None and others.get("tool_calls"):
        return {"role": role, **others}
    return {"role": role, "content": _parse_content(content, name=name), **others}


def _parse_call(call: Any) -> Any:
    """Return a call of a tool; arguments that are JSON of an object as the object.

    Templates write them as JSON, and would quote a text once more.
    """
    function = call.get("function") if isinstance(call, Mapping) else None
    arguments = function.get("arguments") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments)
    except ValueError:
        return call
    if not isinstance(parsed, dict):
        return call
    return {**call, "function": {**function, "arguments": parsed}}


def _parse_content(content: Any, *, name: str) -> str:
    """Return a content as text: that of its parts, if it is a list of them."""
    if isinstance(content, list):
        return "".join(
            _parse_part(p, name=f"{name}[{i}]") for i, p in enumerate(content)
        )
    if not isinstance(content, str):
        raise UserError(f"{name}: content is {type(content).__name__}, not text")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name}: content has half of a surrogate pair") from error
    return content


def _parse_part(part: Any, *, name: str) -> str:
    if isinstance(part, str):
        return _parse_content(part, name=name)
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if kind != "text":
        what = repr(kind) if kind else type(part).__name__
        raise UserError(f"{name}: a part of type {what}: lmjax reads text alone")
    return _parse_content(part.get("text"), name=name)
