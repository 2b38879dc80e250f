"""The original's entry point: `python3 src/main.py --mode pretrain ...` is `maejax train ...`."""

import sys

from maejax.__main__ import main

sys.exit(main("train"))
