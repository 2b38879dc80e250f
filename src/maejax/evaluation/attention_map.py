"""Pictures of where the queries of an efficient probe look."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from maejax.data.display import as_picture, limits_of, shown_bands
from maejax.evaluation.sheet import draw_sheet
from maejax.models.description import ViT
from maejax.storage.atomic import write_atomically

PICTURES = 6  # images
QUERIES = 4  # shown one by one
_OPACITY = 0.75  # of the colour where a map is highest
LEGEND = (
    "Where the efficient probe looks in test images. "
    "Red and yellow patches weigh most, each map on its own scale. Mean is that of all queries, and beside it are the "
    "queries whose maps differ most from it."
)


class AttentionMaps(NamedTuple):
    """Images [B, H, W, C] of the encoder's type and the attention [B, Q, N] that queries pay to their patches."""

    images: np.ndarray
    maps: np.ndarray


def write_attention(path: Path, attention: AttentionMaps, config: ViT) -> None:
    """Write a PNG with a row for each image: the image, the mean of the maps over it, and single queries."""
    images, maps = attention
    mean = maps.mean(axis=1, keepdims=True)
    far = np.argsort(-np.square(maps - mean).sum(axis=(0, 2)), kind="stable")[:QUERIES]
    bands = shown_bands("", config.bands, config.channels)
    pictures = as_picture(images, bands, limits_of(images, bands, config.no_data), config.no_data)
    columns = {"Image": pictures, "Mean": _overlay(pictures, mean[:, 0], config.grid)}
    columns |= {f"Query {query + 1}": _overlay(pictures, maps[:, query], config.grid) for query in sorted(far)}
    with write_atomically(path) as new:
        draw_sheet(columns).save(new, "PNG")


def _overlay(pictures: np.ndarray, maps: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Colour grey pictures [B, H, W, C] by maps [B, N], which are stretched to 0 and 1 and smoothed between patches."""
    height, width = pictures.shape[1:3]
    low, high = maps.min(axis=1, keepdims=True), maps.max(axis=1, keepdims=True)
    stretched = ((maps - low) / np.maximum(high - low, 1e-12)).reshape(-1, *grid).astype(np.float32)
    smooth = [Image.fromarray(each).resize((width, height), Image.Resampling.BILINEAR) for each in stretched]
    heat = np.stack([np.asarray(each) for each in smooth])[..., None]
    colour = np.concatenate([np.full_like(heat, 255), 220 * heat, np.zeros_like(heat)], axis=-1)
    grey = pictures.mean(axis=-1, keepdims=True)
    return np.rint(grey + _OPACITY * heat * (colour - grey)).astype(np.uint8)
