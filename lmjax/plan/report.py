"""A plan as tables."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from lmjax.plan.estimate import ASSUMPTIONS

_NAMES = {"parameters": "parameters", "optimizer": "optimizer's state"}


def print_plan(plan: Mapping[str, Any], *, console: Console | None = None) -> None:
    """Print a plan: memory, FLOPs, collectives, time and cost."""
    console = console or Console(highlight=False, soft_wrap=True, width=100)
    mesh = " ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
    console.print(
        f"{plan['topology']}: {plan['num_devices']} devices, mesh {mesh}; "
        f"{plan['batch_size']} rows of {plan['length']} tokens in "
        f"{plan['num_microbatches']} parts, {plan['num_params']:,} parameters, "
        f"{plan['dtype']}, remat {plan['remat']}, attention {plan['attention'] or '-'}"
    )
    console.print(_verdict(plan), style="bold")
    if "memory" in plan:
        console.print(_memory(plan))
    if "refused" in plan:
        console.print(f"the compiler: {plan['refused']}", markup=False)
        return
    if "unread" in plan:
        console.print(
            "no collectives and no time: this jaxlib cannot read what the compiler "
            f"made, a newer one may: {plan['unread']}",
            markup=False,
        )
        return
    if plan["collectives"]:
        console.print(_collectives(plan))
    console.print(_work(plan))
    if "training" in plan:
        console.print(_training(plan["training"]))
        console.print("assumed: " + "; ".join(ASSUMPTIONS), style="dim")


def print_overrides(plan: Mapping[str, Any]) -> None:
    """Print the flags that give this plan, to paste, and in a word what it is."""
    console = Console(highlight=False, soft_wrap=True)
    flags = " ".join(f"--config.{override}" for override in plan["overrides"])
    speed = plan.get("roofline", {}).get("tokens_per_second")
    fast = "" if speed is None else f", {speed:,.0f} tokens/s at best"
    console.print(f"{flags}  # {_verdict(plan)}{fast}", markup=False)


def _verdict(plan: Mapping[str, Any]) -> str:
    total, available = plan["total_bytes"], plan["available_bytes"]
    if total is None:
        return "does not fit"
    needs = f"a device needs {_gb(total)} GB"
    if available is None:
        return needs
    if "refused" not in plan and plan["fits"]:
        return f"fits: {needs} of {_gb(available)}, {_gb(available - total)} left"
    over = total - available
    more = f", {_gb(over)} too much" if over > 0 else ""
    return f"does not fit: {needs} of {_gb(available)}{more}"


def _memory(plan: Mapping[str, Any]) -> Table:
    table = _table("memory of a device", "GB", "share")
    for name, size in plan["memory"].items():
        share = f"{size / plan['total_bytes']:.0%}"
        table.add_row(_NAMES.get(name, name), _gb(size), share)
    table.add_row("all, as the compiler says", _gb(plan["total_bytes"]), "")
    return table


def _collectives(plan: Mapping[str, Any]) -> Table:
    columns = ("over", "dtype", "count", "GB sent", "while computing")
    table = _table("collectives a step", *columns)
    for row in plan["collectives"]:
        if row["bytes"] < 1e-4 * plan["sent_bytes"]:
            continue
        table.add_row(
            row["kind"],
            ", ".join(row["axes"]),
            row["dtype"],
            f"{row['count']:,}",
            _gb(row["bytes"]),
            f"{row['asynchronous']:.0%}",
        )
    table.add_row("all", "", "", "", _gb(plan["sent_bytes"]), "")
    least = plan["least_bytes"]
    ratio = f"{plan['sent_bytes'] / least:.2f} times" if least else ""
    table.add_row("the least possible", "", "", "", _gb(least), ratio)
    return table


def _work(plan: Mapping[str, Any]) -> Table:
    table = _table("work of a device in a step", "amount", "seconds at best")
    time = plan.get("roofline", {})
    cell = lambda name: f"{time[name]:.3g}" if name in time else ""
    flops = ", ".join(f"{n / 1e12:.4g} {d}" for d, n in plan["flops"].items())
    table.add_row("products, TFLOPs", flops, cell("product_seconds"))
    formula = plan["formula_flops"] / 1e12
    ratio = f"{formula:.4g} (products: {plan['flops_over_formula']:.2f} times)"
    table.add_row("by the formula, TFLOPs", ratio, "")
    if plan["kernels"]:
        calls = ", ".join(f"{n} {name}" for name, n in plan["kernels"].items())
        table.add_row("calls of attention kernels", calls, "")
    if time:
        table.add_row("bytes of memory, GB", _gb(plan["bytes"]), cell("memory_seconds"))
        sent = cell("send_seconds")
        table.add_row("bytes sent, GB", _gb(plan["sent_bytes"]), sent)
        speed = f"{time['tokens_per_second']:,.0f} tokens/s, MFU {time['mfu']:.0%}"
        table.add_row("the step", speed, cell("step_seconds"))
    return table


def _training(training: Mapping[str, Any]) -> str:
    days = training["seconds"] / 86_400
    dollars = training.get("dollars")
    cost = "" if dollars is None else f", {dollars:,.0f} dollars"
    return f"{training['tokens']:.4g} tokens: {days:,.3g} days at best{cost}"


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(title, no_wrap=True)
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right")
    return table


def _gb(size: float) -> str:
    gigabytes = size / 1e9
    return f"{gigabytes:.1f}" if abs(gigabytes) >= 10 else f"{gigabytes:.3g}"
