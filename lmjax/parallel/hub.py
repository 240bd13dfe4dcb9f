"""What the first process concludes from the heartbeats of all.

No threads, no clocks, no network: `monitor` brings the beats.
"""

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence

from lmjax.parallel.heartbeat import Beat, describe_place

EXIT_LOST = 69  # sysexits.h's EX_UNAVAILABLE: a process was lost; run again to go on
_MOST_NAMED = 4  # processes of one line

LEAVE = "leave"  # at once: somebody has not begun to train, nothing is worth saving
HOLD = "hold"  # train no further than the step that was committed to


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Why the run ends."""

    text: str  # one line
    code: int = EXIT_LOST
    stacks: bool = False  # whether each process writes its stacks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Word:
    """What the first process tells all, once a second."""

    count: int = 0
    stop: str = ""  # "", HOLD, LEAVE, or the step to save and leave after
    verdict: Verdict | None = None
    first: Beat | None = None  # the beat of the first process
    silent: str = ""  # the processes that have not been heard of, though not for long

    def to_json(self) -> str:
        """Return the text of it."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Word":
        """Return what `to_json` has written."""
        values = json.loads(text)
        if values["verdict"]:
            values["verdict"] = Verdict(**values["verdict"])
        if values["first"]:
            values["first"] = Beat(**values["first"])
        return cls(**values)


class Hub:
    """Knows when each process was last heard of, and decides.

    Args:
      num_processes: how many there are.
      lost_seconds: after which a silent one is lost.
      now: seconds by a clock, as all other times here.
    """

    def __init__(
        self, num_processes: int, *, lost_seconds: float, now: float = 0.0
    ) -> None:
        self.num_processes, self.lost_seconds = num_processes, lost_seconds
        self.beats: dict[int, Beat] = {}
        self.heard = dict.fromkeys(range(num_processes), now)
        self.gone: set[int] = set()  # whose connection was closed
        self.stop = ""

    def update(self, beats: Mapping[int, Beat], *, now: float) -> None:
        """Take the newest beats; one that has not changed is silence."""
        for index, beat in beats.items():
            before = self.beats.get(index)
            if before is None or before.count != beat.count:
                self.heard[index] = now
            self.beats[index] = beat
        self._decide_stop()

    def _decide_stop(self) -> None:
        """All train to the furthest step that one has committed to, and stop there.

        So none is left waiting for devices of another that has stopped before.
        """
        beats = [self.beats.get(index) for index in range(self.num_processes)]
        begun = [b for b in beats if b is not None and b.committed is not None]
        if not self.stop and any(b is not None and b.wants_stop for b in beats):
            self.stop = HOLD if len(begun) == self.num_processes else LEAVE
        if self.stop == HOLD and all(beat.holds for beat in begun):
            self.stop = str(max(beat.committed or 0 for beat in begun))

    def verdict(self, *, now: float) -> Verdict | None:
        """Return why the run must end, if it must."""
        failed = [i for i, beat in self.beats.items() if beat.failure]
        if failed:
            beat = self.beats[failed[0]]
            where = self._name(failed)
            return Verdict(f"{where}: {beat.failure}", code=beat.code)
        if self.gone:
            text = self.describe(sorted(self.gone), now=now)
            return Verdict(f"{text}: its process or its host ended")
        if lost := self.silent(self.lost_seconds, now=now):
            return Verdict(f"{self.describe(lost, now=now)}: silent since", stacks=True)
        if hanging := [i for i, beat in self.beats.items() if beat.hang]:
            return Verdict(self._describe_hang(hanging[0], now=now), stacks=True)
        return None

    def silent(self, seconds: float, *, now: float) -> list[int]:
        """Return the processes not heard of for so many seconds."""
        return [i for i, heard in self.heard.items() if now - heard >= seconds]

    def _describe_hang(self, index: int, *, now: float) -> str:
        """Name those that are not where most are: they keep the others waiting."""
        places = {i: (b.step, b.phase) for i, b in self.beats.items()}
        (usual, count), *_ = collections.Counter(places.values()).most_common()
        # Of two, the one behind.
        if 2 * count <= len(places):
            usual = max(places.values())
        others = [i for i, place in places.items() if place != usual]
        text = f"{self._name([index])}: {self.beats[index].hang}"
        if not others:
            return f"{text}; all processes are there"
        return f"{text}; elsewhere: {self.describe(others, now=now)}"

    def describe(self, indices: Sequence[int], *, now: float) -> str:
        """Return names of processes, and where the first was last seen."""
        beat = self.beats.get(indices[0])
        if beat is None:
            return f"{self._name(indices)}, never seen"
        seconds = now - self.heard[indices[0]]
        place = describe_place(beat.phase, beat.step, seconds=seconds)
        return f"{self._name(indices)}, last seen: {place}"

    def _name(self, indices: Sequence[int]) -> str:
        names = [name_process(i, self.beats.get(i)) for i in indices[:_MOST_NAMED]]
        more = len(indices) - len(names)
        return ", ".join(names) + (f" and {more} more" if more else "")


def name_process(index: int, beat: Beat | None) -> str:
    """Return the name of a process for a person."""
    return f"process {index}" + (f" ({beat.host}, pid {beat.pid})" if beat else "")
