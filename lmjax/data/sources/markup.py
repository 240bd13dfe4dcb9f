"""Documents without their markup: the text of HTML and Markdown."""

import re
from typing import Any

from lmjax.data.sources.documents import Documents, hash_json
from lmjax.errors import UserError

_VERSION = 1
_HIDDEN = ("script", "style", "noscript", "template", "head")
# Elements that stand on lines of their own.
_BLOCKS = [
    "address",
    "article",
    "aside",
    "blockquote",
    "br",
    "caption",
    "dd",
    "details",
    "div",
    "dl",
    "dt",
    "figcaption",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "li",
    "main",
    "nav",
    "ol",
    "p",
    "pre",
    "section",
    "summary",
    "table",
    "td",
    "th",
    "tr",
    "ul",
]
_LINES = re.compile(r"[ \t\xa0]*\n\s*")


class PlainDocuments:
    """The text of documents in HTML or Markdown.

    Args:
      documents: with markup.
      markup: "html" or "markdown".
    """

    def __init__(self, documents: Documents, *, markup: str) -> None:
        self._documents = documents
        self._markup = markup
        import_soup()

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def num_files(self) -> int:
        """Count the files, 0 where there are none."""
        return getattr(self._documents, "num_files", 0)

    def __getitem__(self, index: int, /) -> str:
        return strip_markup(self._documents[index], self._markup)

    def size(self, index: int, /) -> int:
        """Return the bytes of one document with its markup: no less than its text."""
        return self._documents.size(index)

    def fingerprint(self) -> str:
        """Hash the documents and what they are written in."""
        return hash_json(self._markup, _VERSION, self._documents.fingerprint())


def import_soup() -> Any:
    """Return the module `bs4`.

    Raises:
      UserError: it is not installed.
    """
    try:
        import bs4
    except ImportError as error:
        raise UserError(
            "data.markup: needs a package that is not installed: "
            "pip install 'lmjax[data]'"
        ) from error
    return bs4


def strip_markup(text: str, markup: str) -> str:
    """Return the text of a document: keep, html or markdown."""
    if markup == "keep":
        return text
    return strip_markdown(text) if markup == "markdown" else strip_html(text)


def strip_html(text: str) -> str:
    """Return the text of HTML: a line for each paragraph, heading, item or cell."""
    bs4 = import_soup()
    soup = bs4.BeautifulSoup(text, "html.parser")
    strings = lambda element: [  # not those of comments
        part
        for part in element.find_all(string=True)
        if type(part) is bs4.NavigableString
    ]
    for element in soup(_HIDDEN):
        element.decompose()
    for element in soup("pre"):
        for part in strings(element):
            part.replace_with(part.replace("\n", "\0"))
    for part in strings(soup):
        if not part.find_parent("pre"):
            part.replace_with(re.sub(r"\s+", " ", part))
    for element in soup(_BLOCKS):
        element.insert_before("\n")
        element.insert_after("\n")
    lines = _LINES.sub("\n", soup.get_text()).strip()
    return lines.replace("\0", "\n").strip()


def strip_markdown(text: str) -> str:
    """Return the text of Markdown (CommonMark, and tables), as that of its HTML."""
    from markdown_it import MarkdownIt

    return strip_html(MarkdownIt("commonmark").enable("table").render(text))
