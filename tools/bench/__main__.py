"""Run a benchmark: `python -m tools.bench NAME`."""

import sys

from .command import main

sys.exit(main())
