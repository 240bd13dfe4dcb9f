"""Whether a picture can be written: checked before anything is computed."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from lmjax.errors import UserError
from lmjax.storage.paths import is_remote

SUFFIXES = (".png", ".pdf", ".svg")


def check_picture(path: Path, *, flag: str, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Check that a picture can be written.

    Args:
      path: the file.
      flag: that names it.
      suffixes: that it may have.

    Raises:
      UserError: its suffix is none of these, there is no such directory, or
        matplotlib is not installed.
    """
    if path.suffix not in suffixes:
        raise UserError(f"{flag}={path}: must end in one of {', '.join(suffixes)}")
    if not is_remote(path) and not path.parent.is_dir():
        raise UserError(f"{flag}={path}: there is no directory {path.parent}")
    if path.suffix in SUFFIXES and importlib.util.find_spec("matplotlib") is None:
        raise UserError(f"{flag}={path}: needs pip install 'lmjax[plan]'")
