"""Makes mixing.npz, what timm's Mixup does to a small batch: python tests/golden/make_mixing.py (torch and timm)."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import peers  # noqa: F401
import torch
from timm.data import mixup

SIZE, CLASSES, SMOOTHING = (8, 12), 5, 0.1


@contextmanager
def drawing():
    """Collect what Mixup draws: lambda, and the row and column of the middle of the box."""
    beta, randint, drawn = np.random.beta, np.random.randint, {}

    def keep_beta(*args):
        return drawn.setdefault("lam", beta(*args))

    def keep_randint(*args, **kwargs):
        return drawn.setdefault("column" if "row" in drawn else "row", randint(*args, **kwargs))

    np.random.beta, np.random.randint = keep_beta, keep_randint
    yield drawn
    np.random.beta, np.random.randint = beta, randint


def main():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 3, *SIZE)).astype(np.float32)
    labels = rng.integers(0, CLASSES, 4)
    arrays = {"images": images.transpose(0, 2, 3, 1), "labels": labels.astype(np.int32), "smoothing": SMOOTHING}
    for alphas in ((0.8, 0.0), (0.0, 1.0)):
        for case in range(6):
            np.random.seed(case)  # noqa: NPY002, what timm draws from
            with drawing() as drawn:
                mix = mixup.Mixup(*alphas, label_smoothing=SMOOTHING, num_classes=CLASSES)
                mixed, targets = mix(torch.from_numpy(images.copy()), torch.from_numpy(labels))
            name = f"{'mixup' if alphas[0] else 'cutmix'}{case}"
            arrays |= {f"{name}/{key}": np.asarray(value) for key, value in drawn.items()}
            arrays |= {f"{name}/images": mixed.numpy().transpose(0, 2, 3, 1), f"{name}/targets": targets.numpy()}
    np.savez_compressed(Path(__file__).with_name("mixing.npz"), **arrays)


if __name__ == "__main__":
    main()
