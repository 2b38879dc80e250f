"""Accuracy and seconds of the efficient probe beside the attentive one, in turns, on the same frozen tokens.

python benchmarks/efficient_probe.py CKPT TRAIN TEST --turns 3

TRAIN and TEST are labelled images, as of `maejax evaluate`. Seconds are those of the process on its processors, which
other work disturbs least, and those of the clock; compilation counts, encoding does not.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from maejax.data.sources import open_source
from maejax.evaluation.attentive import attentive_probe
from maejax.evaluation.efficient import efficient_probe
from maejax.evaluation.encoding import encode_source
from maejax.evaluation.labelled import pair
from maejax.weights.files import load

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("ckpt")
parser.add_argument("train")
parser.add_argument("test")
parser.add_argument("--turns", type=int, default=3, help="a seed each")
args = parser.parse_args()


def tokens(path: Path, source) -> tuple[np.ndarray, np.ndarray]:
    """Encode the labelled images of a source as `maejax evaluate` does: tokens in float16, on the disk, and labels."""
    found = list(encode_source(encoder, source, pool=None))
    used = [batch.valid & (batch.labels >= 0) for batch in found]
    rows = np.concatenate([batch.features[keep] for batch, keep in zip(found, used, strict=True)])
    np.save(path, rows.astype(np.float16))
    labels = np.concatenate([batch.labels[keep] for batch, keep in zip(found, used, strict=True)])
    return np.load(path, mmap_mode="r"), labels


encoder = load(args.ckpt).encoder
data, ratios = pair(open_source(args.train), open_source(args.test)), []
with tempfile.TemporaryDirectory() as folder:
    (x, y), (test_x, test_y) = (tokens(Path(folder, f"{i}.npy"), source) for i, source in enumerate(data[:2]))
    first = encoder.config.prefix
    for seed in range(args.turns):
        spent = []
        for name, probe in (
            ("attentive", lambda s: attentive_probe(x, y, test_x, test_y, heads=encoder.config.heads, seed=s)),
            ("efficient", lambda s: efficient_probe(x[:, first:], y, test_x[:, first:], test_y, seed=s)[0]),
        ):
            clock, used = time.perf_counter(), time.process_time()
            accuracy = probe(seed)
            spent.append((time.process_time() - used, time.perf_counter() - clock))
            print(f"{name} {accuracy:.1f} % in {spent[-1][0]:.1f} s, {spent[-1][1]:.1f} s by the clock", flush=True)
        ratios.append(np.divide(spent[1], spent[0]))
print(
    "efficient over attentive: {:.2f} of the processors' seconds, {:.2f} of the clock's".format(*np.median(ratios, 0))
)
