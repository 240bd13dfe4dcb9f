"""A training state as the items of a checkpoint."""

from typing import Any

import jax

from lmjax.types import TrainState


def items_of(state: TrainState) -> dict[str, Any]:
    """Return the items of a checkpoint; orbax saves a random key as its raw data."""
    key: Any = state.key
    if isinstance(key, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, key)
        key = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=key.sharding)
    else:
        key = jax.random.key_data(key)
    train = {
        "step": state.step,
        "opt_state": state.opt_state,
        "key": key,
        "num_skipped": state.num_skipped,
    }
    if state.carry is not None:
        train["carry"] = state.carry
    items = {"params": state.params, "ema_params": state.ema_params, "train": train}
    return {item: tree for item, tree in items.items() if tree is not None}


def state_of(items: dict[str, Any]) -> TrainState:
    """Return the state that `items_of` took apart."""
    train = items["train"]
    return TrainState(
        step=train["step"],
        params=items["params"],
        opt_state=train["opt_state"],
        key=jax.random.wrap_key_data(train["key"]),
        num_skipped=train["num_skipped"],
        ema_params=items.get("ema_params"),
        carry=train.get("carry"),
    )


def host_bytes(items: Any) -> int:
    """Return how many bytes of a state this process copies to write them.

    Each device copies an equal share of what it and others hold.
    """
    total = 0
    for leaf in jax.tree.leaves(items):
        devices = leaf.sharding.device_set
        local = sum(d.process_index == jax.process_index() for d in devices)
        total += leaf.nbytes * local // len(devices)
    return total
