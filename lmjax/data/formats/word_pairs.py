"""Files that judge word vectors: similarities of pairs of words, and analogies."""

import re

from lmjax.data.sources.documents import expand_path
from lmjax.data.sources.text import read_lines
from lmjax.errors import UserError


def read_similarities(path: str, *, leaf: str) -> list[tuple[str, str, float]]:
    """Return pairs of words and their similarity, as people judge it.

    A line has two words and, as its first number, their similarity, separated by tabs,
    commas or spaces: WordSim-353, SimLex-999, MEN, RG-65. The first line may be names.

    Args:
      path: the file.
      leaf: the dotted path of the leaf that names it.

    Raises:
      UserError: it cannot be read, or a line is not like that (with FILE:LINE).
    """
    file, pairs = expand_path(path, leaf=leaf), []
    lines = read_lines(file, path=leaf)
    mark = "\t" if any("\t" in line for line in lines) else r",|;|\s+"
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        first, *rest = (cell.strip() for cell in re.split(mark, line.strip()))
        scores = [value for value in map(_parse_number, rest[1:]) if value is not None]
        if scores:
            pairs.append((first, rest[0], scores[0]))
        elif number > 1 and pairs:
            raise UserError(f"{leaf}: {file}:{number}: not two words and a number")
    if not pairs:
        raise UserError(f"{leaf}: {file}: has no two words and a number in a line")
    return pairs


def read_analogies(path: str, *, leaf: str) -> list[tuple[str, str, str, str]]:
    """Return analogies, four words a line, as in word2vec's questions-words.txt.

    Lines that begin with a colon are headings. Arguments as for `read_similarities`.

    Raises:
      UserError: it cannot be read, or a line has not four words (with FILE:LINE).
    """
    file, questions = expand_path(path, leaf=leaf), []
    for number, line in enumerate(read_lines(file, path=leaf), start=1):
        words = line.split()
        if not words or words[0].startswith(":"):
            continue
        if len(words) != 4:
            raise UserError(f"{leaf}: {file}:{number}: has {len(words)} words, not 4")
        questions.append((words[0], words[1], words[2], words[3]))
    if not questions:
        raise UserError(f"{leaf}: {file}: has no analogy")
    return questions


def _parse_number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
