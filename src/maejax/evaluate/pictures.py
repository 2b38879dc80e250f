"""Reconstructions of the user's own image files, as PNGs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from maejax.data.augment import build_eval
from maejax.data.decode import decode
from maejax.errors import InputError, UnreadableImage
from maejax.evaluate.reconstruction import draw_grid, reconstruct
from maejax.models import masking
from maejax.models.mae import MaskedAutoencoder


def write_pictures(
    model: MaskedAutoencoder, images: Sequence[str], folder: Path, *, mask: str = "random", seed: int = 0
) -> Iterator[Path]:
    """Draw original, masked, reconstruction and pasted of every image file; yield the PNGs written to `folder`.

    `mask` is "random", "block" or "grid". Images are resized and cropped at the centre to the model's size. Raises
    InputError for another mask, and for a file that is missing or no image, before anything is drawn.
    """
    if mask not in ("random", "block", "grid"):
        raise InputError(f"--mask {mask}: choose random, block or grid")
    encoder = model.config.encoder
    crop = build_eval(encoder.image_size, 1.0)
    pixels = np.stack([crop(read(name, encoder.channels), np.random.default_rng(0)) for name in images])
    key = jax.random.key(seed)
    orders = {
        "random": lambda: masking.random(key, len(images), encoder.patches),
        "block": lambda: masking.block(key, len(images), encoder.grid),
        "grid": lambda: masking.grid(key, len(images), encoder.grid),
    }
    order = np.asarray(orders[mask]())
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(images):
        path = folder / f"{i:03d}-{Path(name).stem}.png"
        draw_grid(reconstruct(model, pixels[i : i + 1], order[i : i + 1])).save(path)
        yield path


def read(name: str, channels: int) -> np.ndarray:
    """Read one image file [H, W, C]."""
    try:
        return decode(Path(name).expanduser().read_bytes(), channels)
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from None
    except UnreadableImage as error:
        raise InputError(f"{name} is no image that can be read: {error}") from None
