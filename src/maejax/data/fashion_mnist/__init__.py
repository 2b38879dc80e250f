"""The demo's images: a part of Fashion-MNIST (MIT licence), see README.md and LICENSE beside this file."""

from pathlib import Path


def path(split: str) -> Path:
    """Locate the .npz file of the "train" (18,000 images) or "test" (2,000) split."""
    return Path(__file__).parent / f"{split}.npz"
