"""The config of an experiment: its sections, defaults, and checks across sections.

An experiment file has `get_config() -> ml_collections.ConfigDict`. `parse` turns it,
with the overrides of the command line, into a frozen `Config` before any device is
used. All problems are reported then, each with its dotted path, its value, and what is
allowed. Where a comment explains a value 0 ("0: ..."), `parse` replaces it by what
follows from the other leaves.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from lmjax.config.compatibility import find_conflicts
from lmjax.config.compile import CompileConfig
from lmjax.config.data import DataConfig
from lmjax.config.decoding import max_new_tokens
from lmjax.config.leaf_types import (
    Fraction,
    Interval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    runtime_field,
)
from lmjax.config.model import (
    DecoderConfig,
    LabelHeadConfig,
    ModelConfig,
    TransformerConfig,
    resolve_model_defaults,
)
from lmjax.config.optim import OptimConfig
from lmjax.config.parse import (
    apply_override,
    build,
    import_path,
    load_module,
    to_builtins,
    validate_tree,
)
from lmjax.config.task import (
    GenerationTaskConfig,
    TaskConfig,
)
from lmjax.config.text_task import CausalLMConfig
from lmjax.config.tokenizer import TokenizerConfig
from lmjax.config.unused import unused_leaves
from lmjax.config.watch import WatchConfig
from lmjax.errors import ConfigError, UserError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The number of devices along each mesh axis; one may be -1: all that remain."""

    data: Annotated[int, Interval(-1)] = -1  # data parallel: each has all parameters
    fsdp: Annotated[int, Interval(-1)] = 1  # data parallel, parameters sharded
    context: Annotated[int, Interval(-1)] = 1  # context parallel: rows split in length
    tensor: Annotated[int, Interval(-1)] = 1  # tensor parallel: heads and MLP sharded

    def without_context(self) -> Self:
        """Return the mesh of as many devices that splits rows by their number alone."""
        if self.context < 0:
            return dataclasses.replace(self, context=1, fsdp=-1)
        fsdp = self.fsdp * self.context if self.fsdp > 0 else self.fsdp
        return dataclasses.replace(self, context=1, fsdp=fsdp)

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        sizes = dataclasses.asdict(self)
        if list(sizes.values()).count(-1) > 1:
            yield f"{path} = {sizes}: at most one axis may be -1"
        yield from (
            f"{path}.{axis} = 0: must be >= 1, or -1"
            for axis in sizes
            if not sizes[axis]
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often to save a checkpoint, and how many to keep."""

    every_steps: NonNegativeInt = 1000  # 0: only at the end
    keep: PositiveInt = 3  # number of most recent checkpoints to keep
    # a validation metric, such as "loss": also keep the checkpoint with its best value;
    # "": none
    best_metric: str = ""
    best_mode: Literal["min", "max"] = "min"  # whether lower or higher is better


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation on the validation split during training, and early stopping."""

    every_steps: NonNegativeInt = 1000  # 0: only at the end
    batch_size: NonNegativeInt = 0  # 0: the training batch size
    # batches per evaluation, spread evenly over the split; 0: the whole split, each
    # token once
    num_batches: NonNegativeInt = 0
    # early stopping: evaluations in a row without a new best value of
    # checkpoint.best_metric; 0: never stop early
    patience: NonNegativeInt = 0
    # after training, also print how well gzip and xz compress the validation text
    compressors: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Text generated during training, to look at: WORKDIR/samples."""

    every_steps: NonNegativeInt = 0  # 0: only at the end
    prompts: tuple[str, ...] = ()  # (): no samples
    max_tokens: PositiveInt = 64  # of each sample
    temperature: NonNegativeFloat = 0.8  # 0: greedy
    top_k: NonNegativeInt = 0  # sample from the k most likely tokens; 0: from all
    # nucleus sampling: from the most likely tokens that together have this probability
    top_p: Fraction = 0.95

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between fields."""
        if not self.top_p:
            yield f"{path}.top_p = 0.0: must be > 0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How training metrics are logged."""

    every_steps: PositiveInt = 10
    tensorboard: bool = True  # also write TensorBoard event files
    # servers that are sent the metrics, too: "wandb" (Weights & Biases), "mlflow"
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    # compare the copies of the parameters that several devices hold; 0: never
    copies_every_steps: NonNegativeInt = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment."""

    seed: Annotated[int, Interval(0, below=1 << 32)] = 0
    num_steps: PositiveInt = runtime_field(1000)  # optimizer steps in all
    batch_size: PositiveInt = 8  # rows per step, over all devices
    # gradient accumulation: each batch is processed in this many parts
    num_microbatches: PositiveInt = runtime_field(1)
    # pretrained parameters to start from: a workdir, or a Hugging Face directory or
    # model name; "": random initialization
    init_from: str = ""
    # a file of word vectors (GloVe, word2vec) to initialize the embedding; "": none
    init_embedding_from: str = ""
    model: ModelConfig = DecoderConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    task: TaskConfig = CausalLMConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = runtime_field(MeshConfig())
    compile: CompileConfig = runtime_field(CompileConfig())
    checkpoint: CheckpointConfig = runtime_field(CheckpointConfig())
    eval: EvalConfig = runtime_field(EvalConfig())
    sample: SampleConfig = runtime_field(SampleConfig())
    log: LogConfig = runtime_field(LogConfig())
    watch: WatchConfig = runtime_field(WatchConfig())

    def validate(self, path: str) -> Iterator[str]:
        """Yield the problems between sections."""
        if self.data.length > self.model.max_length:
            yield (
                f"{path}.data.length = {self.data.length}: must be at most "
                f"{path}.model.max_length = {self.model.max_length}"
            )
        yield from find_conflicts(self, path)
        if self.batch_size % self.num_microbatches:
            yield (
                f"{path}.num_microbatches = {self.num_microbatches}: must divide "
                f"{path}.batch_size = {self.batch_size}"
            )
        if self.init_from and self.init_embedding_from:
            yield (
                f"{path}.init_embedding_from = {self.init_embedding_from!r}: must be "
                f"'' with {path}.init_from, which already has embeddings"
            )
        rows = max(self.mesh.data, 1) * max(self.mesh.fsdp, 1)
        for name, size in (
            ("batch_size / num_microbatches", self.batch_size // self.num_microbatches),
            ("eval.batch_size", self.eval.batch_size),
        ):
            if rows and size % rows:
                yield (
                    f"{path}.{name} = {size}: must be a multiple of "
                    f"mesh.data * mesh.fsdp = {rows}"
                )
        if self.optim.warmup_steps > self.num_steps:
            yield (
                f"{path}.optim.warmup_steps = {self.optim.warmup_steps}: must be at "
                f"most {path}.num_steps = {self.num_steps}"
            )
        decay = self.optim.decay_steps(self.num_steps)
        left = self.num_steps - self.optim.warmup_steps
        if self.optim.schedule == "wsd" and 0 <= left < decay:
            yield (
                f"{path}.optim.decay_fraction = {self.optim.decay_fraction}: of "
                f"{path}.num_steps = {self.num_steps} these are {decay} steps, but "
                f"{path}.optim.warmup_steps = {self.optim.warmup_steps} leaves {left}"
            )
        yield from self._validate_prune(path)
        yield from self._validate_context(path)
        for axis in self.model.split_by_tensor:
            if self.mesh.tensor > 0 and getattr(self.model, axis) % self.mesh.tensor:
                yield (
                    f"{path}.model.{axis} = {getattr(self.model, axis)}: must be a "
                    f"multiple of {path}.mesh.tensor = {self.mesh.tensor}"
                )
        if self.eval.num_batches and self.checkpoint.best_metric in WHOLE_TEXT_METRICS:
            yield (
                f"{path}.checkpoint.best_metric = {self.checkpoint.best_metric!r}: "
                f"needs the whole validation split; set {path}.eval.num_batches=0, or "
                "use 'loss'"
            )
        if self.eval.patience and not self.checkpoint.best_metric:
            yield (
                f"{path}.eval.patience = {self.eval.patience}: needs "
                f"{path}.checkpoint.best_metric"
            )

    def _validate_prune(self, path: str) -> Iterator[str]:
        prune = self.optim.prune
        if prune.is_scheduled and prune.end_step > self.num_steps:
            yield (
                f"{path}.optim.prune.end_step = {prune.end_step}: must be at most "
                f"{path}.num_steps = {self.num_steps}"
            )
        if prune.method != "none" and self.model.adapter_rank:
            yield (
                f"{path}.optim.prune.method = {prune.method!r}: must be 'none' with "
                f"{path}.model.lora.rank = {self.model.adapter_rank}: adapters fill "
                "zeros when they are merged"
            )

    def _validate_context(self, path: str) -> Iterator[str]:
        context = self.mesh.context
        if context == 1:
            return
        if not self.model.attends_to_rows:
            yield (
                f"{path}.mesh.context = {context}: must be 1 for {path}.model.kind = "
                f"{self.model.kind!r}, which reads a row token by token"
            )
        for leaf in ("length", "target_length"):
            length = getattr(self.data, leaf)
            if context > 0 and length % context:
                yield (
                    f"{path}.data.{leaf} = {length}: must be a multiple of "
                    f"{path}.mesh.context = {context}"
                )


# Metrics that evaluation can report only when it has read the whole split.
WHOLE_TEXT_METRICS = ("word_perplexity", "bits_per_byte")

# Given `init_from`, returns the sections that its config provides defaults for.
Defaults = Callable[[str], Mapping[str, Any]]


def parse(
    source: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    defaults: Defaults | None = None,
) -> Config:
    """Parse a nested mapping and `a.b=value` overrides into a `Config`.

    Args:
      source: the config of an experiment file.
      overrides: those of the command line; they take precedence.
      defaults: given `init_from`, returns sections whose leaves apply where neither
        source nor overrides set them. A section of another `kind` is ignored. Its
        "constraints" are leaves of `task.write`, for the same tokenizer.

    Raises:
      ConfigError: all problems, in one line: each with its dotted path, the value,
        what is allowed, and for a misspelt name the nearest one.
    """
    problems: list[str] = []
    try:
        nested = to_builtins(source)
    except RecursionError as error:
        raise ConfigError("config: holds itself, or is nested too deep") from error
    sections: dict[str, Any] = {}
    constraints: dict[str, Any] = {}
    for override in overrides:
        apply_override(Config, nested, override, problems)
    init_from = nested.get("init_from")
    if defaults and isinstance(init_from, str) and init_from:
        sections = dict(defaults(init_from))
        constraints = sections.pop("constraints", {})
        for name, section in sections.items():
            own = nested.setdefault(name, {})
            if not isinstance(own, dict):
                continue  # `build` reports that this is not a section
            if own.get("kind", section.get("kind")) == section.get("kind"):
                nested[name] = _merge(section, own)
    config = build(Config, nested, "config", problems)
    if not problems:
        if sections and _same_tokenizer(to_dict(config.tokenizer), sections):
            config = _inherit_constraints(config, constraints)
        config = _resolve_defaults(config)
        problems += validate_tree(config, "config")
    if problems:
        raise ConfigError("; ".join(dict.fromkeys(problems)))
    return config


def _same_tokenizer(own: dict[str, Any], sections: Mapping[str, Any]) -> bool:
    """Return whether ids mean the same; how chats are written does not matter."""
    other = to_builtins(sections["tokenizer"])
    return {**own, "chat_template": ""} == {**other, "chat_template": ""}


def _inherit_constraints(config: Config, leaves: Mapping[str, Any]) -> Config:
    """Set the leaves of `task.write` that have their default."""
    write = getattr(config.task, "write", None)
    if write is None:
        return config
    unset = {
        name: value
        for name, value in leaves.items()
        if getattr(write, name) == getattr(type(write), name)
    }
    task: Any = dataclasses.replace(
        config.task, write=dataclasses.replace(write, **unset)
    )
    return dataclasses.replace(config, task=task)


def _merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings; where both have a leaf, `update` wins."""
    nested = {
        name: _merge(base[name], value)
        for name, value in update.items()
        if isinstance(value, dict) and isinstance(base.get(name), dict)
    }
    return {**base, **update, **nested}


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a config to a nested dict of JSON values, which `parse` reads back."""
    return to_builtins(dataclasses.asdict(config))


def leaves(section: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of each leaf of a `to_dict`."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value


def _resolve_defaults(config: Config) -> Config:
    """Replace each 0 that stands for a value that follows from other leaves."""
    model = resolve_num_labels(resolve_model_defaults(config.model), config.task)
    data = config.data
    target_length = data.target_length or config.task.default_target_length(
        data.length, model.decoder_prefix_ids
    )
    batch_size = config.eval.batch_size or config.batch_size
    config = dataclasses.replace(
        config,
        model=model,
        optim=_resolve_prune(_resolve_frozen(config), num_steps=config.num_steps),
        data=dataclasses.replace(data, target_length=target_length),
        eval=dataclasses.replace(config.eval, batch_size=batch_size),
    )
    task = config.task
    if isinstance(task, GenerationTaskConfig) and not task.write.max_tokens:
        max_tokens = min(
            task.write.max_length - 1  # beside the start of the decoder
            if task.write.max_length and task.kind == "seq2seq"
            else config.data.target_length,
            max_new_tokens(config),
        )
        write = dataclasses.replace(task.write, max_tokens=max_tokens)
        task = dataclasses.replace(task, write=write)
    return dataclasses.replace(config, task=task)


def _resolve_frozen(config: Config) -> OptimConfig:
    """Freeze all but `trainable` parameters, and with LoRA all but the adapters.

    A label head of the task is trained together with the adapters.
    """
    optim, model = config.optim, config.model
    has_adapters = isinstance(model, TransformerConfig) and model.lora.rank > 0
    if has_adapters and "*" not in optim.frozen:
        head = ("classifier.*",) if config.task.uses_classifier else ()
        trainable = (*optim.trainable, "*.lora_a", "*.lora_b", *head)
        return dataclasses.replace(optim, frozen=("*",), trainable=trainable)
    if optim.trainable and not optim.frozen:
        return dataclasses.replace(optim, frozen=("*",))
    return optim


def _resolve_prune(optim: OptimConfig, *, num_steps: int) -> OptimConfig:
    if not optim.prune.is_scheduled or optim.prune.end_step:
        return optim
    prune = dataclasses.replace(optim.prune, end_step=num_steps // 2)
    return dataclasses.replace(optim, prune=prune)


def resolve_num_labels(model: ModelConfig, task: TaskConfig) -> ModelConfig:
    """Set a model's `num_labels` from the labels of the task, if these are known."""
    num_labels = len(task.output_names)
    if not (num_labels and isinstance(model, LabelHeadConfig)):
        return model
    return dataclasses.replace(model, num_labels=model.num_labels or num_labels)


def load(
    spec: str, overrides: Sequence[str] = (), *, defaults: Defaults | None = None
) -> Config:
    """Load the config of an experiment file.

    Args:
      spec: `FILE.py`, or `FILE.py:ARG` to call `get_config(ARG)`.
      overrides: see `parse`.
      defaults: see `parse`.

    Raises:
      UserError: the file or what it returns cannot be used; or see `parse`.
    """
    path, _, argument = spec.partition(".py:")
    path = path if path.endswith(".py") else path + ".py"
    module = load_module(path if argument else spec)
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"{path}: has no function get_config()")
    try:
        with import_path(path):
            config = module.get_config(argument) if argument else module.get_config()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: get_config() failed: {why}") from error
    if not hasattr(config, "items"):
        raise UserError(
            f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict"
        )
    try:
        config = to_builtins(config)
    except RecursionError:
        pass  # `parse` reports it
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: what get_config() returned: {why}") from error
    parsed = parse(config, overrides, defaults=defaults)
    warn_of_unused(parsed)
    return parsed


def warn_of_unused(config: Config) -> None:
    """Log the leaves that are set, but have no effect."""
    for line in unused_leaves(config):
        log.warning("%s", line)
