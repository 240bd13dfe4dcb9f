"""What `lmjax plan` prints."""

import contextlib
import json
import os
from pathlib import Path
from typing import Literal

from rich.console import Console

from lmjax.cli.pictures import check_picture
from lmjax.config.experiment import Config
from lmjax.errors import UserError
from lmjax.plan import present, report
from lmjax.plan.plan import plan
from lmjax.plan.target import Target


def run(
    config: Config,
    target: Target,
    *,
    tokens: float | None,
    price: float | None,
    way: Literal["plan", "search", "fit"],
    as_json: bool,
    plot: Path | None,
) -> int:
    """Print a plan, or what a search found; return 0.

    Raises:
      UserError: see `plan` and `search`, or there is no matplotlib.
    """
    if plot is not None:
        check_picture(plot, flag="--plot")
    os.environ["JAX_PLATFORMS"] = "cpu"  # no device is used, even where there is one
    if way == "plan":
        plans = [plan(config, target, tokens=tokens, price=price)]
    else:
        from lmjax.plan import search

        if way == "fit":
            plans = [search.fit(config, target, tokens=tokens, price=price)]
        else:
            plans = search.search(config, target, tokens=tokens, price=price)
    if as_json:
        print(json.dumps(plans if way == "search" else plans[0]))
    else:
        report.print_plan(plans[0])
        for found in plans:
            if "overrides" in found:
                report.print_overrides(found)
    if plot is not None:
        from lmjax.plan.plot import write_plot

        write_plot(plans, plot)
    return 0


def explain_out_of_memory(config: Config) -> None:
    """Print on stderr the plan of a run that the devices have no memory for.

    Where it cannot be made, such as in one of several processes, nothing is printed.
    """
    import jax

    target = present.present_target(jax.devices())
    if target is None or jax.process_index():
        return
    with contextlib.suppress(UserError):
        console = Console(stderr=True, highlight=False, soft_wrap=True, width=100)
        report.print_plan(plan(config, target), console=console)
