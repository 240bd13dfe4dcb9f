"""A Hugging Face directory: a local one, or a snapshot of a model of the hub."""

import re
from pathlib import Path

from lmjax.errors import UserError
from lmjax.storage.cache import local_directory
from lmjax.storage.paths import open_path

ADAPTER_CONFIG = "adapter_config.json"  # of PEFT
# Neither pickles nor the weights of other frameworks are fetched.
_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.spm", "*.txt", "*.bpe", "*.jinja"]


def find_directory(source: str, *, flag: str) -> Path:
    """Return a local directory; fetch the model if `source` is ORG/NAME.

    Args:
      source: a directory, or the name of a model of the hub.
      flag: how errors name it.

    Raises:
      UserError: it is neither, or cannot be fetched.
    """
    path = local_directory(open_path(source)).expanduser()
    if is_adapter(path) and not (path / "config.json").is_file():
        raise UserError(
            f"{flag}={source}: holds adapters of PEFT without their model; lmjax "
            f"import --from={source} --base=MODEL --workdir=NEW makes a workdir of both"
        )
    if path.is_dir():
        return path
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
        raise UserError(
            f"{flag}={source}: neither a directory nor the name of a model (ORG/NAME)"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"{flag}={source}: no such directory; to fetch a model of that name, "
            "install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(source, allow_patterns=_PATTERNS))
    except Exception as error:  # of many classes: network, name, licence
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{flag}={source}: no such directory, and the model cannot be fetched: "
            f"{first}"
        ) from error


def is_adapter(source: str | Path) -> bool:
    """Return whether a directory holds adapters in PEFT's files."""
    return (Path(source).expanduser() / ADAPTER_CONFIG).is_file()
