"""From a workdir to a smaller one, which is written as a whole or not at all."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.filesize import decimal

from lmjax.compress.step import Step, merge_adapters
from lmjax.data.stores.run_stores import copy_held_out_stores
from lmjax.errors import UserError
from lmjax.fileio import read_json, write_json
from lmjax.inference.language_model import LanguageModel, load
from lmjax.nn import quantized
from lmjax.run import checkpoint, workdir
from lmjax.run.staging import check_unused, staged_directory
from lmjax.types import Params, named_leaves


@dataclasses.dataclass(frozen=True)
class Summary:
    """What became of a model, to be printed."""

    directory: Path
    record: dict[str, Any]

    def __str__(self) -> str:
        before, after = self.record["bytes_before"], self.record["bytes_after"]
        return (
            f"{self.directory}: {decimal(after)} of {decimal(before)} "
            f"({after / before:.3f}), {self.record['num_parameters']:,} parameters"
        )


def compress(
    source: Path,
    target: Path,
    steps: Sequence[Step],
    *,
    step: checkpoint.Step = None,
) -> Summary:
    """Apply steps to the model of a workdir, and write the result as a new one.

    Its `compress.json` has the record of the steps, those that made the source
    included, and the bytes of all parameters before and after. The held-out data of
    the source comes along.

    Args:
      source: the workdir.
      target: the new one; if anything fails it is not created.
      steps: in their order.
      step: of the checkpoint; by default the last one.

    Raises:
      UserError: there is no model, it is quantized already, a step cannot be applied,
        or the target holds something.
    """
    source, target = source.expanduser(), target.expanduser().absolute()
    check_unused(target, flag="--to")
    lm = load(source, step=step)
    _check_whole(lm, source)
    bytes_before = num_bytes(lm.params)
    lm = merge_adapters(lm)
    for one in steps:
        lm = one.apply(lm)
    record = {
        "source": str(source.absolute()),
        "step": lm.step,
        "steps": [*_earlier_steps(source), *(one.record for one in steps)],
        "num_parameters": quantized.count_weights(lm.params),
        "bytes_before": bytes_before,
        "bytes_after": num_bytes(lm.params),
        "float_parameters": _float_names(lm.params),
    }
    _write(lm, source, target, record)
    return Summary(target, record)


def num_bytes(params: Params) -> int:
    """Return the bytes of all parameters."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def _check_whole(lm: LanguageModel, source: Path) -> None:
    model, q = lm.config.model, lm.config.model.quantize
    if model.low_rank.fraction and not model.adapter_rank:
        raise UserError(
            f"--workdir={source}: is of low rank already: config.model.low_rank."
            f"fraction = {model.low_rank.fraction}; compress the workdir that it was "
            "made from"
        )
    if q.stores_codes or q.stores_table:
        name = "weights" if q.weights else "embeddings"
        raise UserError(
            f"--workdir={source}: is quantized already: config.model.quantize.{name} = "
            f"{getattr(q, name)!r}; compress the workdir that it was made from"
        )


def _float_names(params: Params) -> list[str]:
    """Return the names of the parameters that are no codes and no scales of codes."""
    others = ("codes", "scales")
    return [name for name in named_leaves(params) if not name.endswith(others)]


def _earlier_steps(source: Path) -> list[Any]:
    file = source / workdir.COMPRESSED
    if not file.exists():
        return []
    steps = read_json(file).get("steps")
    if not isinstance(steps, list):
        raise UserError(f"{file}: damaged: it has no list of steps")
    return steps


def _write(
    lm: LanguageModel, source: Path, target: Path, record: dict[str, Any]
) -> None:
    config = dataclasses.replace(lm.config, init_from=str(source.absolute()))
    if (
        config.tokenizer.kind == "tokenizers"
    ):  # the workdir must not depend on another one
        path = str(target / "tokenizer")
        config = dataclasses.replace(
            config, tokenizer=dataclasses.replace(config.tokenizer, path=path)
        )
    with staged_directory(target, flag="--to") as staging:
        if jax.process_index() == 0:
            lm.tokenizer.save(staging / "tokenizer")
            copy_held_out_stores(source, staging)
        checkpoint.save_params(staging, lm.params)
        if jax.process_index() == 0:
            write_json(staging / workdir.COMPRESSED, record)
            workdir.write_config(staging, config)
