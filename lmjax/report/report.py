"""Write the report of some runs: `lmjax report`."""

from collections.abc import Sequence
from pathlib import Path

from lmjax.fileio import write_bytes
from lmjax.report.page import write_page
from lmjax.report.predictions import judge_predictions
from lmjax.report.runs import read_runs
from lmjax.storage.paths import open_path

_NUM_WORST = 50


def write_report(
    workdirs: Sequence[str], output: Path, *, predictions: Sequence[str] = ()
) -> str:
    """Write one HTML file about runs, and return a line that says so.

    Args:
      workdirs: of the runs, which may still be training.
      output: the file, written in place of an earlier one.
      predictions: files of `lmjax predict --keep=input`, of examples with labels whose
        fields are named as in the config of the first run.

    Raises:
      UserError: a workdir or a file cannot be read, or the report not written.
    """
    runs = read_runs(workdirs)
    fields = runs[0].config.data.fields
    judged = [
        judge_predictions(open_path(file), fields=fields, num_worst=_NUM_WORST)
        for file in predictions
    ]
    page = write_page(runs, judged).encode()
    write_bytes(output, page)
    num_lines = sum(len(run.lines) for run in runs)
    return (
        f"{output}: {len(runs)} run{'s' * (len(runs) > 1)}, {num_lines:,} lines of "
        f"metrics, {len(page) / 1e6:.2f} MB"
    )
