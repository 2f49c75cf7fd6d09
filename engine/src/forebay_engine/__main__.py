"""`python -m forebay_engine` is the command `forebay-engine`."""

import sys

from forebay_engine.cli import main

if __name__ == "__main__":
    sys.exit(main())
