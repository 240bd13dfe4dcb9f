"""Search over leaves of a config: the command of the package `tools/sweep/`."""

import sys

from sweep.command import main  # the package, which Python prefers to this file

if __name__ == "__main__":
    sys.exit(main())
