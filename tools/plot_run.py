"""Plot the training and validation curves of one or more runs.

    python tools/plot_run.py WORKDIR [WORKDIR ...] --output=curves.png

The loss is drawn against the step: a line for the training batches, points for the
evaluations of the valid split. A small panel below has the learning rate. All of it is
read from WORKDIR/metrics.jsonl, also while the run is still training; of steps that are
logged twice the later line counts. The title has the median speed; if there are several
runs, the legend has it. Needs matplotlib: `pip install -e '.[sweep]'`.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lmjax.errors import UserError

COLORS = ("#2f6da8", "#e07b00", "#2e8b57", "#b5342c", "#7a57b0", "#5f6b76")
Metrics = dict[str, dict[int, dict[str, Any]]]  # by split, then by step


class _Parser(argparse.ArgumentParser):
    """Raises an error in place of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Plot, and return the exit code: 2 after an error of one line."""
    parser = _Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR", type=Path)
    parser.add_argument("--output", required=True, type=Path, help="an image, as .png")
    try:
        args = parser.parse_args(argv)
        write_plot({w: read_metrics(w) for w in args.workdirs}, args.output)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def read_metrics(workdir: Path) -> Metrics:
    """Return the metrics of a run.

    Raises:
      UserError: there is no metrics.jsonl, or it holds no training loss.
    """
    path = workdir / "metrics.jsonl"
    try:
        lines = path.read_text().splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8") from error
    metrics: Metrics = {}
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            break  # the run is writing it
        try:
            values = json.loads(line)
            metrics.setdefault(values["split"], {})[int(values["step"])] = values
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a line of metrics") from error
    if not get_curve(metrics, "train", "loss")[0]:
        raise UserError(f"{path}: holds no training loss")
    return metrics


def get_curve(metrics: Metrics, split: str, name: str) -> tuple[list[int], list[float]]:
    """Return the steps and the finite values of a metric."""
    lines = metrics.get(split, {})
    steps = [s for s in sorted(lines) if isinstance(lines[s].get(name), int | float)]
    return steps, [lines[step][name] for step in steps]


def write_plot(runs: Mapping[Path, Metrics], output: Path) -> None:
    """Write an image with the curves of all runs.

    Raises:
      UserError: matplotlib is not installed, or the image cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise UserError("needs matplotlib: pip install -e '.[sweep]'") from error
    figure = Figure(figsize=(9, 5), dpi=200, layout="constrained")
    loss, rate = figure.subplots(2, sharex=True, height_ratios=[3.5, 1])
    for i, (workdir, metrics) in enumerate(runs.items()):
        color, name = COLORS[i % len(COLORS)], str(workdir)
        valid_color = color if len(runs) > 1 else COLORS[1]
        if speeds := get_curve(metrics, "train", "tokens_per_second")[1]:
            name += f" ({statistics.median(speeds):,.0f} tokens/s)"
        loss.plot(
            *get_curve(metrics, "train", "loss"),
            color=color,
            linewidth=1,
            alpha=0.6,
            label="train" if len(runs) == 1 else f"{name}, train",
        )
        steps, values = get_curve(metrics, "valid", "loss")
        if steps:
            last = f"valid, {values[-1]:.3f} at step {steps[-1]:,}"
            loss.plot(steps, values, "o-", color=valid_color, markersize=4, label=last)
        rate.plot(*get_curve(metrics, "train", "learning_rate"), color=color)
        figure.suptitle(name if len(runs) == 1 else f"{len(runs)} runs")
    loss.set_ylabel("loss (nats)")
    loss.legend(frameon=False)
    rate.set(xlabel="step", ylabel="learning rate", xlim=(0, None), ylim=(0, None))
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate.yaxis.set_major_locator(MaxNLocator(3))
    for axes in (loss, rate):
        axes.grid(color="#e6e9ec", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    try:
        figure.savefig(output)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--output={output}: cannot be written: {reason}") from error


if __name__ == "__main__":
    sys.exit(main())
