"""Blank lines of files to predict: each has its place among the predictions."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmjax.data.sources.text import BOM, read_errors


class LinesAndBlanks:
    """Examples in lines, with {} for each blank line between and after them.

    Args:
      examples: of a file, one for each line that is not blank.
      file: the file.
      lines_of: a file with its lines in UTF-8: itself, or a copy.
    """

    def __init__(self, examples: Any, file: Path, lines_of: Path) -> None:
        with read_errors(file, path="--input"), lines_of.open("rb") as lines:
            if lines.read(len(BOM)) != BOM:
                lines.seek(0)
            first = lines.readline().removeprefix(BOM)
            texts = itertools.chain([first] if first else [], lines)
            has_example = np.array([bool(line.strip()) for line in texts], bool)
        assert has_example.sum() == len(examples)
        self._examples = examples
        self._file = file
        self._has_example = has_example
        self._number = np.cumsum(has_example) - 1

    def __len__(self) -> int:
        return len(self._has_example)

    def __getitem__(self, index: int, /) -> Any:
        if not self._has_example[index]:
            return {}
        return self._examples[int(self._number[index])]

    def where(self, index: int, /) -> str:
        """Return FILE:LINE."""
        return f"{self._file}:{index + 1}"


def is_blank(example: Any) -> bool:
    """Return whether an example is an empty text, or all of its fields are."""
    if isinstance(example, Mapping):
        return all(isinstance(v, str) and not v.strip() for v in example.values())
    return isinstance(example, str) and not example.strip()
