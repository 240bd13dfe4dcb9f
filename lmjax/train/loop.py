"""The training loop: restore, train, evaluate, log, save, stop."""

import contextlib
import functools
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import jax

from lmjax.config.experiment import Config
from lmjax.data import batches, pipeline
from lmjax.data.datasets import Datasets
from lmjax.models import flops
from lmjax.parallel import processes, sharding
from lmjax.parallel.batch import local_rows, put_batch
from lmjax.run import workdir
from lmjax.run.checkpoint import Checkpoints
from lmjax.run.metric_log import MetricLog
from lmjax.train import evaluate, init_embedding
from lmjax.train.compiled import Program, make_program
from lmjax.train.evaluation_hooks import HeldOut
from lmjax.train.init_from import initial_state
from lmjax.train.profiler import Tracer
from lmjax.train.progress import ProgressLine
from lmjax.train.throughput import Meter, NonFiniteError
from lmjax.types import HostBatch, TrainState

EXIT_STOPPED = 75  # sysexits.h's EX_TEMPFAIL: run the same command again to go on


def train(config: Config, directory: Path, *, profile: range = range(0)) -> bool:
    """Train in the workdir `directory`, from where it stands, to `config.num_steps`.

    Args:
      config: the experiment.
      directory: the workdir; made if it is not there.
      profile: the steps to write a profiler trace of.

    Returns:
      Whether the run is finished; if not, it was told to stop, has saved, and goes on
      when called again.

    Raises:
      ConfigError: the user's mistake, in one line.
      FloatingPointError: the loss is not finite and `optim.on_nonfinite` is "stop";
        the text names the step, its samples and the last good checkpoint.
    """
    with contextlib.ExitStack() as lock, StopSignal() as stop:
        config, datasets = _prepare(config, directory, lock)
        # From here on one of several processes cannot leave without the others.
        stop.deferred = processes.several_processes()
        mesh = sharding.make_mesh(config.mesh)
        with jax.set_mesh(mesh):
            program = make_program(config, mesh)
            return _train(program, directory, datasets, stop, profile)


def _prepare(
    config: Config, directory: Path, lock: contextlib.ExitStack
) -> tuple[Config, Datasets]:
    """Take the workdir, and have in it what training reads."""
    first = processes.is_first()
    with processes.sync_errors():
        config = pipeline.with_vocabulary(config)
        evaluate.check(config)
        if first:
            lock.enter_context(workdir.locked(directory))
        workdir.refuse_other_run(directory, config)
        begun = workdir.has_checkpoints(directory)
        if not begun:
            init_embedding.check(config)
    with processes.sync_errors():
        datasets = pipeline.prepare(config, workdir=directory, keep_tokenizer=begun)
        if first:
            workdir.refuse_other_text(directory, pipeline.identity(datasets))
            workdir.write_config(directory, config)
    return config, datasets


def _train(
    program: Program,
    directory: Path,
    datasets: Datasets,
    stop: "StopSignal",
    profile: range,
) -> bool:
    """Restore, and train from there; whatever ends it, close what was opened."""
    config = program.config
    with contextlib.ExitStack() as stack:
        opened = lambda thing: stack.enter_context(contextlib.closing(thing))
        checkpoints = opened(Checkpoints(directory, config.checkpoint))
        state = checkpoints.restore(program.state_shapes)
        if state is None:
            state = initial_state(program)
            state = init_embedding.with_word_vectors(state, program, datasets)
        start = int(state.step)
        metric_log = opened(MetricLog(directory, config.log, start_step=start))
        progress = opened(ProgressLine(start_step=start, num_steps=config.num_steps))
        held_out = HeldOut(program, datasets, metric_log, progress, directory)
        held_out.check()
        if start >= config.num_steps or held_out.exhausted():
            progress.print(f"finished at step {start}; nothing is left to train")
            held_out.finish(start, state, checkpoints)
            return True
        progress.print(f"training from step {start} to {config.num_steps}")
        data_shards = sharding.data_shards(program.mesh)
        if shapes := batches.describe(datasets, config, data_shards=data_shards):
            progress.print(shapes)
        tracer = opened(Tracer(directory, profile))
        try:
            return _steps(state, program, held_out, checkpoints, tracer, stop)
        except NonFiniteError as error:
            raise explained(error, program, datasets, checkpoints) from None


