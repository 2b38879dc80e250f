"""Convert weights to a .pth file for timm: `python scripts/convert_flax_to_pytorch.py NAME.msgpack` writes NAME.pth.

It fits `timm.create_model("vit_...", init_values=1e-4)`; with --plain, `timm.create_model("vit_...", num_classes=0)`.
"""

import argparse
import sys
from pathlib import Path

from maejax.cli import main

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("checkpoint", help="the original's .msgpack, or any file of weights that maejax reads")
parser.add_argument("--plain", action="store_true", help="neither LayerScale nor head where the model has none")
parser.add_argument("--image-size", default="", help="if the file does not hold it; 224 otherwise")
args = parser.parse_args()
out = str(Path(args.checkpoint).with_suffix(".pth"))
options = [] if args.plain else ["--identity"]
sys.exit(main(["convert", args.checkpoint, out, "--to", "timm", "--image-size", args.image_size, *options]))
