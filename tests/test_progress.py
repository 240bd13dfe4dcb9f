"""The progress bar: live where it can be, lines elsewhere, silent for short work."""

import pytest
from rich.console import Console

from lmjax import progress
from lmjax.progress import ProgressBar


@pytest.fixture
def clock(monkeypatch):
    """Return a function that lets seconds pass."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_lines_where_there_is_no_terminal(clock, capsys):
    with ProgressBar("step", total=40, done=10) as bar:
        for step in range(11, 31):
            clock(1.0)
            bar.update(step, f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 11/40  loss 11  29 s left"
    assert [line.split()[1] for line in lines] == ["11/40", "17/40", "23/40", "29/40"]


def test_short_work_is_silent(clock, capsys):
    with ProgressBar("tokenizing", total=9, delay=3.0) as bar:
        for _ in range(9):
            clock(0.3)
            bar.advance(1)
    assert not capsys.readouterr().err


def test_an_invisible_bar_prints_nothing(clock, capsys):
    with ProgressBar("step", total=9, visible=False) as bar:
        clock(9.0)
        bar.update(5)
        bar.print("text")
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("terminal", "notebook", "widgets", "live"),
    [
        (False, False, True, False),
        (True, False, False, True),
        (False, True, True, True),
        (False, True, False, False),
    ],
)
def test_where_a_bar_is_live(monkeypatch, terminal, notebook, widgets, live):
    monkeypatch.setattr(Console, "is_terminal", terminal)
    monkeypatch.setattr(
        progress.importlib.util, "find_spec", lambda name: object() if widgets else None
    )
    console = Console()
    console.is_jupyter = notebook
    assert progress._is_live(console) == live


def test_counts_are_written_in_their_unit(clock, capsys):
    with ProgressBar("x {y} [z]", total=10**6, format_count=lambda n: f"{n} B") as bar:
        clock(9.0)
        bar.advance(10**5)
    assert capsys.readouterr().err.startswith("x {y} [z] 100000 B/1000000 B  81 s left")
