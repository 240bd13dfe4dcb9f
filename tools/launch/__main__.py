"""Make `python -m tools.launch` the same as `python tools/launch.py`."""

import sys

from .command import main

sys.exit(main())
