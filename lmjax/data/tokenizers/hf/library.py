"""The `tokenizers` library: an optional dependency, imported when it is needed."""

from typing import Any

from lmjax.errors import ConfigError, UserError

FILE = "tokenizer.json"


def import_tokenizers() -> Any:
    """Return the module `tokenizers`.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            "config.tokenizer.kind = 'tokenizers' or 'words': needs a package that is "
            "not installed: pip install 'lmjax[hf]'"
        ) from error
    return tokenizers


def parse_tokenizer(serialized: bytes, *, name: str) -> Any:
    """Return the `tokenizers.Tokenizer` of a tokenizer.json.

    Args:
      serialized: the tokenizer.json.
      name: its name in errors.

    Raises:
      UserError: it is none.
    """
    tokenizer_class = import_tokenizers().Tokenizer
    try:
        core = tokenizer_class.from_buffer(serialized)
    except Exception as error:  # the library raises nothing narrower
        why = " ".join(str(error).split())
        raise UserError(f"{name}: not a tokenizer.json: {why}") from error
    core.no_truncation()
    core.no_padding()
    return core
