"""Processes watch each other: by a store and clocks that the tests hold."""

import dataclasses
import json
import random
import subprocess
import sys
import threading
import time

import pytest
from jax._src import distributed
from jax._src.lib import _jax

from lmjax.config.watch import WatchConfig
from lmjax.errors import ConfigError
from lmjax.parallel import agreement, coordination, ending
from lmjax.parallel.exchange import AbsentError, Exchange
from lmjax.parallel.heartbeat import Beat, Clock, Status
from lmjax.parallel.hub import EXIT_LOST, HOLD, LEAVE, Hub, Verdict, Word
from lmjax.parallel.monitor import Monitor
from lmjax.parallel.stop_gate import StopGate
from lmjax.parallel.watchdog import DATA, Watchdog, write_stacks
from lmjax.storage.paths import open_path

CONFIG = WatchConfig()


class Store:
    """The store of processes that are threads, or take turns."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def set(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def get(self, key, *, seconds):
        with self.changed:
            self.changed.wait_for(lambda: key in self.values, seconds)
            return self.values.get(key)

    def list(self, prefix):
        return {
            key.removeprefix(f"{prefix}/"): value
            for key, value in self.values.items()
            if key.startswith(f"{prefix}/")
        }

    def delete(self, prefix):
        with self.changed:
            for key in [prefix, *(f"{prefix}/{k}" for k in self.list(prefix))]:
                self.values.pop(key, None)


class Time:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def test_jax_has_what_is_called_here():
    for name in coordination.CLIENT_METHODS:
        assert callable(getattr(_jax.DistributedRuntimeClient, name))
    state = distributed.global_state
    assert (state.client, state.process_id, state.num_processes) == (None, 0, 1)
    assert hasattr(state, "coordinator_address") and not coordination.has_joined()


# Exchanges


def exchanges(store, num_processes):
    describe = lambda indices: f"processes {[*indices]}"
    return [
        Exchange(store, index=i, num_processes=num_processes, describe=describe)
        for i in range(num_processes)
    ]


def run_threads(*calls):
    """Call all at once; return what they return or raise."""
    results = [None] * len(calls)

    def call(i):
        try:
            results[i] = calls[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=call, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return results


def test_all_get_the_answer_that_the_first_makes_of_all_texts():
    store, texts = Store(), ["", "ü\0\n", "!x" * 1000]
    processes = exchanges(store, 3)
    for _ in range(3):
        calls = [
            lambda e=e, t=t: e(t, reduce=lambda said: "|".join(said), seconds=5)
            for e, t in zip(processes, texts, strict=True)
        ]
        assert run_threads(*calls) == ["|".join(texts)] * 3
    assert {key.split("/")[2] for key in store.values} == {"2"}, "earlier ones remain"


def test_an_exchange_names_those_that_do_not_come(monkeypatch):
    monkeypatch.setattr("lmjax.parallel.exchange._MARGIN_SECONDS", 1.0)
    first, *others = exchanges(Store(), 4)
    say = lambda e: lambda: e("", reduce="".join, seconds=0.4)
    for error in run_threads(say(first), say(others[1])):
        assert isinstance(error, AbsentError)
        assert "did not come within 0 s: processes [1, 3]" in str(error)
    (error,) = run_threads(say(exchanges(Store(), 2)[1]))
    assert "processes [0]" in str(error)


# Heartbeats


def test_a_clock_does_not_count_the_time_in_which_its_process_was_stopped():
    time_ = Time()
    clock = Clock(time_)
    begin = clock.now()
    for seconds in (1, 3, 3600, 1):
        time_.seconds += seconds
        clock.tick()
    assert clock.now() - begin == 5


def test_a_phase_ends_where_it_began():
    status = Status()
    status.at_step(7)
    with pytest.raises(ValueError), status.phase("saving"):
        assert (status.moment.phase, status.moment.step) == ("saving", 7)
        raise ValueError
    assert (status.moment.phase, status.moment.step) == ("training", 7)


def beat(index, **values):
    return Beat(host=f"host{index}", pid=10 + index, phase="training", **values)


def hub_of(*beats, num_processes=None, at=0.0):
    hub = Hub(num_processes or len(beats), lost_seconds=45, now=0)
    hub.update(dict(enumerate(beats)), now=at)
    return hub


@pytest.mark.parametrize(
    ("hub", "code", "parts"),
    [
        (hub_of(beat(0), beat(1)), None, ()),
        (hub_of(beat(0), num_processes=2), EXIT_LOST, ("process 1, never seen",)),
        (
            hub_of(beat(0), beat(1, failure="ValueError: x", code=1)),
            1,
            ("process 1 (host1, pid 11): ValueError: x",),
        ),
        (
            hub_of(
                beat(0, step=9, hang="training, step 9: no progress for 300 s"),
                beat(1, step=8),
                beat(2, step=9),
            ),
            EXIT_LOST,
            ("process 0", "no progress for 300 s; elsewhere: process 1 (host1", "p 8"),
        ),
        (
            hub_of(beat(0, step=9), beat(1, step=9, hang="training, step 9: x")),
            EXIT_LOST,
            ("all processes are there",),
        ),
        (
            hub_of(beat(0, step=9), beat(1, step=8, hang="training: y")),
            EXIT_LOST,
            ("elsewhere: process 1",),
        ),
    ],
)
def test_the_first_process_names_the_culprit(hub, code, parts):
    for index in hub.beats:  # heard of since, but for those never seen
        hub.heard[index] = 45.0
    verdict = hub.verdict(now=50.0)
    assert (verdict.code if verdict else None) == code
    for part in parts:
        assert part in verdict.text


def test_a_beat_that_does_not_change_is_silence():
    hub = hub_of(beat(0, count=1), beat(1, count=1, step=3))
    for now in (20, 40, 60):
        hub.update({0: beat(0, count=now), 1: beat(1, count=1, step=3)}, now=now)
    verdict = hub.verdict(now=60)
    assert verdict.stacks and verdict.code == EXIT_LOST
    assert "process 1 (host1, pid 11), last seen: training, step 3, 60" in verdict.text


def test_many_lost_processes_are_one_line():
    hub = hub_of(beat(0), num_processes=5000)
    hub.heard[0] = 100
    text = hub.verdict(now=100).text
    assert "process 1, process 2, process 3, process 4 and 4995 more" in text


def test_words_and_beats_survive_the_way():
    word = Word(count=3, stop="12", verdict=Verdict("ü", 2), first=beat(0, step=4))
    assert Word.from_json(word.to_json()) == word
    assert Beat.from_json(beat(1, hang="x").to_json()) == beat(1, hang="x")


# Stopping


@pytest.mark.parametrize(
    ("beats", "stop"),
    [
        ([beat(0), beat(1)], ""),
        ([beat(0, wants_stop=True), beat(1)], LEAVE),
        ([beat(0, committed=3), beat(1, wants_stop=True)], LEAVE),
        ([beat(0, committed=3), beat(1, wants_stop=True, committed=4)], HOLD),
        (
            [
                beat(0, committed=3, holds=True),
                beat(1, committed=4, holds=True, wants_stop=True),
            ],
            "4",
        ),
    ],
)
def test_where_to_stop(beats, stop):
    hub = hub_of(*beats)
    hub.update({}, now=1)
    assert hub.stop == stop


def test_a_decision_to_stop_is_final():
    hub = hub_of(beat(0, committed=3), beat(1, wants_stop=True))
    hub.update({1: beat(1, wants_stop=True, committed=4)}, now=1)
    assert hub.stop == LEAVE


def test_a_gate_waits_for_the_step_to_stop_after():
    gate = StopGate()
    gate.enter(4)
    assert not gate.leave_after(5) and gate.state() == (6, False)
    gate.hold()
    waits = threading.Thread(target=lambda: left.append(gate.leave_after(6)))
    left = []
    waits.start()
    waits.join(0.05)
    assert waits.is_alive() and gate.state() == (6, True)
    gate.release(8)
    waits.join(5)
    assert left == [False]
    assert [gate.leave_after(7), gate.leave_after(8)] == [False, True]


def monitors(directory, num_processes, **options):
    """Return monitors that take turns in one thread, and how they ended."""
    store, ends, time_ = Store(), {}, Time()
    made = []
    for index in range(num_processes):
        monitor = Monitor(
            store,
            index=index,
            num_processes=num_processes,
            directory=directory,
            config=dataclasses.replace(CONFIG, **options),
            status=Status(Clock(time_)),
            end=lambda code, index=index: ends.setdefault(index, code),
        )
        monitor.seconds = 0.0
        made.append(monitor)
    return made, ends, time_


@pytest.mark.parametrize("seed", range(5))
def test_all_stop_after_the_same_step(seed, tmp_path):
    """A step ends only when all have begun it, as that of devices that wait."""
    order = random.Random(seed)
    made, ends, _ = monitors(tmp_path, 4)
    begun, last = dict.fromkeys(range(4), 0), {}
    asked = order.randrange(1, 20)
    for monitor in made:
        monitor.gate.enter(0)
        monitor._talk()

    def train(index):
        gate = made[index].gate
        for step in range(1, 10_000):
            begun[index] = step
            while min(begun.values()) < step - 2:  # steps in flight
                time.sleep(0.0001)
            if index == 2 and step == asked:
                made[index].request_stop()
            time.sleep(order.random() / 1000)
            if gate.leave_after(step):
                break
        last[index] = step

    def talk():
        while len(last) < 4:
            for monitor in order.sample(made, 4):
                monitor._talk()

    run_threads(talk, *(lambda i=i: train(i) for i in range(4)))
    assert len(set(last.values())) == 1 and len(last) == 4 and not ends
    assert asked <= last[0] < 10_000


def test_a_signal_before_training_ends_all(tmp_path, capsys):
    made, ends, _ = monitors(tmp_path, 3)
    made[0].gate.enter(0)
    made[1].request_stop()
    for monitor in (made[1], *made):
        monitor._talk()
    assert ends == {0: 75, 1: 75, 2: 75} and "error" not in capsys.readouterr().err


def test_an_error_of_one_ends_all_with_its_text(tmp_path, capsys):
    made, ends, _ = monitors(tmp_path, 3)
    made[2]._told_failure.set()
    made[2].fail(ConfigError("config.x = 1:\n  bad"), code=2)
    for monitor in (made[2], *made):
        monitor._talk()
    assert ends == {0: 2, 1: 2}, "the failed one ends by itself"
    assert capsys.readouterr().err.count("): config.x = 1: bad\n") == 2


def test_a_silent_process_ends_the_others(tmp_path, capsys):
    made, ends, time_ = monitors(tmp_path, 3, lost_seconds=20)
    made[2].status.at_step(17)
    for monitor in reversed(made):
        monitor._talk()
    for _ in range(5):
        time_.seconds += 4
        for monitor in made:
            monitor.status.clock.tick()
        for monitor in made[:2]:
            monitor._talk()
            monitor._judge()
    assert ends == {0: EXIT_LOST, 1: EXIT_LOST}
    said = capsys.readouterr().err
    assert "last seen: training, step 17, 20 s ago: silent since" in said
    assert len(list((tmp_path / "stacks").iterdir())) == 2


def test_the_first_process_may_be_the_silent_one(tmp_path, capsys):
    made, ends, time_ = monitors(tmp_path, 3, lost_seconds=20)
    made[0].status.at_step(3)
    for monitor in made:
        monitor._talk()
    for _ in range(5):
        time_.seconds += 4
        for monitor in made[1:]:
            monitor.status.clock.tick()
            monitor._talk()
            monitor._judge()
    assert ends == {1: EXIT_LOST, 2: EXIT_LOST}
    assert "process 0" in (said := capsys.readouterr().err) and "step 3" in said


def test_processes_that_were_stopped_together_go_on(tmp_path):
    made, ends, time_ = monitors(tmp_path, 2, step_seconds=30)
    for monitor in made:
        monitor.status.at_step(3)
        monitor._talk()
    time_.seconds += 3600
    for monitor in made:
        monitor.status.clock.tick()
    for monitor in (made[1], *made):
        monitor._judge()
        monitor._talk()
    assert not ends


def test_a_hang_of_all_is_told_with_stacks(tmp_path, capsys):
    made, ends, time_ = monitors(tmp_path, 2, step_seconds=30, phase_seconds=500)
    for monitor in made:
        monitor.status.at_step(3)
    made[1].status.begin("saving")
    for _ in range(9):
        time_.seconds += 4
        for monitor in made:
            monitor.status.clock.tick()
            monitor._judge()
            monitor._talk()
    assert set(ends.values()) == {EXIT_LOST}
    said = capsys.readouterr().err
    assert (
        "training, step 3: no progress for" in said and "elsewhere: process 1" in said
    )


def test_places_and_stacks_are_on_object_storage_too():
    pytest.importorskip("fsspec")
    root = open_path("memory://watched")
    (monitor,), _, _ = monitors(root, 1)
    monitor.status.at_step(3)
    monitor._write_place()
    place = json.loads((root / "hosts" / "0.json").read_text())
    assert (place["phase"], place["step"]) == ("training", 3)
    path = write_stacks(root, name="0")
    assert "test_places_and_stacks_are_on_object_storage_too" in path.read_text()


# Hangs of one process


def watchdog(**options):
    time_ = Time()
    status = Status(Clock(time_))
    return Watchdog(status, dataclasses.replace(CONFIG, **options)), status, time_


def test_a_step_hangs_by_the_median_of_those_before_it():
    dog, status, time_ = watchdog(step_seconds=5, step_factor=10)
    for step in range(1, 40):
        status.at_step(step)
        time_.seconds += 2 if step != 20 else 15
        status.clock.tick() if step != 20 else None
        assert not dog.check()
    assert dog.allowed_seconds("training") == 20
    time_.seconds += 19
    assert "training, step 39: no progress for 21 s (median" in dog.check()
    status.begin("compiling")
    time_.seconds += 1000
    assert not dog.check()
    assert dog.allowed_seconds(DATA) == CONFIG.data_seconds


def test_a_hang_is_warned_of_once_with_stacks(tmp_path, caplog):
    dog, status, time_ = watchdog(phase_seconds=5)
    for _ in range(3):
        time_.seconds += 4
        dog.warn(dog.check(), tmp_path, name="0")
    (path,) = (tmp_path / "stacks").iterdir()
    assert "test_a_hang_is_warned_of_once_with_stacks" in path.read_text()
    assert caplog.text.count("no progress") == 1 and str(path) in caplog.text
    status.begin("saving")
    time_.seconds += 6
    dog.warn(dog.check(), path, name="0")  # where a directory should be
    assert "cannot be written" in caplog.text


ABORTS = """
import ctypes, os, threading, time
from lmjax.parallel import ending
def act():
    if {heeds}:
        ending.print_line("somebody is gone")
        ending.end_process(69)
