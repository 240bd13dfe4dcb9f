"""The experiment config: frozen dataclasses, and the errors a user sees.

An experiment file has `get_config() -> ml_collections.ConfigDict`. `parse` turns it,
with the overrides of the command line, into one `Config` before any device is
touched; from then on nobody calls `.get`. Whatever is wrong is reported here, with
its dotted path, its value, and what is allowed. A number 0 that a comment explains
("0: ...") stands for a choice that follows from the rest; `parse` fills it in.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from lmjax.config.compatibility import find_conflicts
from lmjax.config.data import DataConfig, FieldsConfig, SourceConfig
from lmjax.config.decoding import DecodingConfig, max_new_tokens
from lmjax.config.model import (
    Count,
    CountOrZero,
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    Fraction,
    LabelHeadConfig,
    ModelConfig,
    NonNegative,
    RecurrentConfig,
    RecurrentEncoderDecoderConfig,
    TransformerConfig,
    derived,
)
from lmjax.config.optim import OptimConfig
from lmjax.config.parse import (
    Range,
    apply_override,
    build,
    cross_field_mistakes,
    differences,
    load_module,
    plain,
    runtime,
)
from lmjax.config.task import (
    ClassifyConfig,
    GenerationTaskConfig,
    LabelTaskConfig,
    PredictionTaskConfig,
    PromptedLMConfig,
    Seq2SeqConfig,
    SpanQAConfig,
    TagConfig,
    TaskConfig,
)
from lmjax.config.text_task import (
    CausalLMConfig,
    InfillingConfig,
    MaskedLMConfig,
    PrefixLMConfig,
    SpanCorruptionConfig,
    WindowPairConfig,
)
from lmjax.config.tokenizer import TokenizerConfig
from lmjax.errors import ConfigError, nearest

__all__ = [
    "CausalLMConfig",
    "ClassifyConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "DecoderConfig",
    "DecodingConfig",
    "EncoderConfig",
    "EncoderDecoderConfig",
    "FieldsConfig",
    "GenerationTaskConfig",
    "InfillingConfig",
    "LabelTaskConfig",
    "MaskedLMConfig",
    "ModelConfig",
    "OptimConfig",
    "PredictionTaskConfig",
    "PrefixLMConfig",
    "PromptedLMConfig",
    "RecurrentConfig",
    "RecurrentEncoderDecoderConfig",
    "Seq2SeqConfig",
    "SourceConfig",
    "SpanCorruptionConfig",
    "SpanQAConfig",
    "TagConfig",
    "TaskConfig",
    "TokenizerConfig",
    "WindowPairConfig",
    "leaves",
    "load",
    "nearest",
    "parse",
    "to_dict",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; at most one -1 takes what is left."""

    data: Annotated[int, Range(-1)] = -1
    fsdp: Annotated[int, Range(-1)] = 1
    tensor: Annotated[int, Range(-1)] = 1

    def mistakes(self, path: str) -> Iterator[str]:
        """Yield the errors between fields."""
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
    """When to save, and what to keep."""

    every_steps: CountOrZero = 1000  # 0: only at the end
    keep: Count = 3  # the newest ones
    best_metric: str = ""  # a validation metric: also keep its best; "": none
    best_mode: Literal["min", "max"] = "min"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """When to evaluate, on how much, and when to give up."""

    every_steps: CountOrZero = 1000  # 0: only at the end
    batch_size: CountOrZero = 0  # 0: the training batch size
    num_batches: CountOrZero = 0  # spread over the split; 0: every token exactly once
    patience: CountOrZero = 0  # evaluations without a better best_metric; 0: no limit
    compressors: bool = False  # print gzip -9 and xz -9 on the held-out text beside


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What to generate while training, to look at."""

    every_steps: CountOrZero = 0  # 0: only at the end
    prompts: tuple[str, ...] = ()  # none: no samples
    max_tokens: Count = 64
    temperature: NonNegative = 0.8
    top_k: CountOrZero = 0  # 0: no limit
    top_p: Fraction = 0.95

    def mistakes(self, path: str) -> Iterator[str]:
        """Yield the errors between fields."""
        if not self.top_p:
            yield f"{path}.top_p = 0.0: must be above 0, for something to draw from"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written while training."""

    every_steps: Count = 10
    tensorboard: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment."""

    seed: Annotated[int, Range(0, below=1 << 32)] = 0
    num_steps: Count = runtime(1000)
    batch_size: Count = 8  # sequences, over all devices
    num_microbatches: Count = runtime(1)  # the batch is worked off in so many parts
    init_from: str = ""  # a workdir, or a Hugging Face directory or name, to begin with
    init_embedding_from: str = ""  # word vectors, GloVe's or word2vec's, to begin with
    model: ModelConfig = DecoderConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig = DataConfig()
    task: TaskConfig = CausalLMConfig()
    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = runtime(MeshConfig())
    checkpoint: CheckpointConfig = runtime(CheckpointConfig())
    eval: EvalConfig = runtime(EvalConfig())
    sample: SampleConfig = runtime(SampleConfig())
    log: LogConfig = runtime(LogConfig())

    def mistakes(self, path: str) -> Iterator[str]:
        """Yield what is wrong between sections."""
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
                f"'' with {path}.init_from, which has embeddings of its own"
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
        for axis in self.model.split_by_tensor:
            if self.mesh.tensor > 0 and getattr(self.model, axis) % self.mesh.tensor:
                yield (
                    f"{path}.model.{axis} = {getattr(self.model, axis)}: must be a "
                    f"multiple of {path}.mesh.tensor = {self.mesh.tensor}"
                )
        if self.eval.num_batches and self.checkpoint.best_metric in WHOLE_TEXT_METRICS:
            yield (
                f"{path}.checkpoint.best_metric = {self.checkpoint.best_metric!r}: is "
                f"of the whole text; leave {path}.eval.num_batches out, or take 'loss'"
            )
        if self.eval.patience and not self.checkpoint.best_metric:
            yield f"{path}.eval.patience: needs {path}.checkpoint.best_metric"


# What evaluation tells only when it has read all of a split.
WHOLE_TEXT_METRICS = ("word_perplexity", "bits_per_byte")

Defaults = Callable[[str], Mapping[str, Any]]


def parse(
    source: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    defaults: Defaults | None = None,
) -> Config:
    """Build the `Config` that a nested mapping and `a.b=value` overrides describe.

    Args:
      source: what an experiment says.
      overrides: what the command line says.
      defaults: given `init_from`, returns sections whose leaves hold where neither of
        the two names them; a section of another `kind` says nothing.

    Raises:
      ConfigError: all mistakes, in one line: each with its dotted path, the value,
        what is allowed, and for a misspelt name the nearest one.
    """
    mistakes: list[str] = []
    nested = plain(source)
    for override in overrides:
        apply_override(Config, nested, override, mistakes)
    if defaults and nested.get("init_from"):
        for name, section in defaults(nested["init_from"]).items():
            own = nested.setdefault(name, {})
            if own.get("kind", section["kind"]) == section["kind"]:
                nested[name] = _overlaid(section, own)
    config = build(Config, nested, "config", mistakes)
    if not mistakes:
        config = _derive(config)
        mistakes += cross_field_mistakes(config, "config")
    if mistakes:
        raise ConfigError("; ".join(dict.fromkeys(mistakes)))
    return config


def _overlaid(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return two nested mappings as one; where both have a leaf, the second's."""
    both = {
        name: _overlaid(under[name], value)
        for name, value in over.items()
        if isinstance(value, dict) and isinstance(under.get(name), dict)
    }
    return {**under, **over, **both}


