"""The training loop: restore; train, log, evaluate, save, sample; finish."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import jax

from lmjax.config.experiment import Config, leaves, to_dict
from lmjax.data import batches, pipeline
from lmjax.data.datasets import Datasets
from lmjax.data.stores.verification import Verification
from lmjax.models import flops
from lmjax.parallel import agreement, compilation_cache, processes, sharding, watch
from lmjax.parallel.batch import local_rows, put_batch, shapes_on_mesh
from lmjax.parallel.copies import Copies
from lmjax.parallel.heartbeat import status
from lmjax.parallel.watchdog import DATA
from lmjax.run import trackers, workdir
from lmjax.run.starts import note_start
from lmjax.training import (
    evaluate,
    init_embedding,
    run_evaluation,
    samples,
    teacher,
)
from lmjax.training.compiled import make_program
from lmjax.training.profiler import Profiler
from lmjax.training.run import Run, open_run
from lmjax.training.stop_signal import LeaveNow, StopSignal, raise_exit
from lmjax.training.throughput import Meter, NonFiniteError
from lmjax.types import HostBatch, TrainState

# Seconds for which a run waits, in the end, until the stores it read are verified.
_VERIFICATION_SECONDS = 60.0


def train(
    config: Config,
    directory: Path,
    *,
    profile: range = range(0),
    leave_now: LeaveNow = raise_exit,
) -> bool:
    """Train to `config.num_steps` in a workdir, from its newest checkpoint.

    Args:
      config: the experiment.
      directory: the workdir; created if missing.
      profile: the steps to write a profiler trace of.
      leave_now: how to exit at once, when a signal says so.

    Returns:
      Whether training is finished. If not, a signal stopped it: the state is saved,
      and the next call continues.

    Raises:
      UserError: the user's mistake, in one line.
      FloatingPointError: the loss is not finite and `optim.on_nonfinite` is "stop";
        the text names the step, its samples and the last good checkpoint.
    """
    compilation_cache.use_cache(config.compile)
    with (
        StopSignal(leave_now) as stop,
        watch.watch(directory, config.watch) as monitor,
    ):
        stop.share(monitor)
        agreement.check_agreement(
            agreement.describe_code() | dict(leaves(to_dict(config), "config"))
        )
        with processes.sync_errors():
            config = pipeline.resolve_vocabulary(config)
            evaluate.check(config)
            teacher.check(config)
            trackers.check_installed(config.log.trackers)
        with workdir.hold(directory):
            with status.phase(DATA):
                datasets = _prepare_data(config, directory)
            agreement.check_agreement(pipeline.fingerprints(datasets))
            mesh = sharding.make_mesh(config.mesh)
            with (
                jax.set_mesh(mesh),
                _verify(datasets) as verification,
                open_run(make_program(config, mesh), datasets, directory) as (
                    run,
                    state,
                ),
            ):
                try:
                    return _train(
                        run,
                        state,
                        stop=stop,
                        verification=verification,
                        profile=profile,
                    )
                except NonFiniteError as error:
                    raise _explain_nonfinite(run, error) from None


def _prepare_data(config: Config, directory: Path) -> Datasets:
    """Check that the workdir is free or this run's own, and open its data."""
    with processes.sync_errors():
        workdir.check_same_run(directory, config)
        resumes = workdir.has_checkpoints(directory)
        if not resumes:
            init_embedding.check(config)
    with processes.sync_errors():
        datasets = pipeline.prepare(config, workdir=directory, resume=resumes)
        if processes.is_first():
            workdir.check_same_data(directory, pipeline.fingerprints(datasets))
            workdir.write_config(directory, config)
    return datasets


@contextlib.contextmanager
def _verify(datasets: Datasets) -> Iterator[Verification]:
    """Verify the stores in the background, and small ones before training begins.

    Raises:
      UserError: a file is damaged.
    """
    stores = [store for opened in datasets.stores.values() for store in opened]
    share = (0, 1)
    if processes.several_processes():
        share = (jax.process_index(), jax.process_count())
    with contextlib.closing(Verification(stores, share=share)) as verification:
        with processes.sync_errors():
            verification.check(wait_seconds=1.0)
        yield verification


