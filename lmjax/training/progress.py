"""The live line on the console."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lmjax.parallel import processes


class ProgressLine:
    """A live line on a terminal, and a plain one every few seconds elsewhere."""

    def __init__(self, *, start_step: int, num_steps: int) -> None:
        self.console = Console(stderr=True)
        self.num_steps = num_steps
        self.visible = processes.is_first()
        self.last_print = 0.0
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not (self.visible and self.console.is_terminal),
            transient=True,
        )
        self.task = self.bar.add_task(
            "", total=num_steps, completed=start_step, text="compiling"
        )
        self.start_step, self.start_time = start_step, time.perf_counter()
        self.bar.start()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Show where training stands."""
        text = f"loss {values['loss']:.4f}  {values['tokens_per_second']:,.0f} tokens/s"
        self.bar.update(self.task, completed=step, text=text)
        now = time.perf_counter()
        if self.bar.disable and self.visible and now - self.last_print > 5.0:
            self.last_print = now
            rate = (now - self.start_time) / max(step - self.start_step, 1)
            left = rate * (self.num_steps - step)
            self.print(f"step {step}/{self.num_steps}  {text}  {left:,.0f} s left")

    def print(self, text: str) -> None:
        """Print a line above the live one."""
        if self.visible:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the live line away."""
        self.bar.stop()
