"""Makes policies.npz, how strongly timm's policies change a picture: python tests/golden/make_policies.py (timm)."""

import random
import sys
from pathlib import Path

import numpy as np
import peers  # noqa: F401
from PIL import Image, ImageOps
from timm.data import create_transform

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.data.conftest import make_photo
from tests.data.test_policies import NAMES

posterize = ImageOps.posterize


def posterize_to_black(image, bits):
    """Keep no bit as Pillow did before 13, which refuses it; timm asks for it."""
    return posterize(image, bits) if bits else Image.new(image.mode, image.size)


def main():
    ImageOps.posterize = posterize_to_black
    picture = Image.fromarray(make_photo()).resize((64, 48))
    arrays = {}
    for policy in NAMES:
        policies = create_transform(
            (3, 48, 64), is_training=True, auto_augment=policy, interpolation="bicubic", separate=True
        )
        (transform,) = (t for t in policies[1].transforms if "timm.data.auto_augment" in type(t).__module__)
        distances = []
        for seed in range(200):
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002, what timm draws from
            distances.append(np.abs(np.asarray(transform(picture), float) - np.asarray(picture, float)).mean())
        arrays[policy] = np.float32(distances)
    np.savez_compressed(Path(__file__).with_name("policies.npz"), **arrays)


if __name__ == "__main__":
    main()
