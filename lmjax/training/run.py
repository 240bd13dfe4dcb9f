"""The program, the data and the open files of one training run."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

from lmjax.config.experiment import Config
from lmjax.data import batches, example_datasets
from lmjax.data.datasets import Datasets
from lmjax.generate.decode import Generator
from lmjax.parallel import processes, sharding
from lmjax.parallel.heartbeat import status
from lmjax.progress import ProgressBar
from lmjax.run import workdir
from lmjax.run.checkpoint import Checkpoints
from lmjax.run.metric_log import MetricLog
from lmjax.tasks.distill import Teacher
from lmjax.training import init_embedding
from lmjax.training.compiled import Program
from lmjax.training.evaluate import Evaluation
from lmjax.training.init_from import initial_state, load_reference
from lmjax.training.teacher import load_teacher, needs_copy
from lmjax.types import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """The compiled functions, the data and the open files of a run."""

    program: Program
    datasets: Datasets
    directory: Path
    checkpoints: Checkpoints
    metric_log: MetricLog
    progress: ProgressBar
    row_multiple: int  # divides the rows of its batches since it began
    teacher: Teacher | None = None

    @property
    def config(self) -> Config:
        """The experiment."""
        return self.program.config

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """The evaluation of parameters on a split; compiled once."""
        own = self.teacher if needs_copy(self.config) else None
        return Evaluation(self.program, self.datasets, own)

    @functools.cached_property
    def generator(self) -> Generator:
        """The sampling of text; compiled once for each shape."""
        return Generator(self.program.model, self.datasets.tokenizer.vocab_size)


@contextlib.contextmanager
def open_run(
    program: Program, datasets: Datasets, directory: Path
) -> Iterator[tuple[Run, TrainState]]:
    """Open a run with its newest state, or its first; close its files in the end.

    Raises:
      UserError: no checkpoint can be read, or the log cannot be written.
    """
    config = program.config
    with contextlib.ExitStack() as files:
        checkpoints = Checkpoints(directory, config.checkpoint)
        files.enter_context(contextlib.closing(checkpoints))
        status.begin("restoring")
        state = checkpoints.restore(program.state_shapes)
        if state is None:
            status.begin("initializing")
            state = initial_state(program)
            state = init_embedding.with_word_vectors(state, program, datasets)
        start = int(state.step)
        metric_log = MetricLog(
            directory,
            config.log,
            start_step=start,
            expected=checkpoints.log_mark(start),
        )
        files.enter_context(contextlib.closing(metric_log))
        progress = ProgressBar(
            "step", total=config.num_steps, done=start, visible=processes.is_first()
        )
        files.enter_context(progress)
        progress.update(start, "compiling")
        run = Run(
            program=program,
            datasets=datasets,
            directory=directory,
            checkpoints=checkpoints,
            metric_log=metric_log,
            progress=progress,
            row_multiple=_row_multiple(program, directory),
            teacher=load_reference(program, directory)
            or load_teacher(
                config,
                program.teacher,
                tokenizer=datasets.tokenizer,
                mesh=program.mesh,
            ),
        )
        yield run, state


def _row_multiple(program: Program, directory: Path) -> int:
    """Return what the rows of batches are a multiple of; text has no such choice."""
    if not example_datasets.reads_examples(program.config):
        return 0
    data_shards = sharding.data_shards(program.mesh)
    return workdir.keep_row_multiple(
        directory, batches.row_multiple_of(program.config, data_shards=data_shards)
    )
