from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maejax.evaluation.reconstruction import draw_grid, reconstruct
from maejax.models.description import MAE, ViT
from maejax.models.mae import Output
from maejax.models.patches import patchify

SIZE, ROWS, COLUMNS, VISIBLE = 4, 3, 5, 4
MEAN, STD = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.3])


@partial(jax.tree_util.register_dataclass, data_fields=["prediction"], meta_fields=["config"])
@dataclass(frozen=True)
class Oracle:
    """Predicts what it was given, whatever the images say."""

    prediction: Any
    config: MAE
    components = None  # of its target

    def normalize(self, images):
        mean, std = (jnp.array(values)[None, None, None] for values in (MEAN, STD))
        return (images.astype(jnp.float32) / 255 - mean) / std

    def __call__(self, x, order, visible, every):
        return Output(jnp.zeros(len(order)), self.prediction)


def described(norm_pix):
    size = (ROWS * SIZE, COLUMNS * SIZE)
    encoder = ViT(image_size=size, patch_size=SIZE, dim=4, heads=1, mean=tuple(MEAN), std=tuple(STD))
    return MAE(encoder=encoder, mask_ratio=1 - (VISIBLE + 0.1) / (ROWS * COLUMNS), norm_pix_loss=norm_pix)


def example(norm_pix):
    """Two smooth images, an order of their patches, and a model that predicts the hidden ones perfectly."""
    rows, columns = np.mgrid[: ROWS * SIZE, : COLUMNS * SIZE]
    waves = [128 + 60 * np.sin(rows / 6 + k) + 50 * np.cos(columns / 7 - k) for k in range(6)]
    images = np.stack(waves, axis=-1).reshape(*rows.shape, 2, 3).transpose(2, 0, 1, 3).astype(np.uint8)
    order = np.stack([np.random.default_rng(k).permutation(ROWS * COLUMNS) for k in range(2)])
    patches = np.asarray(patchify(jnp.asarray(Oracle(None, described(norm_pix)).normalize(images)), SIZE))
    target = np.take_along_axis(patches, order[:, VISIBLE:, None], axis=1)
    if norm_pix:
        target = (target - target.mean(-1, keepdims=True)) / target.std(-1, ddof=1, keepdims=True)
    return Oracle(jnp.asarray(target), described(norm_pix)), images, order


def hidden_pixels(order):
    hidden = np.ones(order.shape, bool)
    np.put_along_axis(hidden, order[:, :VISIBLE], False, axis=1)
    return hidden.reshape(-1, ROWS, COLUMNS, 1).repeat(SIZE, axis=1).repeat(SIZE, axis=2)


def test_a_perfect_prediction_of_raw_pixels_gives_the_image_back():
    model, images, order = example(norm_pix=False)
    made, hidden = reconstruct(model, images, order), hidden_pixels(order)
    np.testing.assert_array_equal(made.original, images)
    np.testing.assert_array_equal(made.pasted, images)
    np.testing.assert_array_equal(made.masked, np.where(hidden, 128, images))
    np.testing.assert_array_equal(made.reconstruction, np.where(hidden, images, 128))
    assert "estimated" not in made.note


def test_a_perfect_prediction_of_patterns_comes_close_and_says_how():
    model, images, order = example(norm_pix=True)
    made = reconstruct(model, images, order)
    error = np.abs(made.pasted.astype(int) - images)
    assert error[~hidden_pixels(order)[..., 0]].max() == 0
    assert 0 < error.mean() < 8
    assert "estimated" in made.note


def test_no_hidden_pixel_has_a_part_in_the_pictures():
    model, images, order = example(norm_pix=True)
    hidden = hidden_pixels(order)
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    made, changed = reconstruct(model, images, order), reconstruct(model, np.where(hidden, noise, images), order)
    for name in ("masked", "reconstruction", "pasted"):
        np.testing.assert_array_equal(getattr(changed, name), getattr(made, name))


def test_an_order_that_is_no_permutation_is_refused():
    model, images, order = example(norm_pix=True)
    with pytest.raises(ValueError, match="permutation of 15 patches for each of 2"):
        reconstruct(model, images, np.zeros_like(order))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_grid_holds_every_picture_pixel_for_pixel(channels):
    model, images, order = example(norm_pix=False)
    made = reconstruct(model, images, order)
    fields = ("original", "masked", "reconstruction", "pasted")
    wide = {field: np.resize(getattr(made, field), (*images.shape[:3], channels)) for field in fields}
    sheet = draw_grid(replace(made, **wide), captions=["one", "two"])
    factor = 11  # the first whole one that makes 12 rows at least 128
    width, height = COLUMNS * SIZE * factor, ROWS * SIZE * factor
    assert sheet.width == 4 * width + 3 * 8 + 2 * 20
    assert sheet.height > 2 * height
    pixels = np.asarray(sheet)[20 + 14 + 8 :, 20:]
    shown = wide["original"][0] if channels == 3 else wide["original"][0, ..., :1].repeat(3, axis=-1)
    np.testing.assert_array_equal(pixels[:height:factor, :width:factor], shown)
    assert pixels[height + 1 : height + 27].min() < 128  # the caption is there
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        draw_grid(made, captions=["one"])
