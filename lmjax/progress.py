"""One progress bar: live on a terminal and in a notebook, plain lines elsewhere."""

import importlib.util
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINE_SECONDS = 5.0  # between two lines where no bar can be drawn


class ProgressBar:
    """Shows on stderr how much of some work is done.

    Args:
      title: of the work, before the counts.
      total: units of work.
      done: units that were done before now.
      delay: seconds for which nothing is shown: short work stays silent.
      visible: False shows nothing at all, as in all processes but the first.
      format_count: writes a number of units; `rich.filesize.decimal` writes bytes.
    """

    def __init__(
        self,
        title: str,
        *,
        total: int,
        done: int = 0,
        delay: float = 0.0,
        visible: bool = True,
        format_count: Callable[[int], str] = "{:,}".format,
    ) -> None:
        self.console = Console(stderr=True)
        self.title, self.total, self.visible = title, total, visible
        self.first = self.done = done
        self.format_count, self.delay = format_count, delay
        self.begin = time.perf_counter()
        self.last_line = self.begin + delay - _LINE_SECONDS
        self.live = visible and _is_live(self.console)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[count]}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            transient=True,
        )
        self.task = self.bar.add_task(
            title, total=total, completed=done, count=self._count(), text=""
        )
        self._show("")

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def update(self, done: int, text: str = "") -> None:
        """Show that `done` units are done, and a text with them."""
        self.done = done
        self.bar.update(self.task, completed=done, count=self._count(), text=text)
        self._show(text)

    def advance(self, units: int) -> None:
        """Show that some more units are done."""
        self.update(self.done + units)

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        if self.visible:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar.live.is_started:  # else it would leave an empty line
            self.bar.stop()

    def _show(self, text: str) -> None:
        now = time.perf_counter()
        if not self.visible or now < self.begin + self.delay:
            return
        if self.live:
            self.bar.start()
        elif self.done > self.first and now - self.last_line > _LINE_SECONDS:
            self.last_line = now
            seconds = (now - self.begin) / (self.done - self.first)
            left = f"{seconds * (self.total - self.done):,.0f} s left"
            parts = (f"{self.title} {self._count()}", text, left)
            self.print("  ".join(filter(None, parts)))

    def _count(self) -> str:
        return f"{self.format_count(self.done)}/{self.format_count(self.total)}"


def _is_live(console: Console) -> bool:
    """Return whether a bar can be redrawn; in a notebook that takes ipywidgets."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_terminal
