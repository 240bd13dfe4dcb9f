"""The page of a report: one HTML file that needs no network."""

import html
import importlib.resources
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lmjax.report.predictions import Judged
from lmjax.report.runs import RunRecord, list_curves, list_differences, list_leaves

_COLORS = ("#2f6da8", "#e07b00", "#2e8b57", "#b5342c", "#7a57b0", "#5f6b76")
_SPLITS = ("train", "valid", "test")
# Charts in this order; those of other metrics follow by name.
_FIRST = (
    *("loss", "perplexity", "bits_per_byte", "accuracy", "learning_rate", "grad_norm"),
    *("tokens_per_second", "step_seconds", "mfu", "peak_bytes", "data_wait_seconds"),
)
_MAX_SAMPLES = 12  # steps of which samples are shown, evenly spread
_MAX_LABELS = 40  # of a confusion matrix


def write_page(runs: Sequence[RunRecord], judged: Sequence[Judged]) -> str:
    """Return the HTML of a report.

    Args:
      runs: at least one.
      judged: files of predictions.
    """
    colors = [_COLORS[i % len(_COLORS)] for i in range(len(runs))]
    curves = [list_curves(run) for run in runs]
    data = [
        {"name": run.name, "color": color, "curves": found}
        for run, color, found in zip(runs, colors, curves, strict=True)
    ]
    title = ", ".join(run.name for run in runs)
    samples = "".join(_samples(run, several=len(runs) > 1) for run in runs)
    parts = [
        f"<h1>{_escape(title)}</h1>",
        _section("Results", _results(runs)),
        _section("Curves", _controls(runs, colors) + _charts(curves)),
        _section("Predictions", "".join(map(_judgement, judged))),
        _section("Samples", samples),
        _section("Differences of the configs", _differences(runs)),
        _section("Starts", _starts(runs)),
        _section("Configs", "".join(map(_config, runs))),
    ]
    return _TEMPLATE.format(
        title=_escape(title),
        css=_read("page.css"),
        body="\n".join(filter(None, parts)),
        # A text in the data must not end the script.
        data=json.dumps(data).replace("</", "<\\/"),
        script=_read("charts.js"),
    )


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{css}</style>
</head>
<body>
{body}
<script>const DATA = {data};
{script}</script>
</body>
</html>
"""


def _read(name: str) -> str:
    return (importlib.resources.files(__package__) / name).read_text()


def _escape(text: object) -> str:
    return html.escape(str(text))


def _section(title: str, content: str) -> str:
    return f"<section><h2>{_escape(title)}</h2>\n{content}</section>" if content else ""


def _table(
    rows: Iterable[Sequence[object]], *, head: Sequence[str], numbers: bool = False
) -> str:
    """Return a table; all columns but the first are numbers if `numbers`."""
    marks = ["", *[' class="number"' if numbers else ""] * len(head)]
    line = lambda cells, tag: "".join(
        f"<{tag}{mark}>{_escape(cell)}</{tag}>"
        for mark, cell in zip(marks, cells, strict=False)
    )
    body = "".join(f"<tr>{line(row, 'td')}</tr>\n" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{line(head, "th")}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _format(value: Any) -> str:
    if not isinstance(value, int | float):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _results(runs: Sequence[RunRecord]) -> str:
    """Return a table of the last value of each metric of evaluation."""
    last: list[dict[str, Any]] = []
    for run in runs:
        values: dict[str, Any] = {}
        for line in run.lines:
            split = line["split"]
            if split != "train":
                values |= {f"{split} {k}": v for k, v in line.items()}
        last.append(values)
    names = dict.fromkeys(name for values in last for name in values)
    names = {n: None for n in names if n.split()[1] not in ("step", "split")}
    rows: list[list[object]] = [
        ["task", *(run.config.task.kind for run in runs)],
        ["model", *(run.config.model.kind for run in runs)],
        ["steps", *(_steps(run) for run in runs)],
        ["tokens", *(_format(_last_point(run)[1]) for run in runs)],
        ["hours", *(_format(_last_point(run)[2]) for run in runs)],
    ]
    for name in names:
        rows.append([name.replace("_", " "), *(_format(v.get(name)) for v in last)])
    note = (
        '<p class="note">The last evaluation of each split. Hours are those of '
        "training steps.</p>"
    )
    head = ["", *(run.name for run in runs)]
    return _table(rows, head=head, numbers=True) + note


def _steps(run: RunRecord) -> str:
    return f"{run.lines[-1]['step']:,} of {run.config.num_steps:,}"


def _last_point(run: RunRecord) -> list[float]:
    points = [p for curve in list_curves(run).get("train", {}).values() for p in curve]
    return max(points, default=[0, 0, 0, 0])


def _controls(runs: Sequence[RunRecord], colors: Sequence[str]) -> str:
    boxes = "".join(
        f'<label><input type="checkbox" data-run="{i}" checked>'
        f'<span class="swatch" style="background:{color}"></span>'
        f"{_escape(run.name)}</label>"
        for i, (run, color) in enumerate(zip(runs, colors, strict=True))
    )
    return f"""<div class="controls">
