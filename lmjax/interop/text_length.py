"""The length at which a tokenizer cuts texts: `model_max_length` of its settings."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.config.model import UNLIMITED
from lmjax.config.task import MAX_SPECIAL_TOKENS, SpanQAConfig
from lmjax.fileio import read_json

_FILE, _KEY = "tokenizer_config.json", "model_max_length"


def read_max_length(directory: Path) -> int:
    """Return the greatest length of a directory's tokenizer; 0 if it has none."""
    file = directory / _FILE
    length = read_json(file).get(_KEY) if file.is_file() else None
    if not isinstance(length, int | float) or isinstance(length, bool):
        return 0
    # Where there is no limit, transformers writes a number beyond any text.
    return int(length) if 0 < length < UNLIMITED else 0


def write_max_length(files: Mapping[str, bytes], length: int) -> dict[str, bytes]:
    """Return a tokenizer's files with a greatest length; none if there are no files."""
    if not files:
        return {}
    settings = {**json.loads(files.get(_FILE, b"{}")), _KEY: length}
    content = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    return {**files, _FILE: content.encode()}


def fit_windows(task: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return a task's fields; for span_qa so that its windows fit into a short row."""
    default = SpanQAConfig()
    sizes = default.max_question_tokens, default.stride, default.max_answer_tokens
    if task.get("kind") != "span_qa" or sum(sizes) + MAX_SPECIAL_TOKENS <= length:
        return dict(task)
    parts = {"max_question_tokens": 4, "stride": 4, "max_answer_tokens": 8}
    return {**task, **{leaf: max(length // n, 1) for leaf, n in parts.items()}}
