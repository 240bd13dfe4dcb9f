"""Score the lines of a file: `lmjax score`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmjax.data.sources.text import read_lines
from lmjax.errors import UserError
from lmjax.inference.language_model import load
from lmjax.run.checkpoint import Step

BLOCK_SIZE = 1024


def score_file(
    directory: Path, file: Path, *, step: Step, whole: bool = False, **options: Any
) -> Iterator[dict[str, Any]]:
    """Yield the score of each line of a file, `context<TAB>text` or `text`.

    Args:
      directory: the workdir.
      file: of texts.
      step: of the checkpoint.
      whole: the file is one text, with all its lines.
      options: of `LanguageModel.score`.

    Raises:
      UserError: the file cannot be read, is not UTF-8, or has no context where the
        model needs one; the line is named.
    """
    lines = read_lines(file, path=f"--input={file}", keep_ends=whole)
    texts = ["".join(lines)] if whole else [*map(_parse_line, lines)]
    lm = load(directory, step=step)
    if lm.model.config.is_encoder_decoder:
        for i, text in enumerate(texts, start=1):
            if isinstance(text, str):
                raise UserError(
                    f"{file}:{i}: no context: an encoder-decoder scores "
                    "source<TAB>target"
                )
    for first in range(0, len(texts), BLOCK_SIZE):
        block = texts[first : first + BLOCK_SIZE]
        yield from lm.score(block, **options)


def _parse_line(line: str) -> str | tuple[str, str]:
    context, tab, text = line.partition("\t")
    return (context, text) if tab else line
