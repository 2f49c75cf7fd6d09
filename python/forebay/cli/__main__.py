"""`python -m forebay.cli`, the same as the command `forebay`."""

import sys

from forebay.cli.main import main

sys.exit(main())
