"""The functions of one experiment, jitted for one mesh."""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from lmjax import models, tasks
from lmjax.config.experiment import Config
from lmjax.models import Model
from lmjax.nn.recurrent.layers import State
from lmjax.parallel import sharding
from lmjax.parallel.compiler_options import Options, choose_options
from lmjax.tasks import EvalOutput, Task
from lmjax.tasks.distill import Teacher
from lmjax.training import optim, step
from lmjax.training.optim import Optimizer
from lmjax.training.teacher import shape_teacher, teaching_flops
from lmjax.types import Array, Batch, Metrics, Params, TrainState


class CompiledStep:
    """The training step, compiled ahead of time for each shape of batch it is given.

    The state is donated: its buffers become those of the next state. A teacher is not.
    """

    def __init__(
        self, jitted: Any, state_shapes: TrainState, teacher: Teacher | None = None
    ) -> None:
        self._jitted, self._state_shapes = jitted, state_shapes
        self._teacher = teacher  # with shapes for parameters
        self._compiled: dict[tuple[Any, ...], Any] = {}

    @property
    def num_compilations(self) -> int:
        """Return the number of shapes that were compiled."""
        return len(self._compiled)

    def __call__(
        self, state: TrainState, batch: Batch, teacher: Teacher | None = None
    ) -> tuple[TrainState, Metrics]:
        """Return the next state and the step's metrics; the state is donated."""
        return self.compile(batch)(state, batch, teacher)

    def lower(self, batch: Batch) -> Any:
        """Return the step lowered for the shapes of a batch, to be compiled."""
        return self._jitted.lower(self._state_shapes, batch, self._teacher)

    def compile(
        self, batch: Batch
    ) -> Callable[[TrainState, Batch, Teacher | None], tuple[TrainState, Metrics]]:
        """Return the step compiled for the shapes of a batch of global arrays."""
        if not self.has_compiled(batch):
            self.compile_all([batch])
        return self._compiled[_shapes(batch)]

    def has_compiled(self, batch: Batch) -> bool:
        """Return whether the step is compiled for the shapes of a batch."""
        return _shapes(batch) in self._compiled

    def compile_all(self, batches: Sequence[Batch]) -> None:
        """Compile the step for the shapes of several batches, side by side.

        Args:
          batches: global arrays, or `jax.ShapeDtypeStruct`s with their shardings.
        """
        missing = {_shapes(b): b for b in batches if not self.has_compiled(b)}
        # Tracing holds Python's lock, and reads the mesh of this thread.
        lowered = [self.lower(batch) for batch in missing.values()]
        # Each compilation takes gigabytes of the host's memory.
        most = min(len(lowered), os.cpu_count() or 1, 8)
        with concurrent.futures.ThreadPoolExecutor(max(most, 1)) as threads:
            compiled = threads.map(lambda one: one.compile(), lowered)
            self._compiled |= dict(zip(missing, compiled, strict=True))


