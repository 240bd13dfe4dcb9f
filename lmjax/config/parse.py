"""From nested mappings and `a.b=value` texts to frozen dataclasses, or to errors.

Nothing here knows what an experiment is: the types of the fields say what is allowed.
"""

import ast
import dataclasses
import importlib.util
import math
import sys
import traceback
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from lmjax.errors import ConfigError, UserError, nearest


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number must lie in: from `low` to `high`, and strictly below `below`."""

    low: float = -math.inf
    high: float = math.inf
    below: float = math.inf

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high and number < self.below

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"in [{self.low:g}, {self.high:g}]"
        limit = f", < {self.below}" if self.below < math.inf else ""
        return f">= {self.low:g}{limit}"


T = TypeVar("T")


def runtime(default: T) -> T:
    """Declare a leaf that may differ when a run resumes (speed, logs, schedule)."""
    return dataclasses.field(default=default, metadata={"runtime": True})


def differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """Yield the leaves, runtime ones aside, in which two trees differ."""
    if type(old) is not type(new):
        yield f"{path}.kind was {old.kind!r}, is {new.kind!r}"
        return
    for field in dataclasses.fields(old):
        a, b, where = getattr(old, field.name), getattr(new, field.name), field.name
        if field.metadata.get("runtime") or a == b:
            continue
        if dataclasses.is_dataclass(a):
            yield from differences(a, b, f"{path}.{where}")
        else:
            yield f"{path}.{where} was {a!r}, is {b!r}"


def cross_field_mistakes(config: Any, path: str) -> Iterator[str]:
    """Yield what each section's `mistakes` finds wrong between its fields."""
    if hasattr(config, "mistakes"):
        yield from config.mistakes(path)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from cross_field_mistakes(value, f"{path}.{field.name}")


def plain(value: Any) -> Any:
    """Return ConfigDicts, mappings and sequences as dicts and tuples."""
    if hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    return value


def apply_override(
    root: Any, nested: dict[str, Any], text: str, mistakes: list[str]
) -> None:
    """Put `a.b=value` into `nested`, as the fields of the dataclass `root` read it."""
    path, equals, value = text.partition("=")
    if not equals:
        mistakes.append(f"config.{path}: an override is written --config.{path}=VALUE")
        return
    try:
        kind = leaf_type(root, nested, path)
    except UserError as error:
        mistakes.append(str(error))
        return
    *sections, leaf = path.split(".")
    for name in sections:
        nested = nested.setdefault(name, {})
        if not isinstance(nested, dict):
            return  # `build` says that this is no section
    nested[leaf] = _read(kind, value)


def leaf_type(root: Any, nested: Mapping[str, Any], path: str) -> Any:
    """Return the type of the leaf `a.b` of a tree of the dataclass `root`.

    Args:
      root: a dataclass.
      nested: the tree so far; its `kind` leaves pick the members of unions.
      path: the leaf.

    Raises:
      ConfigError: there is no such leaf, or it is a section.
    """
    kind: Any = root
    section: Any = nested
    for name in path.split("."):
        kind = _member(kind, section)
        fields = _fields(kind) if dataclasses.is_dataclass(kind) else {}
        if name not in fields:
            raise ConfigError(_unknown(f"config.{path}", name, list(fields)))
        kind = fields[name]
        section = section.get(name) if isinstance(section, dict) else None
    if _is_section(kind):
        raise ConfigError(f"config.{path}: is a section; set one of its leaves")
    return kind


def leaf_value(kind: Any, text: str, path: str) -> Any:
    """Return what the command line's text means to a leaf of this type.

    Raises:
      ConfigError: it is not allowed there.
    """
    mistakes: list[str] = []
    value = _convert(kind, _read(kind, text), f"config.{path}", mistakes)
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    return value


def _read(kind: Any, text: str) -> Any:
    return text if kind is str else _literal(text)


