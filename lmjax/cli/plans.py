"""What `lmjax plan` prints."""

import json

from lmjax.config.experiment import Config
from lmjax.plan import report
from lmjax.plan.plan import plan
from lmjax.plan.target import Target


def run(
    config: Config,
    target: Target,
    *,
    tokens: float | None,
    price: float | None,
    as_json: bool,
) -> int:
    """Print a plan, or what a search found; return 0.

    Raises:
      UserError: see `plan`.
    """
    found = plan(config, target, tokens=tokens, price=price)
    if as_json:
        print(json.dumps(found))
    else:
        report.print_plan(found)
    return 0