def _shapes(batch: Batch) -> tuple[Any, ...]:
    return tuple((name, batch[name].shape) for name in sorted(batch))


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Model, task and optimizer of a config, and their jitted functions on a mesh.

    It holds shapes and shardings, but no arrays.
    """

    config: Config
    mesh: Mesh
    model: Model
    task: Task
    optimizer: Optimizer
    state_shapes: TrainState  # jax.ShapeDtypeStruct with shardings

    @functools.cached_property
    def init(self) -> Callable[[Array], TrainState]:
        """Return the jitted `init_state` of a key: each device makes its own shards."""
        return jax.jit(self._init_state, out_shardings=self._state_shardings)

    @functools.cached_property
    def init_from_params(self) -> Callable[[Array, Params], TrainState]:
        """Return the jitted `init_state` of a key and parameters, which are donated."""
        init = lambda key, params: self._init_state(key, params=params)
        return jax.jit(init, out_shardings=self._state_shardings, donate_argnums=1)

    def first_params(self, key: Array, params: Params | None) -> Params:
        """Return the parameters with which a run begins, without an optimizer's state.

        Args:
          key: as of `init`.
          params: those to begin with, which are donated; None: random ones.
        """
        first = lambda key, params: self._init_state(key, params=params).params
        shardings = self._state_shardings.params
        return jax.jit(first, out_shardings=shardings, donate_argnums=1)(key, params)

    @functools.cached_property
    def train_step(self) -> CompiledStep:
        """Return the training step of a state and a batch."""
        train_step = functools.partial(
            step.train_step,
            model=self.model,
            task=self.task,
            optimizer=self.optimizer,
            num_microbatches=self.config.num_microbatches,
        )
        jitted = jax.jit(
            train_step,
            donate_argnums=0,
            out_shardings=(self._state_shardings, sharding.replicated(self.mesh)),
            compiler_options=self.compiler_options,
        )
        return CompiledStep(jitted, self.state_shapes, self.teacher)

    @functools.cached_property
    def teacher(self) -> Teacher | None:
        """Return what the step asks besides the model, with shapes for parameters."""
        return shape_teacher(self.config, self.mesh)

    @functools.cached_property
    def eval_step(self) -> Callable[..., EvalOutput]:
        """Return the jitted evaluation of a batch, whose rows continue a carry, if any.

        It takes parameters, a batch, a carry, and the reference of preferences.
        Each process has the predictions of all rows.
        """
        eval_step = functools.partial(step.eval_step, model=self.model, task=self.task)
        replicated = sharding.replicated(self.mesh)
        carry = sharding.batch_sharding(self.mesh)
        shardings = EvalOutput._make((replicated, replicated, carry))
        return jax.jit(
            eval_step,
            out_shardings=shardings,
            compiler_options=self.compiler_options,
        )

    @functools.cached_property
    def compiler_options(self) -> Options:
        """Return the options of XLA for the steps; most are of collectives."""
        return choose_options(self.config.compile, self.mesh)

    def init_eval_carry(self) -> State | None:
        """Return the carry before the first held-out batch; None if there is no carry.

        In contiguous order a split is one text, which continues from one batch to the
        next in the first row: a batch has as many rows as the mesh splits it into.
        """
        return None if self._init_carry is None else self._init_carry()

    @functools.cached_property
    def _init_carry(self) -> Callable[[], State] | None:
        if self.config.data.order != "contiguous":
            return None
        num_rows = sharding.data_shards(self.mesh)
        start = functools.partial(self.model.init_carry, num_rows)
        return jax.jit(start, out_shardings=sharding.batch_sharding(self.mesh))

    @property
    def _init_state(self) -> Callable[..., TrainState]:
        return _state_initializer(self.config, self.model, self.optimizer)

    @property
    def _state_shardings(self) -> Any:
        return jax.tree.map(lambda leaf: leaf.sharding, self.state_shapes)

    @property
    def flops_per_token(self) -> float:
        """Return the FLOPs of training on one token, of a source or a target."""
        batch = self.batch_shapes()
        return self.model.flops_per_token(batch) + teaching_flops(self.teacher, batch)

    def batch_shapes(self) -> Batch:
        """Return the shapes and shardings of a global training batch."""
        data = self.config.data
        shapes = self.task.batch_shapes(
            self.config.batch_size, data.length, target_length=data.target_length
        )
        shardings = jax.tree.map(
            lambda leaf: sharding.batch_sharding(self.mesh, leaf.shape), shapes
        )
        return sharding.with_shardings(shapes, shardings)


def make_program(config: Config, mesh: Mesh) -> Program:
    """Build model, task and optimizer, and choose the shardings of the state.

    Raises:
      ConfigError: the mesh does not divide a size.
    """
    platform = mesh.devices.flat[0].platform
    model = models.build(config.model, platform=platform, mesh=mesh)
    optimizer = optim.build(config.optim, axes=model.axes, num_steps=config.num_steps)
    rows = config.batch_size // config.num_microbatches
    sharding.check_rows("config.batch_size / config.num_microbatches", rows, mesh)
    sharding.check_rows("config.eval.batch_size", config.eval.batch_size, mesh)
    state = jax.eval_shape(
        _state_initializer(config, model, optimizer), jax.random.key(0)
    )
    params = sharding.param_shardings(model.axes, model.shapes, mesh)
    shardings = sharding.state_shardings(state, model.shapes, params, mesh)
    carry = jax.tree.map(lambda _: sharding.batch_sharding(mesh), state.carry)
    shardings = dataclasses.replace(shardings, carry=carry)
    return Program(
        config=config,
        mesh=mesh,
        model=model,
        task=tasks.build(config.task),
        optimizer=optimizer,
        state_shapes=sharding.with_shardings(state, shardings),
    )


def _state_initializer(
    config: Config, model: Model, optimizer: Optimizer
) -> Callable[..., TrainState]:
    """Return `init_state` for this experiment, of a key and optional parameters."""
    has_carry = config.data.order == "contiguous"
    return functools.partial(
        step.init_state,
        model=model,
        optimizer=optimizer,
        carry_rows=config.batch_size if has_carry else 0,
    )
