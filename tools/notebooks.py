"""Build the notebooks of docs/notebooks from their sources, and run them.

    python tools/notebooks.py             # NAME.ipynb of every NAME.py
    python tools/notebooks.py --run 3     # run those whose names begin with 3, too

A source has the cells of a notebook after lines `# %%`, in the format of Jupytext. The
outputs of a notebook are kept while none of its cells changes: text and pictures, but
no progress bars.
"""

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent.parent / "docs" / "notebooks"
PARAMETERS = "parameters"  # the tag of the cell that says how large all is
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
SHOWN = ("image/png", "text/html", "text/plain")
TIMEOUT_SECONDS = 3600
_PROGRESS = '<pre style="white-space:pre;'  # a line of rich's


def main() -> None:
    """Build the notebooks, and run some."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", nargs="*", default=[], metavar="PREFIX")
    args = parser.parse_args()
    for source in sources():
        target = source.with_suffix(".ipynb")
        notebook = build(source)
        if any(source.name.startswith(prefix) for prefix in args.run):
            notebook = clean(run(notebook))
        elif target.exists():
            notebook = keep_outputs(notebook, json.loads(target.read_text()))
        target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def sources() -> list[Path]:
    """Return the sources of all notebooks, in their order."""
    return sorted(DIRECTORY.glob("[0-9]*.py"))


def build(source: Path) -> dict[str, Any]:
    """Return a notebook without outputs."""
    _, *parts = re.split(r"^# %%(.*)\n", source.read_text(), flags=re.MULTILINE)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    cells = [make_cell(i, head, text) for i, (head, text) in enumerate(pairs)]
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def make_cell(index: int, head: str, text: str) -> dict[str, Any]:
    """Return a cell; the text of Markdown is commented out in the source."""
    text = text.strip("\n")
    tags = [PARAMETERS] if PARAMETERS in head else []
    cell: dict[str, Any] = {"id": f"cell-{index}", "metadata": {"tags": tags}}
    if "[markdown]" in head:
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        cell |= {"cell_type": "markdown"}
    else:
        text = re.sub(r"^( *)# %", r"\1%", text, flags=re.MULTILINE)
        cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
    return cell | {"source": text.splitlines(keepends=True)}


def keep_outputs(notebook: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """Return a notebook with the outputs that it had, if its cells are the same."""
    of = lambda cells: [cell["source"] for cell in cells]
    return old if of(notebook["cells"]) == of(old["cells"]) else notebook


def run(
    notebook: dict[str, Any], parameters: str = "", *, directory: Path | None = None
) -> dict[str, Any]:
    """Return a notebook with the outputs of its cells.

    Args:
      notebook: of `build`.
      parameters: code that runs after the cell of the parameters.
      directory: to run in; by default a temporary one.
    """
    import nbformat
    from nbclient import NotebookClient

    cells = list(notebook["cells"])
    if parameters:
        at = next(i for i, c in enumerate(cells) if PARAMETERS in c["metadata"]["tags"])
        cells.insert(at + 1, make_cell(-1, "", parameters) | {"id": "given"})
    node = nbformat.reads(json.dumps({**notebook, "cells": cells}), as_version=4)
    with tempfile.TemporaryDirectory() as temporary:
        place = {"metadata": {"path": str(directory or temporary)}}
        NotebookClient(node, timeout=TIMEOUT_SECONDS, resources=place).execute()
    return json.loads(nbformat.writes(node))


def clean(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return a notebook with text and pictures alone, and no times of execution."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        kept = [one for output in cell["outputs"] for one in clean_output(output)]
        cell |= {"outputs": kept, "execution_count": number}
        cell["metadata"].pop("execution", None)
        for output in kept:
            if "execution_count" in output:
                output["execution_count"] = number
    return notebook


def clean_output(output: dict[str, Any]) -> list[dict[str, Any]]:
    """Return an output, or nothing if it is a progress bar or a warning."""
    if output["output_type"] == "stream":
        return [output] if output["name"] == "stdout" else []
    data = {name: output["data"][name] for name in SHOWN if name in output["data"]}
    text = "".join(data.get("text/plain", ""))
    if "".join(data.get("text/html", "")).startswith(_PROGRESS):
        return []
    if "image/png" in data:
        data.pop("text/plain", None)
    elif set(output["data"]) - {*SHOWN} or not text.strip():
        return []
    return [{**output, "data": data, "metadata": {}}]


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cells with code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def code(notebook: dict[str, Any]) -> str:
    """Return all code of a notebook, without magics."""
    texts = ("".join(cell["source"]) for cell in code_cells(notebook))
    return re.sub(r"^( *)%.*", r"\1pass", "\n".join(texts), flags=re.MULTILINE)


if __name__ == "__main__":
    main()
