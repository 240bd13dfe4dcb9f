"""Spaces that some tokenizers of Hugging Face take out of the texts that they decode.

As `clean_up_tokenization_spaces` of tokenizer_config.json asks transformers to.
"""

_REPLACED = (
    *((f" {sign}", sign) for sign in ".?!,"),
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
)
# Ends of a text whose space may go once the text continues.
UNSETTLED = (" '", " n", " n'", " 'v", " 'r")


def clean_up(text: str) -> str:
    """Return a text without the spaces before punctuation and short forms."""
    for found, kept in _REPLACED:
        text = text.replace(found, kept)
    return text
