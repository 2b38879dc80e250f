"""A picture of many images side by side, as the model will see them."""

import math

import numpy as np
from PIL import Image

GAP = 2  # pixels between images
PAPER = 255


def draw_contact_sheet(images: np.ndarray, least: int = 64) -> Image.Image:
    """Draw images uint8 [B, H, W, C] in rows, as square a field as can be, on white.

    Those whose shorter side has fewer than `least` pixels are enlarged by a whole factor, pixel for pixel. Three
    channels are colours, of four the first three; of any other number the first is shown in grey. Returns RGB.
    """
    count, height, width, channels = images.shape
    pixels = images[..., :3] if channels in (3, 4) else images[..., :1].repeat(3, axis=3)
    factor = max(1, -(-least // min(height, width)))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = height * factor + GAP, width * factor + GAP
    columns = max(1, round(math.sqrt(count * height / width)))
    rows = -(-count // columns)
    sheet = np.full((rows * height + GAP, columns * width + GAP, 3), PAPER, np.uint8)
    for i, image in enumerate(pixels):
        top, left = GAP + i // columns * height, GAP + i % columns * width
        sheet[top : top + height - GAP, left : left + width - GAP] = image
    return Image.fromarray(sheet)
