"""Convert a .pth file to the original's: `python scripts/convert_pytorch_to_flax.py NAME.pth` writes NAME.msgpack.

The authors' files and timm's are read, with decoder and head where they have them.
"""

import argparse
import sys
from pathlib import Path

from maejax.cli import main

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("checkpoint", help="the authors' or timm's .pth, or any file of weights that maejax reads")
parser.add_argument("--num-heads", type=int, default=0, help="attention heads; 0: from the head size 64")
parser.add_argument("--dec-heads", type=int, default=0, help="attention heads of the decoder; 0: 16")
args = parser.parse_args()
out = str(Path(args.checkpoint).with_suffix(".msgpack"))
heads = ["--heads", str(args.num_heads)] if args.num_heads else []
heads += ["--dec-heads", str(args.dec_heads)] if args.dec_heads else []
sys.exit(main(["convert", args.checkpoint, out, "--to", "original", *heads]))
