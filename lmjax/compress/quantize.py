"""The matrices of a model in eight bits or four. L layers, I inputs, O outputs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from lmjax.compress.awq import adapt_awq, adapt_smoothquant
from lmjax.compress.calibrate import Calibration, LinearInputs
from lmjax.compress.gptq import round_gptq
from lmjax.compress.step import Step, change_model
from lmjax.config.matrices import QuantizeConfig
from lmjax.config.model import ModelConfig, TransformerConfig
from lmjax.errors import ConfigError, UserError, nearest
from lmjax.inference.language_model import LanguageModel
from lmjax.nn import quantized
from lmjax.nn.quantized import Format
from lmjax.parallel import sharding
from lmjax.types import Array, Params

FORMATS = ("int8", "int4", "fp8", "nf4")
DEFAULT_GROUP = 64

# From a matrix (*inputs, *outputs), the number of its inputs, its format and what it
# reads, to its codes and scales. All have a leading axis of layers, which is mapped.
Rounding = Callable[[Array, int, Format, Any], tuple[Array, Array]]


def parse_format(
    text: str, *, embeddings: str, activations: str, cache: str
) -> QuantizeConfig:
    """Return the config of --quantize, --embeddings, --activations and --cache.

    Raises:
      UserError: there is no such format.
    """
    name, colon, group = text.partition(":")
    allowed = "must be int8, fp8, int4:GROUP or nf4:GROUP"
    if name not in FORMATS:
        raise UserError(f"--quantize={text}: {allowed}{nearest(name, FORMATS)}")
    has_groups = name in ("int4", "nf4")
    if colon and not (has_groups and group.isdigit()):
        raise UserError(f"--quantize={text}: {allowed}")
    flags = {"embeddings": embeddings, "activations": activations, "cache": cache}
    for flag, value in flags.items():
        if value not in ("int8", "float"):
            raise UserError(f"--{flag}={value}: must be int8 or float")
    if activations == "int8" and name != "int8":
        raise UserError(f"--activations=int8: needs --quantize=int8, not {text}")
    config = QuantizeConfig(
        weights=name,  # type: ignore[arg-type]  # one of FORMATS, as checked above
        group=int(group or DEFAULT_GROUP) if has_groups else 0,
        embeddings="int8" if embeddings == "int8" else "",
        activations="int8" if activations == "int8" else "",
        cache="int8" if cache == "int8" else "",
    )
    for problem in config.validate("--quantize"):
        raise UserError(f"--quantize={text}: {problem.removeprefix('--quantize.')}")
    return config


def make_quantize_step(
    text: str,
    *,
    method: str | None = None,
    embeddings: str | None = None,
    activations: str | None = None,
    cache: str | None = None,
    calibration: Calibration | None = None,
) -> Step:
    """Return the step that rounds the matrices of all blocks, and the embeddings.

    Norms, biases, positions, poolers and heads for labels stay float32.

    Args:
      text: the format, as for `parse_format`.
      method: one of `METHODS`; by default round to nearest.
      embeddings: "int8" by default, or "float".
      activations: "float" by default, or "int8".
      cache: the same.
      calibration: the text that it reads, if it reads one.

    Raises:
      UserError: there is no such format or method, or the method needs a text.
    """
    config = parse_format(
        text,
        embeddings=embeddings or "int8",
        activations=activations or "float",
        cache=cache or "float",
    )
    method = method or "rtn"
    if method not in METHODS:
        names = [*METHODS]
        raise UserError(
            f"--method={method}: must be {', '.join(names)}{nearest(method, names)}"
        )
    chosen = METHODS[method]
    if config.weights not in chosen.formats:
        raise UserError(
            f"--method={method}: takes --quantize={' or '.join(chosen.formats)}, not "
            f"{config.weights}"
        )
    if chosen.reads_text and calibration is None:
        raise UserError(f"--method={method}: needs --calibrate=FILE")
    record: dict[str, Any] = {"quantize": dataclasses.asdict(config), "method": method}
    if chosen.reads_text and calibration is not None:
        record["calibrate"] = str(calibration.file.absolute())
    return Step(
        record=record,
        apply=lambda lm: quantize(
            lm, config=config, method=chosen, calibration=calibration
        ),
        reads_text=chosen.reads_text,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A way to choose codes and scales.

    Attributes:
      round: one matrix of one layer.
      reads_text: whether `round` or `adapt` looks at what the layers read.
      gram: whether it needs the sum of x x^T.
      adapt: changes the float parameters before they are rounded.
      formats: that it can round to.
    """

    round: Rounding
    reads_text: bool = False
    gram: bool = False
    adapt: Callable[..., tuple[Params, Mapping[str, LinearInputs]]] | None = None
    formats: tuple[str, ...] = FORMATS