<label>by <select id="axis"><option>step</option><option>tokens</option>
<option>hours</option></select></label>
<label><input type="checkbox" id="log"> logarithmic</label>
<label>smooth <input type="range" id="smooth" min="0" max="0.98" step="0.02" value="0">
</label>
{boxes}</div>
"""


def _charts(curves: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the places of the charts, which the script draws."""
    splits_of: dict[str, dict[str, None]] = {}
    for found in curves:
        for split, metrics in found.items():
            for name in metrics:
                splits_of.setdefault(name, {})[split] = None
    order = lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST)
    charts = []
    for name in sorted(splits_of, key=lambda name: (order(name), name)):
        splits = [split for split in _SPLITS if split in splits_of[name]]
        shown = ", ".join(splits)
        charts.append(
            f'<figure class="chart" style="margin:0" data-metric="{_escape(name)}" '
            f'data-splits="{_escape(" ".join(splits))}"><h3>'
            f"{_escape(name.replace('_', ' '))} "
            f'<span class="note" style="font-weight:400">{shown}</span></h3></figure>\n'
        )
    return f'<div class="charts">\n{"".join(charts)}</div>\n'


def _judgement(judged: Judged) -> str:
    total = sum(judged.counts.values())
    right = sum(judged.counts.get((label, label), 0) for label in judged.labels)
    heading = f"<h3>{_escape(judged.name)}</h3>"
    share = f'<p class="note">{right:,} of {total:,} right ({right / total:.1%})</p>'
    worst = ""
    if judged.worst:
        rows = [[f"{e.loss:.3g}", e.label, e.predicted, e.text] for e in judged.worst]
        head = ["loss (nats)", "label", "predicted", "text"]
        worst = "<p>The wrong examples by loss:</p>" + _table(rows, head=head)
    return heading + share + _matrix(judged) + worst


def _matrix(judged: Judged) -> str:
    """Return the confusion matrix, each row shaded by its shares."""
    if len(judged.labels) > _MAX_LABELS:
        return f"<p>{len(judged.labels)} labels: too many for a confusion matrix.</p>"
    head = "".join(f"<th>{_escape(label)}</th>" for label in judged.labels)
    rows = []
    for label in judged.labels:
        counts = [judged.counts.get((label, other), 0) for other in judged.labels]
        total = sum(counts) or 1
        cells = "".join(
            f'<td style="background:rgba(47,109,168,{0.75 * count / total:.2f})">'
            f"{count:,}</td>"
            for count in counts
        )
        rows.append(f"<tr><th>{_escape(label)}</th>{cells}</tr>")
    caption = "<caption>Rows: the label; columns: the prediction.</caption>"
    return (
        f'<div class="wide"><table class="matrix">{caption}<tr><th></th>{head}</tr>'
        f"{''.join(rows)}</table></div>"
    )


def _samples(run: RunRecord, *, several: bool) -> str:
    """Return the continuations of each prompt, from the first steps to the last."""
    if not run.samples:
        return ""
    steps = sorted(run.samples)
    if len(steps) > _MAX_SAMPLES:
        spread = (len(steps) - 1) / (_MAX_SAMPLES - 1)
        steps = [steps[round(i * spread)] for i in range(_MAX_SAMPLES)]
    name = f"{run.name}: " if several else ""
    parts = []
    for i, prompt in enumerate(run.config.sample.prompts):
        parts.append(f"<h3>{_escape(name)}{_escape(repr(prompt))}</h3>")
        texts = [(step, run.samples[step]) for step in steps]
        parts += [
            f'<p class="note">step {step:,}</p><pre>{_escape(found[i])}</pre>'
            for step, found in texts
            if i < len(found)
        ]
    return "\n".join(parts)


def _differences(runs: Sequence[RunRecord]) -> str:
    if len(runs) == 1:
        return ""
    differences = list_differences(runs)
    if not differences:
        return '<p class="note">The configs are equal.</p>'
    rows = [[path, *values] for path, values in differences.items()]
    return _table(rows, head=["leaf", *(run.name for run in runs)])


def _starts(runs: Sequence[RunRecord]) -> str:
    rows = [[run.name, *_describe_start(start)] for run in runs for start in run.starts]
    head = ["run", "time (UTC)", "at step", "devices", "mesh", "host", "versions"]
    return _table(rows, head=head) if rows else ""


def _describe_start(start: Mapping[str, Any]) -> Iterator[str]:
    versions = start.get("versions")
    mesh = start.get("mesh")
    yield str(start.get("time", "-"))
    yield str(start.get("step", "-"))
    yield (
        f"{start.get('num_devices', '?')} x {start.get('device', '?')} in "
        f"{start.get('num_processes', '?')} processes"
    )
    yield " x ".join(f"{a} {n}" for a, n in mesh.items()) if mesh else "-"
    yield str(start.get("host", "-"))
    yield ", ".join(f"{n} {v}" for n, v in versions.items()) if versions else "-"


def _config(run: RunRecord) -> str:
    rows = "".join(
        f"<tr><td class=code>{_escape(path)}</td><td class=code>{_escape(value)}</td>"
        "</tr>\n"
        for path, value in list_leaves(run).items()
    )
    return (
        f"<details><summary>{_escape(run.name)} "
        f"(<code>{_escape(run.directory)}</code>)</summary>"
        f"<table>{rows}</table></details>\n"
    )
