"""The files of a tokenizer in a Hugging Face directory."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmjax.data.tokenizers.files import read_file
from lmjax.errors import ConfigError, UserError
from lmjax.fileio import parse_json, read_json

# The files that a tokenizer may consist of; the first format found complete is used.
FORMATS: tuple[tuple[str, ...], ...] = (
    ("tokenizer.json",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
    ("source.spm", "target.spm", "vocab.json"),
    ("spiece.model",),
    ("tokenizer.model",),
    ("sentencepiece.bpe.model",),
)
_TOKENIZER_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_MODEL_SETTINGS = ("config.json", "generation_config.json")
# Files that an export writes again, byte for byte.
_EXPORTED = {
    *(name for names in FORMATS for name in names),
    *_TOKENIZER_SETTINGS,
    "chat_template.jinja",
    "chat_template.json",
}
# The usual name of a file whose own name is in no format.
_USUAL_NAMES = {
    ".json": "tokenizer.json",
    ".txt": "vocab.txt",
    ".model": "spiece.model",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HFTokenizerFiles:
    """The files of a tokenizer, and the settings in the files around them.

    Attributes:
      path: the directory.
      format: the names of the files that hold the tokenizer, one of `FORMATS`.
      contents: of the files that an export writes again, by name.
      settings: the JSON objects of the files of settings; {} for a missing file.
    """

    path: Path
    format: tuple[str, ...]
    contents: Mapping[str, bytes]
    settings: Mapping[str, Mapping[str, Any]]

    @property
    def is_sentencepiece(self) -> bool:
        """Return whether SentencePiece tokenizes the text."""
        return self.format[0].endswith((".spm", ".model"))

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the content of tokenizer_config.json."""
        return self.settings["tokenizer_config.json"]

    @property
    def class_name(self) -> str:
        """Return the short name of the tokenizer's class; "" if none is named."""
        name = str(self.config.get("tokenizer_class") or "")
        return name.removesuffix("Fast").removesuffix("Tokenizer").lower()

    @property
    def family(self) -> str:
        """Return the family of the tokenizer, such as "xlmroberta"; "" if unknown."""
        name = self.class_name
        if name in ("", "pretrained", "tokenizersbackend", "auto"):
            return self.model_type
        return name

    @property
    def model_type(self) -> str:
        """Return the family of the model in the directory; "" if unknown."""
        name = str(self.settings["config.json"].get("model_type") or "")
        return name.replace("-", "").replace("_", "").lower()

    def read_text(self, name: str) -> str:
        """Return the text of a file, with line ends normalized to "\\n".

        Raises:
          UserError: it is not UTF-8.
        """
        try:
            text = self.contents[name].decode()
        except UnicodeDecodeError as error:
            raise self.error(name, "not UTF-8") from error
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file.

        Raises:
          UserError: it holds something else.
        """
        return parse_json(self.contents[name], file=self.path / name)

    def special_token(self, role: str) -> str | None:
        """Return the token that the settings name for a role: `eos_token` for "eos"."""
        names = ["special_tokens_map.json", "tokenizer_config.json"]
        if self.config.get("added_tokens_decoder") is not None:
            names.reverse()  # transformers reads the map only without these
        for name in names:
            if token := token_text(self.settings[name].get(f"{role}_token")):
                return token
        return None

    def cleans_up(self, model: str) -> bool:
        """Return whether decoded texts lose spaces; see `spaces.clean_up`.

        Args:
          model: the type of the tokenizer; that of BPE keeps them, as in transformers.
        """
        key = "clean_up_tokenization_spaces"
        although = f"{key}_for_bpe_even_though_it_will_corrupt_output"
        allowed = model != "BPE" or self.config.get(although)
        return bool(self.config.get(key) and allowed)

    def error(self, name: str, why: str) -> UserError:
        """Return an error about a file."""
        return UserError(f"{self.path / name}: cannot be used: {why}")

    def unknown_family_error(self) -> UserError:
        """Return the error for a family whose use of the format is not known."""
        return UserError(
            f"{self.path}: has no tokenizer.json, and {self.format[0]} of "
            f"{self.family!r} is not supported; save the tokenizer with transformers' "
            "AutoTokenizer, which writes a tokenizer.json"
        )


def token_text(token: Any) -> str | None:
    """Return the text of a token in a file of settings: a string or an object."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def find_format(directory: Path) -> tuple[str, ...] | None:
    """Return the names of the files that hold a tokenizer; None if there are none."""
    for names in FORMATS:
        if all((directory / name).is_file() for name in names):
            return names
    return None


def read_tokenizer_files(path: Path, *, name: str) -> HFTokenizerFiles:
    """Read the files of a tokenizer.

    Args:
      path: a directory; or a tokenizer.json, vocab.txt or SentencePiece file, which is
        used with the settings in its directory.
      name: how errors name it.

    Raises:
      ConfigError: there is no tokenizer.
      UserError: a file cannot be read.
    """
    directory = path if path.is_dir() else path.parent
    given = {} if path.is_dir() else _read_single_file(path, name)
    names = tuple(given) or find_format(directory)
    if names is None:
        allowed = ", ".join(" + ".join(names) for names in FORMATS)
        raise ConfigError(
            f"config.tokenizer.path = {name!r}: holds no tokenizer; expected {allowed}"
        )
    present = {file.name: file for file in directory.iterdir() if file.is_file()}
    exported = _EXPORTED if path.is_dir() else set(_TOKENIZER_SETTINGS)
    contents = {n: read_file(file) for n, file in present.items() if n in exported}
    settings = {
        n: read_json(present[n]) if n in present else {}
        for n in (*_TOKENIZER_SETTINGS, *_MODEL_SETTINGS)
    }
    return HFTokenizerFiles(
        path=directory, format=names, contents=contents | given, settings=settings
    )


def files_in_memory(
    contents: Mapping[str, bytes], *, model_config: Mapping[str, Any]
) -> HFTokenizerFiles:
    """Return the files of a directory that has not been written.

    Args:
      contents: of the files by name.
      model_config: the config.json.

    Raises:
      UserError: they hold no tokenizer.
    """
    path = Path("tokenizer")
    names = next((f for f in FORMATS if set(f) <= contents.keys()), None)
    if names is None:
        raise UserError(f"{path}: holds no tokenizer")
    settings: dict[str, Mapping[str, Any]] = {
        name: parse_json(contents[name], file=path / name) if name in contents else {}
        for name in _TOKENIZER_SETTINGS
    }
    settings |= {"config.json": model_config, "generation_config.json": {}}
    return HFTokenizerFiles(
        path=path, format=names, contents=contents, settings=settings
    )


def _read_single_file(path: Path, name: str) -> dict[str, bytes]:
    """Return the content of a file, by its usual name in a directory."""
    leaf = f"config.tokenizer.path = {name!r}"
    usual = path.name if (path.name,) in FORMATS else _USUAL_NAMES.get(path.suffix)
    if usual is None:
        raise ConfigError(
            f"{leaf}: expected a directory, or a tokenizer.json, vocab.txt or .model "
            "file"
        )
    try:
        return {usual: path.read_bytes()}
    except OSError as error:
        raise ConfigError(f"{leaf}: cannot be read: {error.strerror}") from error
