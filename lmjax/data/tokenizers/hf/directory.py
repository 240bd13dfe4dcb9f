"""The files of a Hugging Face directory that make its tokenizer."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.data.tokenizers.files import read_file
from lmjax.errors import ConfigError
from lmjax.fileio import parse_json, read_json

# The files that a tokenizer may be in; the first that are all there are taken.
LAYOUTS: tuple[tuple[str, ...], ...] = (
    ("tokenizer.json",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
    ("source.spm", "target.spm", "vocab.json"),
    ("spiece.model",),
    ("tokenizer.model",),
    ("sentencepiece.bpe.model",),
)
# Those in which SentencePiece cuts the text.
PIECES = {layout for layout in LAYOUTS if layout[0].endswith((".spm", ".model"))}
_TOKENIZER_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_MODEL_SETTINGS = ("config.json", "generation_config.json")
# What an export writes again as it was.
_ORIGINALS = {
    *(name for layout in LAYOUTS for name in layout),
    *_TOKENIZER_SETTINGS,
    "chat_template.jinja",
}
_SUFFIXES = {".json": "tokenizer.json", ".txt": "vocab.txt", ".model": "spiece.model"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """What a directory says of its tokenizer.

    Attributes:
      path: the directory.
      layout: the files that hold the tokenizer, one of `LAYOUTS`.
      files: the content of all files that concern it, by name.
      settings: the JSON objects of the files of settings, {} for those not there.
    """

    path: Path
    layout: tuple[str, ...]
    files: Mapping[str, bytes]
    settings: Mapping[str, Mapping[str, Any]]

    @property
    def config(self) -> Mapping[str, Any]:
        """Return what tokenizer_config.json says."""
        return self.settings["tokenizer_config.json"]

    @property
    def family(self) -> str:
        """Return whose tokenizer it is, "bert" or "xlmroberta"; "": it is not said."""
        name = str(self.config.get("tokenizer_class") or "")
        name = name.removesuffix("Fast").removesuffix("Tokenizer").lower()
        if name in ("", "pretrained", "tokenizersbackend", "auto"):
            return self.model_type
        return name

    @property
    def model_type(self) -> str:
        """Return the family of the model beside it; "": it is not said."""
        name = str(self.settings["config.json"].get("model_type") or "")
        return name.replace("-", "").replace("_", "").lower()

    def text(self, name: str) -> str:
        """Return the text of a file, with line ends made "\\n"."""
        try:
            text = self.files[name].decode()
        except UnicodeDecodeError as error:
            raise self.damaged(name, "not UTF-8") from error
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def json_object(self, name: str) -> dict[str, Any]:
        """Return the JSON object that a file holds."""
        return parse_json(self.files[name], file=self.path / name)

    def token(self, role: str) -> str | None:
        """Return what is named `eos_token` and the like, for a role `eos`."""
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if token := content(self.settings[name].get(f"{role}_token")):
                return token
        return None

    def damaged(self, name: str, why: str) -> ConfigError:
        """Return the error to raise for a file."""
        return ConfigError(f"{self.path / name}: cannot be used: {why}")

    def unknown(self) -> ConfigError:
        """Return the error for a layout that is another family's own."""
        return ConfigError(
            f"{self.path}: has no tokenizer.json, and how {self.family!r} reads "
            f"{self.layout[0]} is not known here; save it with transformers' "
            "AutoTokenizer, which writes one"
        )


def content(token: Any) -> str | None:
    """Return the text of a token as the files of settings write one."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def find_layout(directory: Path) -> tuple[str, ...] | None:
    """Return which files of a directory hold a tokenizer; None: none do."""
    for layout in LAYOUTS:
        if all((directory / name).is_file() for name in layout):
            return layout
    return None


def open_pretrained(path: Path, *, name: str) -> Origin:
    """Read what concerns the tokenizer in a directory, or beside a file.

    Args:
      path: a directory; or a tokenizer.json, vocab.txt or SentencePiece file.
      name: what errors call it.

    Raises:
      ConfigError: there is none, or a file cannot be read.
    """
    directory = path if path.is_dir() else path.parent
    chosen = {} if path.is_dir() else _chosen(path, name)
    layout = tuple(chosen) or find_layout(directory)
    if layout is None:
        looked_for = ", ".join(" + ".join(layout) for layout in LAYOUTS)
        raise ConfigError(
            f"config.tokenizer.path = {name!r}: holds no tokenizer; looked for "
            f"{looked_for}"
        )
    held = {file.name: file for file in directory.iterdir() if file.is_file()}
    wanted = _ORIGINALS if path.is_dir() else set(_TOKENIZER_SETTINGS)
    files = {n: read_file(file) for n, file in held.items() if n in wanted}
    settings = {
        n: read_json(held[n]) if n in held else {}
        for n in (*_TOKENIZER_SETTINGS, *_MODEL_SETTINGS)
    }
    return Origin(
        path=directory, layout=layout, files=files | chosen, settings=settings
    )


def _chosen(path: Path, name: str) -> dict[str, bytes]:
    """Return the content of a file by the name that it has in a directory."""
    leaf = f"config.tokenizer.path = {name!r}"
    usual = path.name if (path.name,) in LAYOUTS else _SUFFIXES.get(path.suffix)
    if usual is None:
        raise ConfigError(
            f"{leaf}: must be a directory, or a tokenizer.json, vocab.txt or .model"
        )
    try:
        return {usual: path.read_bytes()}
    except OSError as error:
        raise ConfigError(f"{leaf}: cannot be read: {error.strerror}") from error
