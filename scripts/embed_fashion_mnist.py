"""Make src/maejax/data/fashion_mnist/*.npz, the demo's images, from Debian's package dataset-fashion-mnist.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb /tmp/fashion
    python scripts/embed_fashion_mnist.py /tmp/fashion/usr/share/datasets/fashion-mnist

The first 18,000 training and the first 2,000 test images, in the original order, pixels unchanged.
"""

import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

DESTINATION = Path(__file__).parent.parent / "src/maejax/data/fashion_mnist"
CLASSES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
COUNTS = {"train": ("train", 18_000), "test": ("t10k", 2_000)}


def read_idx(path: Path, header: int) -> np.ndarray:
    """Read the bytes of a gzipped IDX file behind its header."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write an .npz compressed by LZMA, which np.load reads as any other: an eighth smaller than deflate here."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_LZMA)


def main(source: Path) -> None:
    """Write both files."""
    for split, (prefix, count) in COUNTS.items():
        images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:count]
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz", 8)[:count]
        write_npz(DESTINATION / f"{split}.npz", images=images, labels=labels, classes=np.array(CLASSES))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
