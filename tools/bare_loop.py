"""Compare the step time of lmjax with that of a minimal loop for the same model.

    python tools/bare_loop.py [--config=experiments/lm/quickstart.py] [--blocks=30]

The bare loop is written by hand for one model (RoPE, RMSNorm, SwiGLU, tied embeddings)
and AdamW: a jitted function over a list of layers, on batches that are on the device
already. lmjax runs the body of its training loop: batches read from the token store by
grain, the sharded step, and metrics fetched a few steps later. The two alternate, one
block of steps each. Printed as a line of JSON: the median step times, and the median of
the ratios of adjacent blocks.
"""

import argparse
import collections
import functools
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from lmjax.config.experiment import Config, load
from lmjax.data import batches, pipeline
from lmjax.parallel import sharding
from lmjax.parallel.batch import put_batch
from lmjax.training.compiled import make_program
from lmjax.training.throughput import STEPS_IN_FLIGHT


def norm(scale, x):
    """Return `x` after RMSNorm."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * scale


def rotate(x, cos, sin):
    """Rotate the pairs (i, i + H/2) of the last axis."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def bare_loss(params, batch, c):
    """Return the mean loss. B batch, T length, N heads, H head_dim."""
    B, T = batch["tokens"].shape
    frequencies = c.rope_theta ** (-jnp.arange(0, c.head_dim, 2) / c.head_dim)
    angles = batch["positions"][..., None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    causal = batch["positions"][:, :, None] >= batch["positions"][:, None]
    same = batch["segments"][:, :, None] == batch["segments"][:, None]
    mask = (causal & same)[:, None]
    x = params["embed"][batch["tokens"]]
    for layer in params["layers"]:
        h = norm(layer["norm1"], x)
        q, k, v = ((h @ layer[n]).reshape(B, T, c.num_heads, c.head_dim) for n in "qkv")
        q, k = rotate(q, cos, sin) * c.head_dim**-0.5, rotate(k, cos, sin)
        scores = jnp.einsum("BTNH,BSNH->BNTS", q, k)
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        h = jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores), v)
        x = x + h.reshape(B, T, -1) @ layer["o"]
        h = norm(layer["norm2"], x)
        x = x + (jax.nn.silu(h @ layer["gate"]) * (h @ layer["up"])) @ layer["down"]
    logits = norm(params["norm"], x) @ params["embed"].T
    hit = batch["targets"][..., None] == jnp.arange(logits.shape[-1])
    nll = jax.nn.logsumexp(logits, -1) - jnp.where(hit, logits, 0.0).sum(-1)
    return (nll * batch["weights"]).sum() / batch["weights"].sum()


def bare_init(key, c):
    """Return random parameters: a dict with a list of layers."""
    inner = c.num_heads * c.head_dim
    shapes = dict.fromkeys("qkv", (c.dim, inner)) | {"o": (inner, c.dim)}
    shapes |= dict.fromkeys(("gate", "up"), (c.dim, c.mlp_dim))
    shapes |= {"down": (c.mlp_dim, c.dim)}
    keys = iter(jax.random.split(key, len(shapes) * c.num_layers + 1))
    layers = [
        {n: jax.random.normal(next(keys), s) * s[0] ** -0.5 for n, s in shapes.items()}
        | {"norm1": jnp.ones(c.dim), "norm2": jnp.ones(c.dim)}
        for _ in range(c.num_layers)
    ]
    embed = 0.02 * jax.random.normal(next(keys), (c.vocab_size, c.dim))
    return {"embed": embed, "norm": jnp.ones(c.dim), "layers": layers}


def bare_step(state, batch, *, config: Config):
    """Take a step of clipped AdamW, with weight decay on matrices only."""
    o, (params, mu, nu, step) = config.optim, state
    loss, grads = jax.value_and_grad(bare_loss)(params, batch, config.model)
    total = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, o.clip_norm / total), grads)
    step = step + 1
    mu = jax.tree.map(lambda m, g: o.b1 * m + (1 - o.b1) * g, mu, grads)
    nu = jax.tree.map(lambda n, g: o.b2 * n + (1 - o.b2) * g * g, nu, grads)
    mu_bias, nu_bias = 1 - o.b1**step, 1 - o.b2**step
    rate = o.learning_rate * jnp.minimum(step / max(o.warmup_steps, 1), 1.0)

    def update(p, m, n):
        decay = o.weight_decay * p if p.ndim > 1 else 0.0
        return p - rate * (m / mu_bias / (jnp.sqrt(n / nu_bias) + o.epsilon) + decay)

    params = jax.tree.map(update, params, mu, nu)
    return (params, mu, nu, step), {"loss": loss, "grad_norm": total}


def run_block(step, state, batches, num_steps):
    """Run some steps, and fetch the metrics of each a few steps later.

    Returns:
      The state, the seconds per step, and the fraction of time spent waiting for data.
    """
    unread = collections.deque()
    begin = time.perf_counter()
    seconds_waited = 0.0
    for _ in range(num_steps):
        before = time.perf_counter()
        batch = next(batches)
        seconds_waited += time.perf_counter() - before
        state, metrics = step(state, batch)
        unread.append(metrics)
        if len(unread) > STEPS_IN_FLIGHT:
            jax.device_get(unread.popleft())
    while unread:
        jax.device_get(unread.popleft())
    seconds = time.perf_counter() - begin
    return state, seconds / num_steps, seconds_waited / seconds


def main() -> None:
    """Compare the two loops, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="experiments/lm/quickstart.py")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10, help="steps in a block")
    args = parser.parse_args()
    fixed = ["optim.name=adamw", "optim.schedule=constant", "num_steps=1000000"]
    config = pipeline.resolve_vocabulary(load(args.config, [*fixed, "mesh.data=1"]))
    with tempfile.TemporaryDirectory() as directory:
        compare(config, Path(directory), args.blocks, args.steps)


def compare(config: Config, directory: Path, blocks: int, steps: int) -> None:
    """Build both loops, and time them alternately."""
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    datasets = pipeline.prepare(config, workdir=directory)
    with jax.set_mesh(mesh):
        program = make_program(config, mesh)
        state = program.init(jax.random.key(0))
        lmjax_step = lambda state, batch: program.train_step(
            state, put_batch(batch, mesh)
        )
        host_batches = batches.train_batches(datasets, config, start_step=0)
        on_device = [jax.device_put(next(host_batches)) for _ in range(8)]
        params = bare_init(jax.random.key(0), config.model)
        # Two trees, because donated buffers must not be shared.
        moments = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
        bare_state = (params, *moments, jnp.zeros((), jnp.int32))
        bare = jax.jit(functools.partial(bare_step, config=config), donate_argnums=0)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        assert size == sum(leaf.size for leaf in jax.tree.leaves(state.params))
        cycle = itertools.cycle(on_device)
        rows = []
        for _ in range(blocks + 2):
            state, a, waited = run_block(lmjax_step, state, host_batches, steps)
            bare_state, b, _ = run_block(bare, bare_state, cycle, steps)
            rows.append((a, b, waited))
        host_batches.close()
    rows = rows[2:]  # the first blocks are warm-up
    result = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "parameters": size,
        "lmjax_step_seconds": statistics.median(a for a, _, _ in rows),
        "bare_step_seconds": statistics.median(b for _, b, _ in rows),
        "ratio": statistics.median(a / b for a, b, _ in rows),
        "waiting_for_data": statistics.median(waited for _, _, waited in rows),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
