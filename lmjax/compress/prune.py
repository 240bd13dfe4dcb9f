"""Prune single weights: the least important ones of each matrix become 0.

L layers, I inputs, O outputs of a matrix.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from lmjax.compress import masks, sparsegpt, structured
from lmjax.compress.calibrate import Calibration, LinearInputs
from lmjax.compress.step import Step, merge_adapters
from lmjax.config.prune import PruneConfig
from lmjax.errors import UserError, nearest
from lmjax.inference.language_model import LanguageModel
from lmjax.nn.matrices import flatten, is_hidden_matrix
from lmjax.types import Array, Params, named_axes, named_leaves


@dataclasses.dataclass(frozen=True)
class Amount:
    """How many weights become 0: a fraction, or all but `keep` of `of` inputs."""

    fraction: float
    keep: int = 0
    of: int = 0  # 0: not by groups

    def check(self, kernel: Array, *, name: str, flag: str) -> None:
        """Raise a `UserError` if the inputs of a matrix (L, I, O) are not groups."""
        if self.of and kernel.shape[1] % self.of:
            raise UserError(
                f"{flag}: {name} has {kernel.shape[1]} inputs, which groups of "
                f"{self.of} do not divide"
            )


def _by_magnitude(w_LIO: Array, inputs: LinearInputs | None, amount: Amount) -> Array:
    score = jnp.abs(w_LIO)
    if amount.of:
        mask = masks.keep_in_groups(score, keep=amount.keep, of=amount.of)
    else:
        (mask,) = masks.keep_in_layers([score], amount.fraction)
    return jnp.where(mask, w_LIO, 0)


def _by_wanda(w_LIO: Array, inputs: LinearInputs | None, amount: Amount) -> Array:
    """Wanda (Sun et al. 2023): |weight| times the norm of its input, by output."""
    assert inputs is not None
    score = jnp.abs(w_LIO) * jnp.sqrt(inputs.squares_LI)[..., None]
    if amount.of:
        mask = masks.keep_in_groups(score, keep=amount.keep, of=amount.of)
    else:
        mask = masks.keep_in_columns(score, amount.fraction)
    return jnp.where(mask, w_LIO, 0)


def _by_sparsegpt(w_LIO: Array, inputs: LinearInputs | None, amount: Amount) -> Array:
    assert inputs is not None and inputs.gram_LII is not None
    return sparsegpt.solve(
        w_LIO,
        inputs.gram_LII,
        fraction=amount.fraction,
        keep=amount.keep,
        of=amount.of,
    )


# From the weights of a matrix, and what it reads, to those that are left.
_METHODS: dict[str, Callable[..., Array]] = {
    "magnitude": _by_magnitude,
    "wanda": _by_wanda,
    "sparsegpt": _by_sparsegpt,
}
_READ_TEXT = ("wanda", "sparsegpt")
GLOBAL = "global_magnitude"
NAMES = (*_METHODS, GLOBAL, *structured.PARTS)


def make_prune_step(text: str, *, calibration: Calibration | None) -> Step:
    """Return the step of `--prune=METHOD:AMOUNT`.

    Args:
      text: such as "magnitude:0.5", "wanda:2:4", "heads:0.25" or "layers:4".
      calibration: what is read by methods that ask for it.

    Raises:
      UserError: there is no such method or amount, or it needs a calibration.
    """
    flag = f"--prune={text}"
    method, _, rest = text.partition(":")
    if method not in NAMES:
        raise UserError(
            f"{flag}: {method!r}: must be one of {', '.join(NAMES)}"
            f"{nearest(method, NAMES)}"
        )
    if method in _READ_TEXT and calibration is None:
        raise UserError(f"{flag}: needs --calibrate=FILE, a text that the model reads")
    record = {"prune": text}
    if method in structured.PARTS:
        size = structured.parse_size(rest, flag=flag)
        apply = functools.partial(
            structured.shrink, part=method, size=size, calibration=calibration
        )
        return Step(
            record=record,
            apply=functools.partial(apply, flag=flag),
            reads_text=calibration is not None,
        )
    amount = _parse_amount(rest, flag=flag)
    if method == GLOBAL and amount.of:
        raise UserError(f"{flag}: groups are of one matrix; use magnitude:{rest}")
    return Step(
        record=record,
        apply=functools.partial(
            _prune, method=method, amount=amount, calibration=calibration, flag=flag
        ),
        reads_text=method in _READ_TEXT,
    )


def _parse_amount(text: str, *, flag: str) -> Amount:
    """Parse a fraction, such as 0.5, or N:M, such as 2:4."""
    try:
        if ":" in text:
            keep, of = (int(part) for part in text.split(":"))
            if 0 < keep < of <= 64:
                return Amount(1 - keep / of, keep, of)
        elif 0 < float(text) < 1:
            return Amount(float(text))
    except ValueError:
        pass
    raise UserError(
        f"{flag}: must end in the fraction of weights that become 0, above 0 and below "
        "1, or in N:M: of M inputs in a row N stay, as in 2:4"
    )


def _prune(
    lm: LanguageModel,
    *,
    method: str,
    amount: Amount,
    calibration: Calibration | None,
    flag: str,
) -> LanguageModel:
    lm = merge_adapters(lm)
    axes = named_axes(lm.model.axes)
    weights = {
        name: (leaf, flatten(leaf, axes[name]))
        for name, leaf in named_leaves(lm.params).items()
        if is_hidden_matrix(name, axes[name])
    }
    for name, (_, flat) in weights.items():
        amount.check(flat, name=name, flag=flag)
    with jax.set_mesh(lm.mesh):
        if method == GLOBAL:
            scores = [jnp.abs(flat) for _, flat in weights.values()]
            kept = jax.jit(masks.keep_in_model)(scores, amount.fraction)
            pruned = {
                name: jnp.where(mask.reshape(leaf.shape), leaf, 0)
                for mask, (name, (leaf, _)) in zip(kept, weights.items(), strict=True)
            }
        else:
            read = _measure(lm, method, calibration)
            pruned = {}
            for name, (leaf, flat) in weights.items():
                inputs = read.get(name.removesuffix(".kernel"))
                if read and inputs is None:
                    continue  # outside of the blocks
                new = _compiled(method, amount)(flat, inputs).reshape(leaf.shape)
                pruned[name] = jax.device_put(new, leaf.sharding)
    return _keep_zeros(replace_leaves(lm, pruned))


@functools.cache
def _compiled(method: str, amount: Amount) -> Callable[..., Array]:
    return jax.jit(functools.partial(_METHODS[method], amount=amount))


def _measure(
    lm: LanguageModel, method: str, calibration: Calibration | None
) -> Mapping[str, LinearInputs]:
    if method == "magnitude" or calibration is None:
        return {}
    return calibration.measure(lm, gram=method == "sparsegpt")


def replace_leaves(lm: LanguageModel, leaves: Mapping[str, Array]) -> LanguageModel:
    """Return a language model with other values of some parameters."""
    new = [leaves.get(name, leaf) for name, leaf in named_leaves(lm.params).items()]
    params: Params = jax.tree.unflatten(jax.tree.structure(lm.params), new)
    return dataclasses.replace(lm, params=params)


def _keep_zeros(lm: LanguageModel) -> LanguageModel:
    """Note in the config that zeros stay in a run that begins with this model."""
    prune = PruneConfig(method="keep")
    optim = dataclasses.replace(lm.config.optim, prune=prune)
    return dataclasses.replace(lm, config=dataclasses.replace(lm.config, optim=optim))
