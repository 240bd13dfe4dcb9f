"""Pages of the site that are written from the code: commands, config, rules, API.

mkdocs calls `on_files`; `mkdocs build` needs `pip install -e '.[docs]'`.
"""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from lmjax.cli.main import VERBS
from lmjax.cli.parser import OVERRIDE
from lmjax.config.experiment import Config
from lmjax.data.clean.lines import LINE_RULES
from lmjax.data.clean.personal import KINDS
from lmjax.data.clean.rules import RULES, SOURCES

_ANY_INTEGER = f", < {1 << 31}"  # not worth telling


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages that are written here."""
    from mkdocs.structure.files import File

    for name, write in PAGES.items():
        files.append(File.generated(config, name, content=write()))
    return files


def write_commands() -> str:
    """Return the page of all verbs and their flags."""
    lines = ["# Commands", "", "`lmjax VERB --help` says the same.", ""]
    for name, verb in VERBS.items():
        lines += [f"## lmjax {name}", "", (verb.run.__doc__ or "").splitlines()[0], ""]
        lines += ["| flag | | |", "|---|---|---|"]
        for flag in verb.flags:
            value = flag.options.get("metavar", "")
            value = " ".join(value) if isinstance(value, tuple) else value
            shown = f"{flag.name}={value}" if value else flag.name
            shown = shown if flag.name.startswith("-") else value
            needed = "required" if flag.options.get("required") else ""
            lines.append(f"| `{_cell(shown)}` | {needed} | {_cell(flag.help)} |")
        if verb.takes_overrides:
            text = "sets a leaf of the [config](config.md)"
            lines.append(f"| `{OVERRIDE}a.b=VALUE` | | {text} |")
        lines.append("")
    return "\n".join(lines)


def write_config() -> str:
    """Return the page of all leaves of the config."""
    lines = [
        "# Config",
        "",
        "An experiment has `get_config()`, which returns a `ConfigDict` of",
        f"`ml_collections`; `{OVERRIDE}a.b=VALUE` sets a leaf on the command line.",
        "",
    ]
    for title, path, section in list_sections():
        lines += [f"## {title}", "", _first_line(section), ""]
        lines += ["| leaf | type | default | |", "|---|---|---|---|"]
        for leaf in list_leaves(section):
            name = f"{path}.{leaf.name}" if path else leaf.name
            cells = f"`{_cell(leaf.kind)}` | `{_cell(leaf.default)}`"
            lines.append(f"| `{name}` | {cells} | {_cell(leaf.text)} |")
        lines.append("")
    return "\n".join(lines)


def write_rules() -> str:
    """Return the page of the rules of `lmjax clean`."""
    lines = ["# Rules of lmjax clean", "", "Limits are set by `--limit=RULE=N`.", ""]
    for group, source in SOURCES.items():
        lines += [f"## {group}", "", f"{source[0].upper()}{source[1:]}.", ""]
        lines += ["| rule | limit | measures |", "|---|---|---|"]
        for name, rule in {**RULES, **LINE_RULES}.items():
            if rule.group == group:
                text = f"| `{name}` | {rule.limit:,g} | {_cell(rule.text)} |"
                lines.append(text)
        lines.append("")
    lines += ["## Personal data", "", "| kind | placeholder | |", "|---|---|---|"]
    lines += [f"| `{k}` | `<{k.upper()}>` | {kind.text} |" for k, kind in KINDS.items()]
    return "\n".join(lines) + "\n"


def write_api() -> str:
    """Return the page of the Python API, which mkdocstrings fills."""
    names = (
        "api.train",
        "api.TrainResult",
        "api.evaluate",
        "inference.language_model.load",
        "inference.language_model.LanguageModel",
        "inference.predict_file.predict_file",
    )
    parts = [f"::: lmjax.{name}" for name in names]
    intro = "`import lmjax` has all of these under their last names."
    return "\n\n".join(["# Python", intro, *parts]) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "reference/commands.md": write_commands,
    "reference/config.md": write_config,
    "reference/rules.md": write_rules,
    "reference/api.md": write_api,
}


class Leaf(typing.NamedTuple):
    """A leaf of the config, as it is shown."""

    name: str
    kind: str
    default: str
    text: str


def list_sections() -> Iterator[tuple[str, str, type]]:
    """Yield the title, the dotted path and the dataclass of each section."""
    yield "The run", "", Config
    told = set()
    for title, path, section in _below(Config, ""):
        if (path, section) not in told:  # several kinds have the same section
            told.add((path, section))
            yield title, path, section


def _below(section: type, path: str) -> Iterator[tuple[str, str, type]]:
    for name, kind in typing.get_type_hints(section).items():
        here = f"{path}.{name}" if path else name
        members = typing.get_args(kind) if _is_union(kind) else (kind,)
        for member in members:
            if dataclasses.is_dataclass(member) and isinstance(member, type):
                kinds = typing.get_args(typing.get_type_hints(member).get("kind"))
                choice = f", {here}.kind = {kinds[0]!r}" if len(members) > 1 else ""
                yield f"{here}{choice}", here, member
                yield from _below(member, here)


def _is_union(kind: Any) -> bool:
    return isinstance(kind, types.UnionType)


def list_leaves(section: type) -> Iterator[Leaf]:
    """Yield the leaves of one section, those of its parents included."""
    texts: dict[str, str] = {}
    for parent in reversed(section.__mro__[:-1]):
        texts |= _read_comments(parent)
    hints = typing.get_type_hints(section, include_extras=True)
    for field in dataclasses.fields(section):
        kind = hints[field.name]
        members = typing.get_args(kind) if _is_union(kind) else (kind,)
        if any(dataclasses.is_dataclass(member) for member in members):
            continue
        default: Any = field.default
        if default is dataclasses.MISSING and callable(field.default_factory):
            default = field.default_factory()
        shown = _show_type(kind)
        yield Leaf(field.name, shown, repr(default), texts.get(field.name, ""))


def _show_type(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) is typing.Annotated:
        base, limits = typing.get_args(kind)
        return f"{base.__name__} {limits}".removesuffix(_ANY_INTEGER)
    if typing.get_origin(kind) is tuple:
        return f"tuple of {_show_type(typing.get_args(kind)[0])}"
    return str(kind.__name__)


def _read_comments(section: type) -> dict[str, str]:
    """Return the comments above and beside each field."""
    source = textwrap.dedent(inspect.getsource(section))
    comments: dict[int, str] = {}
    alone = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            last = node.end_lineno or node.lineno
            lines = [comments[n] for n in range(first, last + 1) if n in comments]
            found[node.target.id] = " ".join(lines)
    return found


def _first_line(section: type) -> str:
    return (section.__doc__ or "").splitlines()[0]


def _cell(text: str) -> str:
    """Return a text as a cell of a table."""
    escaped = text.replace("|", "\\|").replace("\n", " ")
    return escaped.replace("<", "&lt;") if "`" in escaped else escaped
