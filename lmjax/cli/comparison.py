"""What `lmjax compare` prints, and the picture or page that it writes."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmjax.cli.pictures import SUFFIXES, check_picture
from lmjax.fileio import write_bytes

_WIDTH = 200
_PERCENT = 100
PAGE = ".html"


def check_output(path: Path) -> None:
    """Check that a picture or a page can be written, before anything is computed.

    Raises:
      UserError: it cannot.
    """
    check_picture(path, flag="--output", suffixes=(*SUFFIXES, PAGE))


def show(found: Mapping[str, Any], *, as_json: bool, output: Path | None) -> None:
    """Print a comparison, and write its picture or page.

    Raises:
      UserError: it cannot be written.
    """
    if as_json:
        print(json.dumps(found))
    else:
        _print(found, Console(highlight=False, soft_wrap=True, width=_WIDTH))
    if output is None:
        return
    if output.suffix != PAGE:
        from lmjax.inference.compare_plot import write_plot

        write_plot(found, output)
        return
    console = Console(
        record=True, file=io.StringIO(), highlight=False, soft_wrap=True, width=_WIDTH
    )
    _print(found, console)
    write_bytes(output, console.export_html(inline_styles=True).encode())


def _print(found: Mapping[str, Any], console: Console) -> None:
    console.print(
        f"{found['task']}: {found['input']}, {found['num_units']:,} {found['units']}; "
        "differences from the first with 95% intervals",
        markup=False,
    )
    console.print(_table(found))
    for note in found["notes"]:
        console.print(f"note: {note}", markup=False)
    if found["most_different"]:
        console.print("most different:")
    for unit in found["most_different"]:
        losses = "  ".join(f"{loss:.4g}" for loss in unit["losses"])
        place = unit.get("place", f"document {unit['number'] + 1}")
        console.print(f"  {place}: losses {losses}", markup=False)
        if "predictions" in unit:
            said = "  |  ".join(map(_short, unit["predictions"]))
            console.print(f"    {said}", markup=False)
        console.print(f"    {_short(unit['text'])}", markup=False)


def _table(found: Mapping[str, Any]) -> Table:
    models = found["models"]
    table = Table(box=None)
    table.add_column("")
    for model in models:
        name = Path(model["workdir"]).name
        table.add_column(name, justify="right", no_wrap=True)
    for name, values in _rows(models):
        table.add_row(name, *values)
    return table


def _rows(models: Any) -> Iterator[tuple[str, list[str]]]:
    yield "parameters", [f"{model['parameters']:,}" for model in models]
    for name in ("bytes_on_disk", "bytes_in_memory"):
        megabytes = [f"{model[name] / 1e6:,.4g} MB" for model in models]
        yield name.removeprefix("bytes_").replace("_", " "), megabytes
    for name in ("prefill", "decode"):
        speeds = [model[f"{name}_tokens_per_second"] for model in models]
        if any(speeds):
            yield f"{name}, tokens/s", [f"{s:,.4g}" if s else "-" for s in speeds]
    shares = [model.get("agreement") for model in models]
    percent = [f"{share * _PERCENT:.2f}%" if share else "-" for share in shares]
    yield "agreement", percent
    for name in models[0]["metrics"]:
        yield name, [f"{model['metrics'][name]['value']:.4g}" for model in models]
        yield "", [_difference(model, name) for model in models]


def _difference(model: Mapping[str, Any], name: str) -> str:
    """Return what a model differs by from the first; "" for the first itself."""
    if "differences" not in model:
        return ""
    if name not in model["differences"]:
        return "not comparable"
    change = model["differences"][name]
    if change["low"] is None:
        return f"{change['value']:+.4g}"
    return f"{change['value']:+.4g} [{change['low']:+.4g}, {change['high']:+.4g}]"


def _short(value: Any, most: int = 100) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}..."
