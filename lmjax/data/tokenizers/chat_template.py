"""Chat templates: from messages to text, and which of it the assistant has written.

A template is a Jinja program of a tokenizer, which anybody may have written: it runs in
jinja2's sandbox, with the functions that transformers gives it.
"""

import dataclasses
import datetime
import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lmjax.config.decoding import DecodingConfig
from lmjax.data.tokenizers.hf.added import ROLES
from lmjax.data.tokenizers.hf.directory import token_text
from lmjax.data.tokenizers.hf.pieces import PieceTokenizer
from lmjax.data.tokenizers.hf.tokenizer import HFTokenizer
from lmjax.data.tokenizers.named_templates import MARKS, NAMED_TEMPLATES
from lmjax.data.tokenizers.offsets import (
    Encoding,
    concatenate_encodings,
    make_encoding,
)
from lmjax.data.tokenizers.plain import Ids
from lmjax.data.tokenizers.special_ids import not_none
from lmjax.data.tokenizers.tokenizer import Tokenizer
from lmjax.errors import ConfigError, UserError

Message = Mapping[str, Any]
FILE = "chat_template.jinja"
_LEAF = "config.tokenizer.chat_template"
_BEGIN, _END = (
    "\U000f0002",
    "\U000f0003",
)  # around a generation block, while it is found
_HAS_BLOCKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_NAMES = ", ".join(NAMED_TEMPLATES)


class Span(NamedTuple):
    """Characters [start, stop) of a rendered chat."""

    start: int
    stop: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """A template, and the special tokens that it can write.

    Raises:
      ConfigError: it is not Jinja, or jinja2 is not installed.
    """

    text: str
    name: str  # in errors
    tokens: Mapping[str, str]  # such as bos_token
    marks: Sequence[str] = ()  # that are one token where the vocabulary has them

    def __post_init__(self) -> None:
        self._compile(mark=False)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> str:
        """Return the text of a chat, as transformers' `apply_chat_template` does.

        Args:
          messages: each with `role` and, unless it calls tools, `content`.
          tools: JSON schemas of functions that the assistant may call.
          add_generation_prompt: end with the start of a turn of the assistant.

        Raises:
          UserError: the template refuses the messages.
        """
        return self._render(messages, tools, prompt=add_generation_prompt)

    def render_with_spans(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None
    ) -> tuple[str, list[Span]]:
        """Return the text of a chat, and what of it the assistant writes.

        That is its words and the end of its turn. A template may say so itself with
        generation blocks; else a turn is what it adds to the text of those before it.

        Raises:
          UserError: the template refuses the messages; or what it writes for a turn
            depends on the turns after it, so that nobody could write it in their order.
        """
        whole = self.render(messages, tools=tools)
        spans = self._generation_blocks(messages, tools, whole)
        return whole, spans or [*self._added_spans(messages, tools, whole)]

    def turn_spans(
        self,
        rendered: tuple[str, Sequence[Span]],
        messages: Sequence[Message],
        index: int,
        *,
        tools: Sequence[Any] | None = None,
    ) -> list[Span]:
        """Return those of the spans of a chat that one turn of the assistant has.

        Args:
          rendered: the text and all spans, of `render_with_spans`.
          messages: of the chat.
          index: of the turn.
          tools: of the template.

        Raises:
          UserError: the template refuses the messages before the turn.
        """
        whole, spans = rendered
        later = range(index + 1, len(messages))
        after = next((i for i in later if messages[i]["role"] == "assistant"), None)
        start = self._find_turn(whole, messages[:index], tools)
        stop = len(whole)
        if after is not None:
            stop = self._find_turn(whole, messages[:after], tools)
        return [span for span in spans if start < span.stop <= stop]

    def _find_turn(self, whole: str, before: Sequence[Message], tools: Any) -> int:
        """Return where the text of a chat goes on after its first messages.

        Some templates begin an answer otherwise than they write it later.
        """
        text = self._render(before, tools, prompt=True)
        if whole.startswith(text):
            return len(text)
        pairs = enumerate(zip(text, whole, strict=False))
        differ = (i for i, (a, b) in pairs if a != b)
        return next(differ, min(len(text), len(whole)))

    @functools.cached_property
    def end_of_turn(self) -> str:
        """The text that ends a turn of the assistant; "" if white space alone does."""
        answer = "0123456789"
        turns = [
            {"role": "user", "content": "9876543210"},
            {"role": "assistant", "content": answer},
        ]
        for chat in (turns * 2, turns):  # some end the last turn otherwise
            try:
                text, spans = self.render_with_spans(chat)
            except UserError:
                continue
            turn = next((text[a:b] for a, b in spans if answer in text[a:b]), "")
            return turn.rpartition(answer)[2].strip()
        try:
            text = self.render(turns)
        except UserError:
            return ""
        return text.rpartition(answer)[2].strip() if answer in text else ""

    def _generation_blocks(
        self, messages: Sequence[Message], tools: Any, whole: str
    ) -> list[Span]:
        """Return the generation blocks; [] if there are none that can be found."""
        if not _HAS_BLOCKS.search(self.text) or _BEGIN in whole or _END in whole:
            return []
        marked = self._render(messages, tools, prompt=False, mark=True)
        spans, length = [], 0
        for part in re.split(f"({_BEGIN}|{_END})", marked):
            if part == _BEGIN:
                start = length
            elif part == _END:
                spans.append(Span(start, length))
            else:
                length += len(part)
        plain = marked.replace(_BEGIN, "").replace(_END, "")
        return [span for span in spans if span.stop > span.start and plain == whole]

    def _added_spans(
        self, messages: Sequence[Message], tools: Any, whole: str
    ) -> Iterator[Span]:
        done = 0
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if not i:
                raise UserError("the first turn is the assistant's, which answers none")
            before = self._render(messages[:i], tools, prompt=True)
            after = self._render(messages[: i + 1], tools, prompt=False)
            content = str(message.get("content") or "").strip()
            if not (after.startswith(before) and whole.startswith(before)):
                raise self._unknown_turn(i)
            own = _cut_end(after[len(before) :], content)
            start = len(before)
            if whole.startswith(before + own):
                stop = start + len(own)
            else:  # what is around its words depends on its being the last turn
                stop = _find_stop(whole, own, content, start)
            if start < done or stop <= start:
                raise self._unknown_turn(i)
            done = stop
            yield Span(start, stop)

    def _unknown_turn(self, index: int) -> UserError:
        return UserError(
            f"{self.name}: where the assistant's turn messages[{index}] begins and "
            "ends cannot be told, since its text depends on later turns; a template "
            "with generation blocks says it"
        )

    def _render(
        self,
        messages: Sequence[Message],
        tools: Any,
        *,
        prompt: bool,
        mark: bool = False,
    ) -> str:
        template = self._compile(mark=mark)
        try:
            return str(
                template.render(
                    messages=[_without_nulls(message) for message in messages],
                    tools=tools,
                    documents=None,
                    add_generation_prompt=prompt,
                    **self.tokens,
                )
            )
        except Exception as error:  # a template may raise anything
            why = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"{self.name} refuses the messages: {why}") from error

    def _compile(self, *, mark: bool) -> Any:
        try:
            return _compile(self.text, mark)
        except (SyntaxError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self.name}: {error}") from error


