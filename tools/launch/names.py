"""Names that clusters accept."""

import hashlib
import re
import shutil

from lmjax.errors import UserError

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def to_label(text: str, *, max_length: int) -> str:
    """Return a text as an RFC 1123 label: a-z, 0-9 and -, which begins with a letter.

    A text that must be changed gets the hash of the original, so that different texts
    have different labels.
    """
    label = re.sub(r"[^a-z0-9]+", "-", text.lower(), flags=re.ASCII).strip("-")
    if not label or not label[0].isalpha():
        label = f"run-{label}".strip("-")
    if label == text and len(label) <= max_length:
        return label
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:6]
    return f"{label[: max_length - 7].rstrip('-')}-{digest}"


def check_label(flag: str, text: str) -> None:
    """Raise `UserError` if the value of a flag is no RFC 1123 label or subdomain."""
    labels = text.split(".")
    if len(text) > 253 or not all(
        _LABEL.fullmatch(label) and len(label) <= 63 for label in labels
    ):
        raise UserError(
            f"{flag}={text}: must be a name of Kubernetes: lower case letters, digits, "
            "'-' and '.', which begins and ends with a letter or digit"
        )


def find_program(name: str, *, package: str) -> str:
    """Return the path of a program.

    Raises:
      UserError: it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise UserError(f"{name}: no such program here; it comes with {package}")
    return path
