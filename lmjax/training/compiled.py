"""The functions of one experiment, jitted for one mesh."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from lmjax import models, tasks
from lmjax.config.experiment import Config
from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.parallel import sharding
from lmjax.tasks import Task
from lmjax.training import optim
from lmjax.training.optim import Optimizer
from lmjax.training.step import eval_step, eval_step_from, init_state, train_step
from lmjax.types import Array, Batch, Metrics, Params, TrainState


class TrainStep:
    """The training step, compiled ahead of time for each shape of batch it is given.

    The state is donated: its buffers become those of the next state.
    """

    def __init__(self, jitted: Any, state_shapes: TrainState) -> None:
        self._jitted, self._state_shapes = jitted, state_shapes
        self._compiled: dict[tuple[Any, ...], Any] = {}

    @property
    def num_compilations(self) -> int:
        """Count the shapes met so far."""
        return len(self._compiled)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Return the next state and the step's metrics."""
        self.compile(batch)
        return self._compiled[_shape(batch)](state, batch)

    def knows(self, batch: Batch) -> bool:
        """Return whether the step is compiled for batches such as this one."""
        return _shape(batch) in self._compiled

    def compile(self, batch: Batch) -> float:
        """Compile for batches such as this one; return the seconds that took."""
        if self.knows(batch):
            return 0.0
        begin = time.perf_counter()
        lowered = self._jitted.lower(self._state_shapes, batch)
        self._compiled[_shape(batch)] = lowered.compile()
        return time.perf_counter() - begin


def _shape(batch: Batch) -> tuple[Any, ...]:
    return tuple((name, batch[name].shape) for name in sorted(batch))


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """What a config and a mesh make: nothing here holds an array."""

    config: Config
    mesh: Mesh
    model: Model
    task: Task
    optimizer: Optimizer
    state_shapes: TrainState  # jax.ShapeDtypeStruct with shardings

    @functools.cached_property
    def init(self) -> Callable[[Array], TrainState]:
        """Return the jitted start: each device makes its own part of the state."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state_shapes)
        start = _starter(self.config, self.model, self.optimizer)
        return jax.jit(start, out_shardings=shardings)

    @functools.cached_property
    def begin(self) -> Callable[[Array, Params], TrainState]:
        """Return the jitted start from given parameters, which are donated."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state_shapes)
        fresh = _starter(self.config, self.model, self.optimizer)
        start = lambda key, params: fresh(key, params=params)
        return jax.jit(start, out_shardings=shardings, donate_argnums=1)

    @functools.cached_property
    def train_step(self) -> "TrainStep":
        """Return the training step, compiled when it first meets a shape of batch."""
        step = functools.partial(
            train_step,
            model=self.model,
            task=self.task,
            optimizer=self.optimizer,
            num_microbatches=self.config.num_microbatches,
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state_shapes)
        jitted = jax.jit(
            step,
            donate_argnums=0,
            out_shardings=(shardings, sharding.replicated(self.mesh)),
        )
        return TrainStep(jitted, self.state_shapes)

    @functools.cached_property
    def eval_step(self) -> Callable[[Params, Batch], Metrics]:
        """Return the jitted evaluation of one batch."""
        step = functools.partial(eval_step, model=self.model, task=self.task)
        return jax.jit(step, out_shardings=sharding.replicated(self.mesh))

    def eval_pass(self) -> Callable[[Params, Batch], Metrics]:
        """Return the evaluation of one batch after another, in the order of the data.

        In contiguous order the text goes on from one batch to the next, in the first
        row: there are as many as the mesh splits a batch into.
        """
        if self.config.data.order != "contiguous":
            return self.eval_step
        step, start = self._eval_step_from
        carry = start()

        def evaluate(params: Params, batch: Batch) -> Metrics:
            nonlocal carry
            metrics, carry = step(params, batch, carry)
            return metrics

        return evaluate

    @functools.cached_property
    def _eval_step_from(self) -> tuple[Callable[..., Any], Callable[[], State]]:
        """Return the jitted evaluation that goes on, and what it begins with."""
        rows = sharding.batch_sharding(self.mesh)
        step = functools.partial(eval_step_from, model=self.model, task=self.task)
        num_rows = sharding.data_shards(self.mesh)
        start = functools.partial(self.model.init_carry, num_rows)
        outputs = (sharding.replicated(self.mesh), rows)
        return jax.jit(step, out_shardings=outputs), jax.jit(start, out_shardings=rows)

    @property
    def flops_per_token(self) -> float:
        """Return the FLOPs of training on one token, source or target."""
        return self.model.flops_per_token(self.batch_shapes())

    def batch_shapes(self) -> Batch:
        """Return the shapes and shardings of a global training batch."""
        data = self.config.data
        shapes = self.task.batch_shapes(
            self.config.batch_size, data.length, target_length=data.target_length
        )
        return sharding.with_shardings(shapes, sharding.batch_sharding(self.mesh))


def make_program(config: Config, mesh: Mesh) -> Program:
    """Build model, task and optimizer, and lay the state over the mesh.

    Raises:
      ConfigError: a size that the mesh does not divide.
    """
    model = models.build(config.model, platform=mesh.devices.flat[0].platform)
    optimizer = optim.build(config.optim, axes=model.axes, num_steps=config.num_steps)
    rows = config.batch_size // config.num_microbatches
    sharding.check_rows("config.batch_size / config.num_microbatches", rows, mesh)
    sharding.check_rows("config.eval.batch_size", config.eval.batch_size, mesh)
    state = jax.eval_shape(_starter(config, model, optimizer), jax.random.key(0))
    params = sharding.param_shardings(model.axes, model.shapes, mesh)
    shardings = sharding.state_shardings(state, model.shapes, params, mesh)
    of_rows = jax.tree.map(lambda _: sharding.batch_sharding(mesh), state.carry)
    shardings = dataclasses.replace(shardings, carry=of_rows)
    return Program(
        config=config,
        mesh=mesh,
        model=model,
        task=tasks.build(config.task),
        optimizer=optimizer,
        state_shapes=sharding.with_shardings(state, shardings),
    )


def _starter(
    config: Config, model: Model, optimizer: Optimizer
) -> Callable[..., TrainState]:
    """Return `init_state` for this experiment, of a key and maybe parameters."""
    carries = config.data.order == "contiguous"
    return functools.partial(
        init_state,
        model=model,
        optimizer=optimizer,
        carry_rows=config.batch_size if carries else 0,
    )
