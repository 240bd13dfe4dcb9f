"""`python -m lmjax.cli`."""

import sys

from lmjax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