def to_dict(config: Any) -> dict[str, Any]:
    """Return the config as a nested dict of JSON values; `parse` reads it back."""
    return plain(dataclasses.asdict(config))


def leaves(section: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and the value of each leaf of a `to_dict`."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value


def changed_identity(old: Config, new: Config) -> list[str]:
    """Name the leaves, runtime ones aside, in which two configs differ."""
    return list(differences(old, new, "config"))


def _derive(config: Config) -> Config:
    """Fill in the zeros that stand for "follows from the rest"."""
    optim = config.optim
    model = config.model
    adapted = isinstance(model, TransformerConfig) and model.lora.rank > 0
    if adapted and "*" not in optim.frozen:
        head = ("classifier.*",) * config.task.uses_classifier
        learning = (*optim.trainable, "*.lora_a", "*.lora_b", *head)
        optim = dataclasses.replace(optim, frozen=("*",), trainable=learning)
    if optim.trainable and not optim.frozen:
        optim = dataclasses.replace(optim, frozen=("*",))
    batch_size = config.eval.batch_size or config.batch_size
    data = config.data
    model = with_classifier(derived(config.model), config.task)
    target_length = data.target_length or config.task.default_target_length(
        data.length, model.decoder_prefix_ids
    )
    config = dataclasses.replace(
        config,
        model=model,
        optim=optim,
        data=dataclasses.replace(data, target_length=target_length),
        eval=dataclasses.replace(config.eval, batch_size=batch_size),
    )
    return dataclasses.replace(config, task=_writing(config))


def _writing(config: Config) -> TaskConfig:
    """Return the task with as many tokens to write as a target has, and fit."""
    task = config.task
    if not isinstance(task, GenerationTaskConfig) or task.write.max_tokens:
        return task
    most = min(config.data.target_length, max_new_tokens(config))
    write = dataclasses.replace(task.write, max_tokens=most)
    return dataclasses.replace(task, write=write)


def with_classifier(model: ModelConfig, task: TaskConfig) -> ModelConfig:
    """Return the model with as many labels as the task, where these are known."""
    num_labels = len(task.output_names)
    if not (num_labels and isinstance(model, LabelHeadConfig)):
        return model
    return dataclasses.replace(model, num_labels=model.num_labels or num_labels)


def load(
    spec: str, overrides: Sequence[str] = (), *, defaults: Defaults | None = None
) -> Config:
    """Return the config of `FILE.py[:ARG]`; ARG goes to its `get_config`.

    The rest as for `parse`.

    Raises:
      ConfigError: the file or what it returns cannot be used, in one line.
    """
    path, _, argument = spec.partition(".py:")
    path = path if path.endswith(".py") else path + ".py"
    module = load_module(path if argument else spec)
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"{path}: has no function get_config()")
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except Exception as error:
        raise ConfigError(f"{path}: get_config: {error}") from error
    if not hasattr(config, "items"):
        raise ConfigError(
            f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict"
        )
    return parse(config, overrides, defaults=defaults)
