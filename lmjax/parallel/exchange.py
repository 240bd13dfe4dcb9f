"""Processes tell each other a text and wait for the answer, with a limit.

The first process collects what all say, makes one answer of it, and hands it to all:
a few calls for each process, however many there are.
"""

import time
from collections.abc import Callable, Sequence

from lmjax.parallel.coordination import KeyValues

_PREFIX = "lmjax/exchange"
# The others wait a little longer than the first, which knows who is missing.
_MARGIN_SECONDS = 15.0

# Makes one answer of the texts of all processes, in order.
Reduce = Callable[[Sequence[str]], str]


class AbsentError(Exception):
    """Some processes did not come within the time."""


class Exchange:
    """Exchanges texts, in the same order on all processes.

    Args:
      values: the store they share.
      index: of this process.
      num_processes: how many there are.
      describe: returns names of processes and where they were last seen.
    """

    def __init__(
        self,
        values: KeyValues,
        *,
        index: int,
        num_processes: int,
        describe: Callable[[Sequence[int]], str],
    ) -> None:
        self.values, self.describe = values, describe
        self.index, self.num_processes = index, num_processes
        self.num_calls = 0

    def __call__(self, text: str, *, reduce: Reduce, seconds: float) -> str:
        """Return the answer that the first process makes of the texts of all.

        Args:
          text: of this process.
          reduce: makes the answer; called on the first process.
          seconds: to wait for the others.

        Raises:
          AbsentError: some did not come; it says which, and where they were last seen.
        """
        name = f"{_PREFIX}/{self.num_calls}"
        self.num_calls += 1
        if self.index:
            self.values.set(f"{name}/{self.index}", text)
            reply = self.values.get(f"{name}/reply", seconds=seconds + _MARGIN_SECONDS)
            if reply is None:
                raise AbsentError(self._complain([0], seconds + _MARGIN_SECONDS))
        else:
            reply = self._answer(name, text, reduce=reduce, seconds=seconds)
        if reply[0] == "!":
            raise AbsentError(reply[1:])
        return reply[1:]

    def _answer(self, name: str, text: str, *, reduce: Reduce, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        texts: list[str | None] = [text]
        for other in range(1, self.num_processes):
            left = max(0.0, deadline - time.monotonic())
            texts.append(self.values.get(f"{name}/{other}", seconds=left))
        absent = [other for other, said in enumerate(texts) if said is None]
        said = [text for text in texts if text is not None]
        reply = "!" + self._complain(absent, seconds) if absent else "=" + reduce(said)
        self.values.set(f"{name}/reply", reply)
        # All have read the reply before: they have spoken since.
        if self.num_calls > 1:
            self.values.delete(f"{_PREFIX}/{self.num_calls - 2}")
        return reply

    def _complain(self, absent: Sequence[int], seconds: float) -> str:
        return f"did not come within {seconds:.0f} s: {self.describe(absent)}"