def _steps(
    state: TrainState,
    program: Program,
    held_out: HeldOut,
    checkpoints: Checkpoints,
    tracer: Tracer,
    stop: "StopSignal",
) -> bool:
    """Train to the end, or until told to stop; save, and return whether it is done."""
    config, start = program.config, int(state.step)
    meter = Meter(held_out.metric_log, held_out.progress, program=program)
    to_train = _batches(program, held_out.datasets, start)
    stop.deferred = True
    for step in range(start + 1, config.num_steps + 1):
        with meter.waiting():
            host_batch = next(to_train)
        batch = put_batch(host_batch, program.mesh)
        tracer.begin(step)
        state, metrics = program.train_step(state, batch, compiling=meter.compiling)
        tracer.end(step, metrics)
        meter.add(step, metrics, num_tokens=flops.num_tokens(batch))
        results = None
        if step == config.num_steps or due(step, config.eval):
            with meter.paused():
                results = held_out.evaluate(step, state)
        finished = step == config.num_steps or held_out.exhausted()
        improved = results is not None and held_out.improved()
        leave = stop.agreed(ask=due(step, config.log)) or finished
        if leave or improved or due(step, config.checkpoint):
            with meter.paused():
                checkpoints.save(state, metrics=results)
        if due(step, config.sample) and not finished:
            with meter.paused():
                held_out.sample(step, state)
        if leave:
            break
    checkpoints.wait()
    if finished:
        held_out.finish(step, state, checkpoints)
    return finished


def _batches(program: Program, datasets: Datasets, start: int) -> Iterator[HostBatch]:
    """Return this process's rows of the batches from a step on."""
    return batches.train(
        datasets,
        program.config,
        start_step=start,
        data_shards=sharding.data_shards(program.mesh),
        rows=functools.partial(local_rows, program.mesh),
    )


class Every(Protocol):
    """A section of the config that says how often."""

    @property
    def every_steps(self) -> int:
        """Return the steps between, 0 for only at the end."""


def due(step: int, section: Every) -> bool:
    """Return whether the section wants its turn after this step."""
    return section.every_steps > 0 and step % section.every_steps == 0


class StopSignal:
    """SIGTERM and SIGINT while training: finish the step, save, and leave.

    One of several processes goes on to the next `log.every_steps`, where all leave.
    Before `deferred` is set there is nothing to save, and they leave at once; a second
    SIGINT does so too.
    """

    def __init__(self) -> None:
        self.requested = self.deferred = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def agreed(self, *, ask: bool) -> bool:
        """Return whether to stop; several processes do it at one step, if all `ask`.

        Asking costs them a little, so it is not done at each step.
        """
        if not processes.several_processes():
            return self.requested
        return ask and processes.any_process(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.deferred:
            raise SystemExit(EXIT_STOPPED)
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


def explained(
    error: NonFiniteError,
    program: Program,
    datasets: Datasets,
    checkpoints: Checkpoints,
) -> FloatingPointError:
    """Return the error with the samples of its step and the last good checkpoint."""
    config = program.config
    checkpoints.wait()
    saved = checkpoints.steps()
    data_shards = sharding.data_shards(program.mesh)
    batch = batches.describe_step(datasets, config, error.step, data_shards=data_shards)
    good = f"the last good checkpoint is of step {saved[-1]}" if saved else "none saved"
    return FloatingPointError(
        f"{error}; {batch}; {good} "
        "(config.optim.on_nonfinite='skip' leaves such updates out)"
    )
