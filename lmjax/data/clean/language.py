"""The language of a text, by the model that is in the package `py3langid`."""

import functools
from collections.abc import Sequence
from typing import Any

from lmjax.errors import UserError, nearest

_MAX_CHARACTERS = 4000  # from the middle of a longer text


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise UserError(
            "--language: needs a package that is not installed: "
            "pip install 'lmjax[clean]'"
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def check_languages(languages: Sequence[str]) -> None:
    """Raise a `UserError` for a code (ISO 639-1) that the model does not know."""
    known = sorted({*_identifier().labels})
    for language in languages:
        if language not in known:
            raise UserError(
                f"--language={language}: unknown{nearest(language, known)}; must be "
                f"among {', '.join(known)}"
            )


def find_language(text: str) -> str:
    """Return the code of the most likely language."""
    start = max(0, (len(text) - _MAX_CHARACTERS) // 2)
    return str(_identifier().classify(text[start : start + _MAX_CHARACTERS])[0])