def find_template(tokenizer: Tokenizer, name: str) -> ChatTemplate:
    """Return the chat template of a tokenizer, or the one of a name.

    Args:
      tokenizer: whose special tokens it writes.
      name: `config.tokenizer.chat_template`; "own": that of the tokenizer.

    Raises:
      ConfigError: the tokenizer has none, or it cannot be used.
    """
    if tokenizer.separates_words or isinstance(tokenizer, Ids):
        raise ConfigError(
            "config.tokenizer.kind: pieces are whole words or ids, which cannot spell "
            "the marks of a chat"
        )
    text = NAMED_TEMPLATES.get(name) or read_template(getattr(tokenizer, "files", {}))
    if text is None:
        raise ConfigError(
            f"{_LEAF} = 'own': the tokenizer has no chat template; choose one of "
            f"{_NAMES}"
        )
    shown = "the tokenizer's chat template" if name == "own" else f"{_LEAF} = {name!r}"
    return ChatTemplate(
        text=text,
        name=shown,
        tokens=_special_tokens(tokenizer),
        marks=MARKS.get(name, ()),
    )


def read_template(files: Mapping[str, bytes]) -> str | None:
    """Return the chat template in the files of a tokenizer; None if there is none.

    Of several with names it is the one that is named default.
    """
    if FILE in files:
        return files[FILE].decode(errors="replace")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _read_json(files, name).get("chat_template")
        if isinstance(found, list):
            named = {one.get("name"): one for one in found if isinstance(one, dict)}
            found = named.get("default", {}).get("template")
        if isinstance(found, str):
            return found
    return None


def encode_rendered(
    template: ChatTemplate, tokenizer: Tokenizer, texts: Sequence[str]
) -> list[Encoding]:
    """Return the tokens of rendered chats, and the characters that each covers.

    Tokenizers of Hugging Face read their special tokens in a text. Those that others
    have are replaced here, and so are marks that a vocabulary has as common pieces.
    """
    splits = getattr(tokenizer, "split_special_tokens", False)
    ids: dict[str, int] = {}
    if not isinstance(tokenizer, HFTokenizer | PieceTokenizer) or splits:
        known = not_none(tokenizer.bos_id, tokenizer.eos_id)
        ids = {tokenizer.id_to_piece(i): i for i in known}
    if isinstance(tokenizer, HFTokenizer):
        ids |= tokenizer.common_pieces(template.marks)
    if not ids:
        return tokenizer.encode_with_offsets(texts)
    return [_encode_parts(tokenizer, text, ids) for text in texts]