def _literal(text: str) -> Any:
    """Read a Python literal as the command line spells it, or return the text."""
    words = {"true": True, "false": False, "none": "none"}  # a choice's name
    if text.lower() in words:
        return words[text.lower()]
    try:
        return plain(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text  # {[]: 1} is no value, and brackets can be too deep for Python


def build(kind: Any, value: Any, path: str, mistakes: list[str]) -> Any:
    """Return `value` as the dataclass `kind`, or None after noting mistakes.

    Of a union of dataclasses, the leaf `kind` picks one.
    """
    if not isinstance(value, dict):
        mistakes.append(f"{path} = {value!r}: must be a section")
        return None
    kinds = _kinds(kind)
    if kinds and value.get("kind", kinds[0]) not in kinds:
        _convert(Literal[tuple(kinds)], value["kind"], f"{path}.kind", mistakes)
        return None
    kind = _member(kind, value)
    fields = _fields(kind)
    mistakes += [
        _unknown(f"{path}.{k}", k, list(fields)) for k in value.keys() - fields
    ]
    before = len(mistakes)
    leaves = {
        name: _convert(fields[name], item, f"{path}.{name}", mistakes)
        for name, item in value.items()
        if name in fields
    }
    return kind(**leaves) if len(mistakes) == before else None


def _is_section(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or isinstance(kind, types.UnionType)


def _kinds(section: Any) -> list[str]:
    """Return the values that pick each member of a union of dataclasses."""
    if not isinstance(section, types.UnionType):
        return []
    members = typing.get_args(section)
    return [k for m in members for k in typing.get_args(_fields(m)["kind"])]


def _member(section: Any, value: Any) -> Any:
    """Return the member of a union that `value["kind"]` picks, or its first."""
    if not isinstance(section, types.UnionType):
        return section
    members = typing.get_args(section)
    named = value.get("kind") if isinstance(value, dict) else None
    of_kind = (m for m in members if named in typing.get_args(_fields(m)["kind"]))
    return next(of_kind, members[0])


def _convert(kind: Any, value: Any, path: str, mistakes: list[str]) -> Any:
    if _is_section(kind):
        return build(kind, value, path, mistakes)
    if typing.get_origin(kind) is tuple and isinstance(value, tuple):
        item = typing.get_args(kind)[0]
        return tuple(
            _convert(item, v, f"{path}[{i}]", mistakes) for i, v in enumerate(value)
        )
    allowed = kind
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e6 steps
    if not _fits(allowed, kind, value):
        mistakes.append(f"{path} = {value!r}: {_expected(allowed, value)}")
    return value


def _fits(allowed: Any, kind: Any, value: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        return any(value == c and type(value) is type(c) for c in choices)
    if not isinstance(kind, type) or type(value) is not kind:
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if typing.get_origin(allowed) is Annotated:
        return value in typing.get_args(allowed)[1]
    return True


def _expected(kind: Any, value: Any) -> str:
    if typing.get_origin(kind) is Literal:
        choices = [str(c) for c in typing.get_args(kind)]
        return f"must be one of {', '.join(choices)}{nearest(str(value), choices)}"
    if typing.get_origin(kind) is Annotated:
        base, limits = typing.get_args(kind)
        return f"must be {_NAMES[base]} {limits}"
    if typing.get_origin(kind) is tuple:
        return "must be a tuple, such as ('a',)"
    return f"must be {_NAMES[kind]}"


_NAMES = {
    int: "an integer",
    float: "a finite number",
    str: "a string",
    bool: "true or false",
}


def _fields(kind: Any) -> dict[str, Any]:
    """Return the type of each field by name."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _unknown(path: str, name: str, allowed: Sequence[str]) -> str:
    names = f"; allowed here: {', '.join(allowed)}" if allowed else ""
    return f"{path}: no such field{nearest(name, allowed)}{names}"


def load_module(path: str) -> types.ModuleType:
    """Import an experiment file, with its package's root on `sys.path`.

    Raises:
      ConfigError: it cannot be read, or is not Python (with file and line).
    """
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise ConfigError(f"{path}: not a Python file that can be read")
    root = file.resolve().parent
    while (root / "__init__.py").exists():
        root = root.parent
    spec = importlib.util.spec_from_file_location("lmjax_experiment", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(root))
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}"
        raise ConfigError(f"{where}: not Python: {error.msg}") from error
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{line.filename}:{line.lineno}"
        raise ConfigError(f"{where}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(root))
    return module
