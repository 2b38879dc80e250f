"""The original's entry point: `python3 src/main.py --mode pretrain ...` is `maejax train ...`."""

import sys

from maejax.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
