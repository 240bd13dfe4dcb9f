"""Parse nested mappings and `a.b=value` overrides into frozen dataclasses.

Nothing here is specific to an experiment: the types of the fields say what is allowed.
Problems are collected, so that the user sees all of them at once.
"""

import ast
import contextlib
import dataclasses
import importlib.util
import math
import sys
import traceback
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from lmjax.errors import ConfigError, UserError, nearest, show


def list_changes(old: Any, new: Any, path: str = "config") -> list[str]:
    """List the leaves in which two configs differ, except for runtime leaves.

    Args:
      old: a section, or a whole config.
      new: another one.
      path: the dotted path of the section.
    """
    if type(old) is not type(new):
        return [f"{path}.kind was {old.kind!r}, is {new.kind!r}"]
    changes = []
    for field in dataclasses.fields(old):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if field.metadata.get("runtime") or before == after:
            continue
        if dataclasses.is_dataclass(before):
            changes += list_changes(before, after, f"{path}.{field.name}")
        else:
            changes.append(f"{path}.{field.name} was {before!r}, is {after!r}")
    return changes


def validate_tree(section: Any, path: str) -> Iterator[str]:
    """Yield the problems that `validate` finds in a section and in all below it."""
    if hasattr(section, "validate"):
        yield from section.validate(path)
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from validate_tree(value, f"{path}.{field.name}")
        for i, item in enumerate(value if isinstance(value, tuple) else ()):
            if dataclasses.is_dataclass(item):
                yield from validate_tree(item, f"{path}.{field.name}[{i}]")


def to_builtins(value: Any) -> Any:
    """Convert mappings, such as ConfigDicts, to dicts, and sequences to tuples.

    Arrays and their scalars, as of NumPy, become numbers and tuples of them.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if hasattr(value, "items"):
        return {str(key): to_builtins(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(to_builtins(item) for item in value)
    return value


def apply_override(
    root: Any, nested: dict[str, Any], text: str, problems: list[str]
) -> None:
    """Write the override `a.b=value` into `nested`, or add to `problems`.

    Args:
      root: the dataclass that `nested` is going to become.
      nested: a nested dict; changed in place.
      text: the override.
      problems: a list to add to.
    """
    path, equals, value = text.partition("=")
    if not equals:
        problems.append(f"config.{path}: expected --config.{path}=VALUE")
        return
    try:
        kind = leaf_type(root, nested, path)
    except UserError as error:
        problems.append(str(error))
        return
    *sections, leaf = path.split(".")
    for name in sections:
        nested = nested.setdefault(name, {})
        if not isinstance(nested, dict):
            return  # `build` reports that this is not a section
    nested[leaf] = _parse_text(kind, value)


def leaf_type(root: Any, nested: Mapping[str, Any], path: str) -> Any:
    """Return the type of the leaf `a.b` in a tree of dataclasses.

    Args:
      root: the dataclass at the root.
      nested: the values so far; their `kind` selects the members of unions.
      path: the leaf.

    Raises:
      ConfigError: there is no such leaf, or it is a section.
    """
    kind: Any = root
    section: Any = nested
    for name in path.split("."):
        kind = _select_member(kind, section)
        fields = _field_types(kind) if dataclasses.is_dataclass(kind) else {}
        if name not in fields:
            raise ConfigError(_unknown_field(f"config.{path}", name, list(fields)))
        kind = fields[name]
        section = section.get(name) if isinstance(section, dict) else None
    if _is_section(kind):
        raise ConfigError(f"config.{path}: is a section; set one of its leaves")
    return kind


def leaf_value(kind: Any, text: str, path: str) -> Any:
    """Parse the text that the command line gives for a leaf of a type.

    Raises:
      ConfigError: the leaf does not allow the value.
    """
    problems: list[str] = []
    value = _convert(kind, _parse_text(kind, text), f"config.{path}", problems)
    if problems:
        raise ConfigError("; ".join(problems))
    return value


def _parse_text(kind: Any, text: str) -> Any:
    return text if kind is str else _parse_literal(text)


def _parse_literal(text: str) -> Any:
    """Parse a Python literal, also `true` and `false`; anything else stays text."""
    words = {"true": True, "false": False, "none": "none"}  # "none" names a choice
    if text.lower() in words:
        return words[text.lower()]
    try:
        return to_builtins(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text  # also {[]: 1}, and brackets nested too deep for Python


def build(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """Build a dataclass from a nested dict; None if that adds to `problems`.

    Args:
      kind: the dataclass, or a union of which the leaf `kind` selects a member.
      value: the dict.
      path: the dotted path of the section.
      problems: a list to add to.
    """
    if not isinstance(value, dict):
        problems.append(f"{path} = {show(value)}: must be a section")
        return None
    kinds = _list_kinds(kind)
    if kinds and value.get("kind", kinds[0]) not in kinds:
        _convert(Literal[tuple(kinds)], value["kind"], f"{path}.kind", problems)
        return None
    kind = _select_member(kind, value)
    fields = _field_types(kind)
    problems += [
        _unknown_field(f"{path}.{name}", name, list(fields))
        for name in value
        if name not in fields
    ]
    before = len(problems)
    leaves = {
        name: _convert(fields[name], item, f"{path}.{name}", problems)
        for name, item in value.items()
        if name in fields
    }
    return kind(**leaves) if len(problems) == before else None


def _is_section(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or isinstance(kind, types.UnionType)


def _list_kinds(section: Any) -> list[str]:
    """List the values of `kind` that select a member of a union of dataclasses."""
    if not isinstance(section, types.UnionType):
        return []
    members = typing.get_args(section)
    return [k for m in members for k in typing.get_args(_field_types(m)["kind"])]


def _select_member(section: Any, value: Any) -> Any:
    """Return the member of a union that `value["kind"]` selects, or the first."""
    if not isinstance(section, types.UnionType):
        return section
    members = typing.get_args(section)
    kind = value.get("kind") if isinstance(value, dict) else None
    for member in members:
        if kind in typing.get_args(_field_types(member)["kind"]):
            return member
    return members[0]


def keep_known(section: Any, value: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `value` that the member of a union selected by it has."""
    fields = _field_types(_select_member(section, value))
    return {name: item for name, item in value.items() if name in fields}


