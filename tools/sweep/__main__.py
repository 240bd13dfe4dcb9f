"""Make `python -m tools.sweep` the same as `python tools/sweep.py`."""

import sys

from .command import main

sys.exit(main())
