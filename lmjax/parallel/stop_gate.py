"""After which step the processes of a run stop, all after the same."""

import threading


class StopGate:
    """Lets the training loop pass from step to step, until there is one to stop after.

    When a run is to stop, each process tells the step that it has committed to and goes
    no further; then all go on to the furthest of these. The devices of one need those
    of the others to get there, so none may stop earlier.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.committed: int | None = None  # None: training has not begun
        self.holds = False
        self.last: int | None = None  # the step to stop after

    def enter(self, step: int) -> None:
        """Begin to train after a step: commit to the next."""
        with self._changed:
            self.committed = step + 1

    def leave_after(self, step: int) -> bool:
        """Return whether to stop after this step; if not, commit to the next.

        Waits, where the run is to stop but it is not known yet where.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self.holds or self.last is not None)
            if self.last is not None and step >= self.last:
                return True
            self.committed = step + 1
            return False

    def state(self) -> tuple[int | None, bool]:
        """Return the step committed to, and whether there will be no further one."""
        with self._changed:
            return self.committed, self.holds

    def hold(self) -> None:
        """Commit to no further step."""
        with self._changed:
            self.holds = True

    def release(self, last: int) -> None:
        """Go on to the step to stop after."""
        with self._changed:
            self.last = last
            self._changed.notify_all()