def _convert(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """Convert a value to the type of its leaf; add to `problems` if it does not fit."""
    if _is_section(kind):
        return build(kind, value, path, problems)
    if typing.get_origin(kind) is tuple and isinstance(value, tuple):
        item = typing.get_args(kind)[0]
        return tuple(
            _convert(item, v, f"{path}[{i}]", problems) for i, v in enumerate(value)
        )
    allowed = kind
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # as in num_steps=1e6
    if not _is_allowed(allowed, kind, value):
        why = _describe_allowed(allowed, value)
        problems.append(f"{path} = {show(value)}: {why}")
    return value


def _is_allowed(allowed: Any, kind: Any, value: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        return any(type(value) is type(c) and value == c for c in choices)
    if not isinstance(kind, type) or type(value) is not kind:
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if typing.get_origin(allowed) is Annotated:
        return value in typing.get_args(allowed)[1]
    return True


def _describe_allowed(kind: Any, value: Any) -> str:
    if typing.get_origin(kind) is Literal:
        choices = [str(c) for c in typing.get_args(kind)]
        hint = value if isinstance(value, str) else show(value)
        return f"must be one of {', '.join(choices)}{nearest(hint, choices)}"
    if typing.get_origin(kind) is Annotated:
        base, limits = typing.get_args(kind)
        return f"must be {_TYPE_NAMES[base]} {limits}"
    if typing.get_origin(kind) is tuple:
        return "must be a tuple, such as ('a',)"
    return f"must be {_TYPE_NAMES[kind]}"


_TYPE_NAMES = {
    int: "an integer",
    float: "a finite number",
    str: "a string",
    bool: "true or false",
}


def _field_types(kind: Any) -> dict[str, Any]:
    """Return the type of each field, by its name."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _unknown_field(path: str, name: str, allowed: Sequence[str]) -> str:
    names = f"; allowed here: {', '.join(allowed)}" if allowed else ""
    return f"{path}: no such field{nearest(name, allowed)}{names}"


@contextlib.contextmanager
def import_path(path: str | Path) -> Iterator[None]:
    """Let an experiment file import its package, and what lies beside `lmjax`.

    The root of its package comes first on `sys.path`; last comes the directory that
    holds `lmjax`, so that `experiments.base` is found from anywhere.
    """
    root = Path(path).resolve().parent
    while (root / "__init__.py").exists():
        root = root.parent
    before, beside = str(root), str(Path(__file__).parents[2])
    sys.path.insert(0, before)
    sys.path.append(beside)
    try:
        yield
    finally:
        sys.path.remove(before)
        if beside in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(beside)]


def load_module(path: str) -> types.ModuleType:
    """Import an experiment file; see `import_path`.

    Raises:
      UserError: the file cannot be read, or running it fails; names file and line.
    """
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        why = "not a Python file (*.py)" if file.exists() else "no such file"
        raise UserError(f"{path}: {why}")
    spec = importlib.util.spec_from_file_location("lmjax_experiment", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with import_path(file):
            spec.loader.exec_module(module)
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}"
        raise UserError(f"{where}: not valid Python: {error.msg}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit: the file must not end the program
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{line.filename}:{line.lineno}"
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    return module
