"""Word vectors in the formats of word2vec and GloVe: `lmjax export --to=FILE`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np

from lmjax.data.tokenizers.tokenizer import load_tokenizer
from lmjax.errors import UserError
from lmjax.fileio import open_atomic, write_errors
from lmjax.interop.hf import restore_model
from lmjax.run.checkpoint import Step
from lmjax.storage.paths import open_path
from lmjax.tasks.word_vectors import vector_table


def export_word_vectors(
    directory: str | Path, target: str | Path, *, step: Step = None
) -> str:
    """Write the embedding table of a model, of any kind, as a file of word vectors.

    Args:
      directory: the workdir.
      target: the new file; its suffix is the format: .vec the text of word2vec, .bin
        its binary form, .txt GloVe.
      step: of the checkpoint; by default the last one.

    Returns:
      What was written.

    Raises:
      UserError: a file exists, or cannot be read or written.
    """
    source, target = open_path(directory).expanduser(), open_path(target).expanduser()
    if target.exists():
        raise UserError(f"--to={target}: exists already")
    write = FORMATS[target.suffix]
    _, params = restore_model(source, step)
    words, vectors_ND = vector_table(params, load_tokenizer(source / "tokenizer"))
    if jax.process_index() == 0:
        with write_errors(target), open_atomic(target) as out:
            write(out, words, vectors_ND)
    return f"{target}: {len(words):,} words, {vectors_ND.shape[1]} dimensions"


def _write_glove(out: BinaryIO, words: Sequence[str], vectors_ND: np.ndarray) -> None:
    for word, vector_D in zip(words, vectors_ND, strict=True):
        # The shortest numbers that read back as the same float32.
        numbers = " ".join(map(str, vector_D))
        out.write(f"{word} {numbers}\n".encode())


def _write_text(out: BinaryIO, words: Sequence[str], vectors_ND: np.ndarray) -> None:
    out.write(_header(vectors_ND))
    _write_glove(out, words, vectors_ND)


def _write_binary(out: BinaryIO, words: Sequence[str], vectors_ND: np.ndarray) -> None:
    out.write(_header(vectors_ND))
    for word, vector_D in zip(words, vectors_ND, strict=True):
        out.write(word.encode() + b" " + vector_D.astype("<f4").tobytes() + b"\n")


def _header(vectors_ND: np.ndarray) -> bytes:
    return "{} {}\n".format(*vectors_ND.shape).encode()


FORMATS: dict[str, Callable[[BinaryIO, Sequence[str], np.ndarray], None]] = {
    ".vec": _write_text,
    ".bin": _write_binary,
    ".txt": _write_glove,
}
