"""Start a training on many processes: the command of the package `tools/launch/`."""

import sys

from launch.command import main  # the package, which Python prefers to this file

if __name__ == "__main__":
    sys.exit(main())
