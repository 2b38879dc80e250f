"""`python -m maejax` is `maejax`."""

import sys

from maejax.cli import main

sys.exit(main())