with ending.on_abort(act):
    threading.Thread(target=lambda: ctypes.CDLL(None).abort()).start()
    while True: sum(range(9))
"""


@pytest.mark.parametrize(("heeds", "code"), [(True, 69), (False, -6)])
def test_the_last_words_of_a_process_that_is_aborted(heeds, code):
    command = [sys.executable, "-c", ABORTS.format(heeds=heeds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (code, "somebody is gone\n" * heeds)


def test_last_words_do_not_wait_for_a_disk_that_hangs(monkeypatch):
    monkeypatch.setattr(ending, "_LAST_WORDS_SECONDS", 0.05)
    start = time.monotonic()
    ending.try_for_a_moment(threading.Event().wait)
    assert time.monotonic() - start < 5.0


# Agreement


@pytest.mark.parametrize(
    ("facts", "parts"),
    [
        ([{"a": 1}, {"a": 1}], None),
        ([{"a": 1}, {"a": 2}], ("a: 1 on process 0 (h0); 2 on process 1 (h1)",)),
        ([{"a": 1}, {}], ("a: 1 on process 0 (h0); 'absent'",)),
        ([{"a": [1]}, {"a": [1]}, {"a": [1.5]}], ("[1] on process 0 (h0), process 1",)),
        ([{"a": 0}] * 9 + [{"a": None}], ("process 2 (h2) and 6 more; None on",)),
        ([dict.fromkeys("abcdef", i) for i in (0, 1)], ("a: 0", "c: 0", "and 3 more")),
        ([{"a": "x" * 9999}, {"a": ""}], ("xxx...",)),
    ],
)
def test_processes_that_differ_are_told_in_what(facts, parts):
    texts = [agreement.dump(own, host=f"h{i}") for i, own in enumerate(facts)]
    line = agreement.compare(texts)
    assert "\n" not in line and len(line) < 2000
    assert bool(line) == (parts is not None)
    for part in parts or ():
        assert part.replace("'absent'", "absent") in line


def test_the_code_of_a_process_is_described_by_its_files():
    facts = agreement.describe_code()
    assert len(str(facts["lmjax/parallel/hub.py"])) == 8
    assert {"Python", "jax", "jaxlib"} <= facts.keys()