def quantize(
    lm: LanguageModel,
    *,
    config: QuantizeConfig,
    method: Method,
    calibration: Calibration | None,
) -> LanguageModel:
    """Return a language model whose matrices are quantized.

    Raises:
      UserError: the calibration text is too short.
      ConfigError: the model has no matrices to quantize, or a group does not divide
        one of them.
    """
    before = lm.config.model
    check_model(before)
    assert isinstance(before, TransformerConfig)
    after = dataclasses.replace(before, quantize=config)
    for problem in after.validate("config.model"):
        raise ConfigError(problem)
    inputs: Mapping[str, LinearInputs] = {}
    if method.reads_text and calibration is not None:
        inputs = calibration.measure(lm, gram=method.gram)
    params = lm.params
    if method.adapt is not None:
        params, inputs = method.adapt(params, inputs, after)
    new = change_model(lm, params, after)
    params = round_params(params, inputs, config=config, method=method)
    shardings = sharding.param_shardings(new.model.axes, new.model.shapes, lm.mesh)
    return dataclasses.replace(new, params=jax.device_put(params, shardings))


def check_model(config: ModelConfig) -> None:
    """Check that a model has matrices to quantize.

    Raises:
      ConfigError: it has none.
    """
    if not isinstance(config, TransformerConfig):
        raise ConfigError(
            f"--quantize: config.model.kind = {config.kind!r}: the matrices of "
            "Transformers alone can be quantized"
        )


def round_params(
    params: Params,
    inputs: Mapping[str, LinearInputs],
    *,
    config: QuantizeConfig,
    method: Method,
) -> Params:
    """Return parameters with codes and scales in the place of kernels and tables."""

    def convert(tree: Any, name: str) -> Any:
        if not isinstance(tree, dict):
            return tree
        new = {key: convert(leaf, f"{name}.{key}") for key, leaf in tree.items()}
        if "kernel" in tree and ".blocks." in name:
            kernel = new.pop("kernel")
            num_inputs = 2 if name.endswith(".out") else 1
            form = quantized.choose_format(config, last_input=kernel.shape[num_inputs])
            one = functools.partial(_round_layers, method.round, num_inputs, form)
            new["codes"], new["scales"] = one(kernel, inputs.get(name[1:]))
        if config.embeddings and name in (".embed", ".head") and "embedding" in tree:
            codes, scales = jax.jit(quantized.quantize_table)(new.pop("embedding"))
            new["embedding_codes"], new["embedding_scales"] = codes, scales
        return new

    converted: Params = convert(params, "")
    return converted


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _round_layers(
    round_one: Rounding, num_inputs: int, form: Format, kernel: Array, inputs: Any
) -> tuple[Array, Array]:
    """Round a stacked kernel (L, *inputs, *outputs), layer by layer."""
    count = None if inputs is None else inputs.num_tokens
    rest = inputs and dataclasses.replace(inputs, num_tokens=None)

    def one(layer: Any) -> tuple[Array, Array]:
        w, x = layer
        x = x and dataclasses.replace(x, num_tokens=count)
        return round_one(w, num_inputs, form, x)

    return jax.lax.map(one, (kernel, rest))


def round_to_nearest(
    w: Array, num_inputs: int, form: Format, inputs: LinearInputs | None
) -> tuple[Array, Array]:
    """Round each weight by itself."""
    return quantized.quantize(w, num_inputs, form)


METHODS: dict[str, Method] = {
    "rtn": Method(round=round_to_nearest),
    "gptq": Method(round=round_gptq, reads_text=True, gram=True),
    "awq": Method(round=round_to_nearest, adapt=adapt_awq, reads_text=True, gram=True),
    "smoothquant": Method(
        round=round_to_nearest,
        adapt=adapt_smoothquant,
        reads_text=True,
        formats=("int8",),
    ),
}
