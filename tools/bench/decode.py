"""Greedy decoding by lmjax and by transformers' generate(), from the same weights.

    python -m tools.bench decode --model=DIR --batch=1,16 --tokens=64

DIR is a directory in the Hugging Face layout; gpt10m is a GPT-2 of 10M parameters with
random weights. Both generate the same number of tokens after the same random prompts,
and must agree on them. The share of the roofline is the time that reading all weights
once takes, over the time of a token; that is measured here, on an array of the same
size.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lmjax.config.experiment import MeshConfig
from lmjax.errors import UserError
from lmjax.generate.decode import Generator
from lmjax.generate.sampling import Sampling
from lmjax.interop import hf
from lmjax.parallel import sharding

from . import transformers_decode
from .report import compare, time_pairs

GREEDY = Sampling(temperature=0.0)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this benchmark."""
    parser.add_argument("--model", default="gpt10m", help="a directory, or gpt10m")
    parser.add_argument("--batch", default="1,16", help="numbers of prompts")
    parser.add_argument("--tokens", type=int, default=64, help="to generate")
    parser.add_argument("--prompt_tokens", type=int, default=24, help="of each prompt")
    parser.add_argument(
        "--reference",
        choices=("dynamic", "static", "none"),
        default="dynamic",
        help="the cache of transformers; static: compiled by torch.compile",
    )


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row of results for each size of batch.

    Raises:
      UserError: a flag is wrong, or the tokens differ.
    """
    try:
        sizes = [int(size) for size in args.batch.split(",")]
    except ValueError as error:
        raise UserError(f"--batch={args.batch}: must be integers") from error
    with tempfile.TemporaryDirectory() as directory:
        path = Path(args.model)
        if args.model == "gpt10m":
            path = transformers_decode.write_gpt(Path(directory))
        elif not path.is_dir():
            raise UserError(f"--model={args.model}: is no directory, nor gpt10m")
        ours = load(path)
        reference = None
        if args.reference != "none" and transformers_decode.is_installed():
            reference = transformers_decode.load(path, cache=args.reference)
        return [_compare(args, ours, reference, size) for size in sizes]


def load(directory: Path) -> tuple[Generator, Any, Mesh]:
    """Return the generator and the parameters of a directory, on the first device."""
    mesh = sharding.make_mesh(MeshConfig(), devices=jax.devices()[:1])
    found = hf.open_hf(directory)
    config = dataclasses.replace(found.config.model, max_length=1024)
    config = dataclasses.replace(found.config, model=config)
    model, shardings = hf.build_model(config, mesh)
    generator = Generator(model)
    return generator, model.prepare(found.load_params(model, shardings)), mesh


def _compare(
    args: argparse.Namespace, ours: Any, reference: Any, size: int
) -> dict[str, Any]:
    """Return the results for one size of batch."""
    generator, params, mesh = ours
    vocab_size = generator.model.config.vocab_size
    rng = np.random.default_rng(0)
    prompts = rng.integers(1, vocab_size, (size, args.prompt_tokens)).tolist()

    def generate(max_tokens: int = args.tokens) -> Any:
        with jax.set_mesh(mesh):
            options = {"max_tokens": max_tokens, "sampling": GREEDY, "stop_ids": ()}
            return generator.generate(params, prompts, **options)

    start = time.perf_counter()
    tokens = generate()
    first = time.perf_counter() - start
    other = None
    if reference is not None:
        other = functools.partial(reference, prompts, args.tokens)
        _check_equal(tokens, other())
    seconds, others = time_pairs(generate, other, pairs=args.pairs)
    one, _ = time_pairs(functools.partial(generate, 1), None, pairs=args.pairs)
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    step = (min(seconds) - min(one)) / (args.tokens - 1)
    return {
        "model": args.model,
        "batch": size,
        "tokens": args.tokens,
        **compare(seconds, others),
        "tokens_per_second": size * args.tokens / statistics.median(seconds),
        "first_call_seconds": first,
        "prefill_ms": 1e3 * min(one),
        "step_ms": 1e3 * step,
        "roofline": read_seconds(num_bytes) / step,
    }


def read_seconds(num_bytes: int) -> float:
    """Return the seconds that reading so many bytes of the device's memory takes.

    The least of ten times: a maximum by NumPy on all cores, or a sum on an accelerator.
    """
    if jax.default_backend() == "cpu":
        cores = len(os.sched_getaffinity(0))
        parts = np.array_split(np.ones(num_bytes // 4, np.float32), cores)
        with concurrent.futures.ThreadPoolExecutor(cores) as threads:
            return _least_seconds(lambda: list(threads.map(np.max, parts)))
    array = jnp.ones((64, num_bytes // 256), jnp.float32)
    read = jax.jit(lambda x: x.sum(axis=1))
    return _least_seconds(lambda: jax.block_until_ready(read(array)))


def _least_seconds(read: Callable[[], Any]) -> float:
    read()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _check_equal(ours: list[list[int]], other: list[list[int]]) -> None:
    for row, (a, b) in enumerate(zip(ours, other, strict=True)):
        if a != b:
            place = next(
                i
                for i, pair in enumerate(zip(a, b, strict=False))
                if pair[0] != pair[1]
            )
            raise UserError(f"prompt {row}: the tokens differ from the {place}th on")
