"""Makes statistics.npz, what torchvision's and timm's augmentations draw: python tests/golden/make_statistics.py.

Needs torch, torchvision and timm. Quantiles are of 20,000 draws, at 5, 25, 50, 75 and 95 %.
"""

import random
import sys
from pathlib import Path

import numpy as np
import peers  # noqa: F401
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.data.conftest import make_photo

DRAWS = 20_000
QUANTILES = [0.05, 0.25, 0.5, 0.75, 0.95]


def quantiles(top, left, height, width, size):
    """Describe boxes in images of a size (H, W): share of the area, log aspect, place in the room that is left."""
    described = {
        "area": height * width / (size[0] * size[1]),
        "aspect": np.log(width / height),
        "top": top / np.maximum(size[0] - height, 1),
        "left": left / np.maximum(size[1] - width, 1),
    }
    return {name: np.quantile(values, QUANTILES) for name, values in described.items()}


def erasing(size):
    """Erase zeros, and find the box where they are none."""
    erase = RandomErasing(1.0, mode="pixel", device="cpu")
    boxes, pixels = [], []
    for i in range(DRAWS):
        image = erase(torch.zeros(1, *size))[0].numpy()
        rows, columns = np.nonzero(image)
        boxes.append((rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1))
        if i < 500:
            pixels.append(image[rows, columns])
    pixels = np.concatenate(pixels)
    return quantiles(*np.array(boxes).T, size) | {"pixels": np.array([pixels.mean(), pixels.std()])}


def cropping(size, scale):
    """Draw boxes of RandomResizedCrop."""
    image = torch.empty(3, *size)
    boxes = [transforms.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(DRAWS)]
    return quantiles(*np.array(boxes).T, size)


def jittering(factor):
    """Give mean, standard deviation and spread of the channels of jittered photos: what each of the three changes."""
    photo = Image.fromarray(make_photo()).resize((64, 48))
    jitter = transforms.ColorJitter(factor, factor, factor)
    pictures = np.stack([np.asarray(jitter(photo), np.float64) for _ in range(DRAWS // 10)])
    return describe_pictures(pictures)


def describe_pictures(pictures):
    """Quantiles of brightness, contrast and saturation over pictures [N, H, W, C]."""
    described = {
        "brightness": pictures.mean((1, 2, 3)),
        "contrast": pictures.mean(3).std((1, 2)),
        "saturation": pictures.std(3).mean((1, 2)),
    }
    return {name: np.quantile(values, QUANTILES) for name, values in described.items()}


def main():
    random.seed(0)
    torch.manual_seed(0)
    flip = transforms.RandomHorizontalFlip()
    row = torch.tensor([[[0, 1]]])
    groups = {
        "erase": erasing((64, 96)),
        "crop8": cropping((300, 400), (0.08, 1.0)),
        "crop20": cropping((300, 400), (0.2, 1.0)),
        "jitter": jittering(0.4),
        "flip": {"share": np.mean([int(flip(row)[0, 0, 0]) for _ in range(DRAWS)])},
    }
    arrays = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
    np.savez_compressed(Path(__file__).with_name("statistics.npz"), **arrays)


if __name__ == "__main__":
    main()