def _train(
    run: Run,
    state: TrainState,
    *,
    stop: StopSignal,
    verification: Verification,
    profile: range,
) -> bool:
    """Train from a state to the end, or to a signal; return whether it is the end."""
    config, mesh, start = run.config, run.program.mesh, int(state.step)
    samples.check_prompts(run)
    run.evaluation.check()

    # A finished run: only its last samples and its test metrics may be missing, if it
    # was killed before they were written.
    if start >= config.num_steps or run_evaluation.stops_early(run):
        run.progress.print(f"finished at step {start}; nothing is left to train")
        _finish(run, state)
        return True

    _announce(run, state)
    host_batches = _open_batches(run, start=start)
    train_step = run.program.train_step
    meter = Meter(run.metric_log, run.progress, program=run.program)
    _compile_buckets(run, meter)
    finished = False
    stop.defer(start)  # there is now a state that is worth saving
    profiler = Profiler(run.directory, profile)
    copies = Copies(run.program.state_shapes.params, mesh)
    # An implicit transfer would make the host wait for the devices: it is an error but
    # where the meter is paused.
    with contextlib.closing(profiler), jax.transfer_guard("disallow"):
        for step in range(start + 1, config.num_steps + 1):
            status.at_step(step)

            # The next batch: read ahead by other threads, so we seldom wait for it.
            with meter.waiting():
                host_batch = next(host_batches)
            batch = put_batch(host_batch, mesh)

            # Buckets were compiled before; the one shape of text when it is first met.
            if not train_step.has_compiled(batch):
                with _compiling(meter):
                    train_step.compile(batch)

            # The step. It is only dispatched: while the devices compute it, the host
            # prepares the next batch.
            profiler.begin(step)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = train_step(state, batch, run.teacher)
            profiler.end(step, metrics)

            # The log: reads the metrics of a step that the devices have done by now.
            meter.add(step, metrics, num_tokens=flops.num_tokens(batch))

            # Now and then: are the copies of the parameters still equal?
            if _is_due(step, config.log.copies_every_steps):
                copies.compare(step, state.params)

            # Evaluation on the valid split.
            evaluated = {}
            if step == config.num_steps or _is_due(step, config.eval.every_steps):
                with meter.paused(), status.phase("evaluating"):
                    evaluated = run_evaluation.evaluate_split(
                        run, "valid", state.eval_params, step=step
                    )

            # Whether to leave: at the end, where patience ends, or after a signal.
            finished = step == config.num_steps or run_evaluation.stops_early(run)
            leave = finished or stop.is_requested(
                step, or_else=verification.has_failed or run.checkpoints.has_failed
            )
            if leave:
                # Before the state is saved: it has learnt from what was damaged.
                with processes.sync_errors():
                    verification.check(wait_seconds=_VERIFICATION_SECONDS * finished)
                run.checkpoints.check_for_errors()

            # A checkpoint: now and then, of the best, and before leaving.
            best = bool(evaluated) and run_evaluation.is_best(run)
            if leave or best or _is_due(step, config.checkpoint.every_steps):
                run.metric_log.upload_soon()
                with meter.paused(), status.phase("saving"):
                    copies.check()
                    run.checkpoints.save(
                        state, metrics=evaluated, log_mark=run.metric_log.mark
                    )

            # Samples of text; after the last step they follow in `_finish`.
            if _is_due(step, config.sample.every_steps) and not finished:
                with meter.paused(), status.phase("sampling"):
                    samples.write_samples(run, state)

            if leave:
                break

    status.begin("saving")
    run.checkpoints.wait()
    if finished:
        _finish(run, state)
    return finished


def _announce(run: Run, state: TrainState) -> None:
    """Say where training begins, and on which batches; note the start."""
    config, start = run.config, int(state.step)
    run.progress.print(f"training from step {start} to {config.num_steps}")
    note_start(run.directory, step=start, mesh=run.program.mesh)
    run.metric_log.write_text(start, "config", _print_config(config))
    if start and _is_due(start, config.sample.every_steps):
        _write_missing_samples(run, state)
    if shapes := batches.describe(run.datasets, config, **_row_shapes(run)):
        run.progress.print(shapes)


def _open_batches(run: Run, *, start: int) -> Iterator[HostBatch]:
    """Return this process's rows of the batches of the steps after `start`.

    The batch of a step depends on the step alone: resuming repeats or skips none.
    """
    return batches.train_batches(
        run.datasets,
        run.config,
        start_step=start,
        **_row_shapes(run),
        rows=functools.partial(local_rows, run.program.mesh),
    )


def _compile_buckets(run: Run, meter: Meter) -> None:
    """Compile the step for all shapes of batches, if there are several."""
    buckets = batches.bucket_shapes(run.datasets, run.config, **_row_shapes(run))
    if len(buckets) > 1:
        shapes = [shapes_on_mesh(batch, run.program.mesh) for batch in buckets]
        with _compiling(meter):
            run.program.train_step.compile_all(shapes)


def _row_shapes(run: Run) -> dict[str, int]:
    """Return what decides the shapes of batches beside the config."""
    return {
        "data_shards": sharding.data_shards(run.program.mesh),
        "row_multiple": run.row_multiple,
    }


def _print_config(config: Config) -> str:
    return "\n".join(f"{path} = {v!r}" for path, v in leaves(to_dict(config), "config"))


@contextlib.contextmanager
def _compiling(meter: Meter) -> Iterator[None]:
    with meter.compiling(), status.phase("compiling"):
        yield


def _finish(run: Run, state: TrainState) -> None:
    """Write the last samples and evaluate on the test split, unless that was done."""
    status.begin("finishing")
    _write_missing_samples(run, state)
    run_evaluation.evaluate_test(run, state)


def _write_missing_samples(run: Run, state: TrainState) -> None:
    """Write the samples of a step, unless they were written before the run resumed."""
    if not samples.has_samples(run, int(state.step)):
        samples.write_samples(run, state)


def _is_due(step: int, every_steps: int) -> bool:
    """Return whether `step` is a multiple of `every_steps`; 0 is never."""
    return every_steps > 0 and step % every_steps == 0


def _explain_nonfinite(run: Run, error: NonFiniteError) -> FloatingPointError:
    """Return the error with the samples of its step and the last good checkpoint."""
    run.checkpoints.wait()
    saved = run.checkpoints.steps()
    batch = batches.describe_step(
        run.datasets,
        run.config,
        error.step,
        **_row_shapes(run),
    )
    good = f"the last good checkpoint is of step {saved[-1]}" if saved else "none saved"
    return FloatingPointError(
        f"{error}; {batch}; {good} "
        "(config.optim.on_nonfinite='skip' leaves such updates out)"
    )