def end_chat_decoding(
    decoding: DecodingConfig, template: ChatTemplate, tokenizer: Tokenizer
) -> DecodingConfig:
    """Return a decoding that also ends where the assistant's turn does.

    That is at a token, or at a text where the template ends turns with several.
    """
    ids, end = [*(decoding.stop_ids or tokenizer.stop_ids)], template.end_of_turn
    encoded = encode_rendered(template, tokenizer, [end] if end else [])
    tokens = encoded[0].ids.tolist() if encoded else []
    stop = decoding.stop
    if len(tokens) == 1:
        ids.append(tokens[0])
    elif tokens:
        stop = (*stop, end)
    return dataclasses.replace(decoding, stop_ids=tuple(dict.fromkeys(ids)), stop=stop)


def _encode_parts(tokenizer: Tokenizer, text: str, ids: Mapping[str, int]) -> Encoding:
    """Return the encoding of a text in which names stand for tokens."""
    parts, begin = [], 0
    names = "|".join(map(re.escape, ids)) or "(?!)"
    for part in re.split(f"({names})", text):
        if part in ids:
            encoding = make_encoding([ids[part]], [(0, len(part))])
            parts.append((begin, encoding))
        elif part:
            parts.append((begin, tokenizer.encode_with_offsets([part])[0]))
        begin += len(part)
    return concatenate_encodings(parts)


def _cut_end(turn: str, content: str) -> str:
    """Return the text of a turn without the white space after its mark of the end."""
    place = turn.rfind(content) if content else -1
    mark = turn[place + len(content) :] if place >= 0 else turn
    return turn.rstrip() if mark.strip() else turn


def _find_stop(whole: str, own: str, content: str, start: int) -> int:
    """Return where a turn ends in a chat that goes on; -1 if that cannot be told.

    Args:
      whole: the text of the chat.
      own: that of the turn where it is the last one.
      content: the words of the turn.
      start: of the turn in `whole`.
    """
    found = whole.find(content, start) if content else -1
    if found < 0 or content not in own:
        return -1
    end, rest = own.rpartition(content)[2], whole[found + len(content) :]
    if not rest.startswith(end):  # the same mark, without what only a last turn has
        pairs = zip(end, rest, strict=False)
        same = "".join(a for a, _ in itertools.takewhile(lambda p: p[0] == p[1], pairs))
        end = same[: len(same) - len(re.split(r"\s", same)[-1])].rstrip()
    return found + len(content) + len(end) if end.strip() else -1


def _without_nulls(message: Message) -> dict[str, Any]:
    """Return a message as templates read it: without fields that are null."""
    return {name: value for name, value in message.items() if value is not None}


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the texts of special tokens, by the names that templates use."""
    files = getattr(tokenizer, "files", {})
    config = _read_json(files, "tokenizer_config.json")
    others = _read_json(files, "special_tokens_map.json")
    tokens = {}
    for role in ROLES:
        name = f"{role}_token"
        token = token_text(config.get(name)) or token_text(others.get(name))
        index = getattr(tokenizer, f"{role}_id", None)
        if token is None and index is not None:
            token = tokenizer.id_to_piece(index)
        if token is not None:
            tokens[name] = token
    # A template may add them to a text, which nothing else may be added to.
    return {"bos_token": "", "eos_token": "", **tokens}


def _read_json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        found = json.loads(files.get(name, b"{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@functools.lru_cache(maxsize=32)
def _compile(text: str, mark: bool) -> Any:
    """Return a compiled template, whose generation blocks are marked or not.

    Raises:
      ConfigError: jinja2 is not installed.
      ValueError: it is not Jinja.
    """
    try:
        import jinja2
        from jinja2 import nodes
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ConfigError(
            f"{_LEAF}: needs a package that is not installed: pip install 'lmjax[chat]'"
        ) from error

    class GenerationBlocks(Extension):
        """What the assistant writes: {% generation %} ... {% endgeneration %}."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            scope = nodes.Scope(body, lineno=line)
            if not mark:
                return scope
            ends = [nodes.Output([nodes.TemplateData(x)]) for x in (_BEGIN, _END)]
            return [ends[0].set_lineno(line), scope, ends[1].set_lineno(line)]

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationBlocks, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _format_now
    try:
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        why = " ".join(str(error.message).split())
        raise ValueError(f"line {error.lineno}: is not Jinja: {why}") from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _format_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
