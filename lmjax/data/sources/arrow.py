"""Parquet and Arrow files, opened through pyarrow: their parts, types and classes."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmjax.errors import UserError

_BATCH_BYTES = 4 << 20  # decoded at once
_MAX_ROWS = 1 << 14
PARQUET, ARROW = b"PAR1", b"ARROW1"


def import_pyarrow() -> Any:
    """Return pyarrow.

    Raises:
      UserError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "data.source: parquet and arrow need a package that is not installed: "
            "pip install 'lmjax[data]'"
        ) from error
    return pyarrow


class ArrowTable(NamedTuple):
    """An open file: parts that can be read from their beginning."""

    schema: Any
    num_rows: list[int]  # of each part
    # (part, columns) -> batches of its rows in order
    read: Callable[[int, Sequence[str]], Iterator[Any]]


def open_table(file: Any) -> ArrowTable:
    """Open a local path, or a file object whose footer alone is read."""
    pa = import_pyarrow()
    source = pa.memory_map(str(file)) if isinstance(file, Path) else file
    head = source.read(len(ARROW))
    source.seek(0)
    if head.startswith(PARQUET):
        return _open_parquet(pa, source)
    if head == ARROW:
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    else:
        reader = pa.ipc.open_stream(source)
        batches = [*reader]

    def read(part: int, columns: Sequence[str]) -> Iterator[Any]:
        names = dict.fromkeys(column.partition("/")[0] for column in columns)
        batch = batches[part].select([*names])
        size = _rows_per_batch(batch.nbytes, batch.num_rows)
        for start in range(0, batch.num_rows, size):
            yield batch.slice(start, size)

    return ArrowTable(reader.schema, [batch.num_rows for batch in batches], read)


def _open_parquet(pa: Any, source: Any) -> ArrowTable:
    parquet = pa.parquet.ParquetFile(source, pre_buffer=False)
    groups = [
        parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)
    ]

    def read(part: int, columns: Sequence[str]) -> Iterator[Any]:
        group = groups[part]
        size = _rows_per_batch(group.total_byte_size, group.num_rows)
        yield from parquet.iter_batches(
            size,
            row_groups=[part],
            columns=[column.replace("/", ".") for column in columns],
            use_threads=False,
        )

    return ArrowTable(parquet.schema_arrow, [group.num_rows for group in groups], read)


def _rows_per_batch(num_bytes: int, num_rows: int) -> int:
    """Return how many rows are decoded at once."""
    return max(1, min(_MAX_ROWS, _BATCH_BYTES * num_rows // max(num_bytes, 1)))


def is_damage(error: Exception) -> bool:
    """Return whether an error tells of the content of a file."""
    pa = import_pyarrow()
    return isinstance(error, pa.ArrowException | OSError | UnicodeDecodeError)


def leaf_types(fields: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the name and the type of each column, those of nested ones with a slash."""
    pa = import_pyarrow()
    for field in fields:
        if pa.types.is_struct(field.type):
            yield from leaf_types(field.type, f"{prefix}{field.name}/")
        else:
            yield prefix + field.name, field.type


def is_text(kind: Any) -> bool:
    """Return whether a type of pyarrow is text, also as a dictionary."""
    types = import_pyarrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
    )


def has_bytes(kind: Any) -> bool:
    """Return whether a type of pyarrow is bytes, or holds some."""
    types = import_pyarrow().types
    if types.is_struct(kind):
        return any(has_bytes(field.type) for field in kind)
    if (
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
    ):
        return has_bytes(kind.value_type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def class_names(schema: Any) -> dict[str, list[str]]:
    """Return the names of the classes of those columns that `datasets` declares so."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = noted["info"]["features"]
        found = {name: _declared_names(feature) for name, feature in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: names for name, names in found.items() if names}


def _declared_names(feature: Any) -> list[str]:
    """Return the names of the classes of a feature, or of the items of lists."""
    while not isinstance(feature, dict) or "names" not in feature:
        if isinstance(feature, list):
            feature = feature[0]
        elif isinstance(feature, dict) and "feature" in feature:
            feature = feature["feature"]
        else:
            return []
    return feature["names"] if feature.get("_type") == "ClassLabel" else []


def to_json(value: Any, names: list[str] | None) -> Any:
    """Return a value as JSON has it; a class by its name."""
    if isinstance(value, list):
        return [to_json(item, names) for item in value]
    if isinstance(value, dict):
        return {name: to_json(item, names) for name, item in value.items()}
    if names and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)  # dates, decimals


def flatten(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of a record, those of nested ones with a slash."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value
