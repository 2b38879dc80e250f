"""Images of every type on the device, and pixels that are missing in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maejax.models.build import initial_model
from maejax.models.description import IMAGE_TYPES, MAE, PLAIN, Decoder, ViT
from maejax.models.normalization import Normalized, normalize
from maejax.models.stored import from_json

from ..bounds import assert_close

PARTS = {"image_size": (8, 8), "patch_size": 4, "channels": 2, "layers": 1, "dim": 16, "heads": 2}


def model_of(norm_pix_loss=False, **encoder):
    decoder = Decoder(layers=1, dim=8, heads=2)
    return initial_model(MAE(encoder=ViT(**PARTS, **encoder), decoder=decoder, norm_pix_loss=norm_pix_loss), PLAIN, 0)


@pytest.mark.parametrize("kind", IMAGE_TYPES)
def test_a_model_takes_images_of_its_type_and_normalised_ones(kind):
    own = {"mean": (50.0, 70.0), "std": (5.0, 9.0)} if kind != "uint8" else {"mean": (0.2, 0.3), "std": (0.1, 0.2)}
    model = model_of(image_type=kind, **own)
    images = np.random.default_rng(0).integers(0, 100, (3, 8, 8, 2)).astype(kind)
    scale = 255 if kind == "uint8" else 1
    expected = (images.astype(np.float64) / scale - own["mean"]) / own["std"]
    x = model.normalize(images)
    assert isinstance(x, Normalized) == kind.startswith("float")
    found = x.images if isinstance(x, Normalized) else x
    assert found.dtype == jnp.float32
    assert_close(found, expected)
    assert_close(*jax.jit(lambda model: (model.encode(images), model.encode(x)))(model))
    other = "int16" if kind != "int16" else "uint16"
    with pytest.raises(ValueError, match=f"images are {kind}, or normalised by `normalize`, not {other}"):
        model.encode(images.astype(other))
    with pytest.raises(ValueError, match=f"takes {kind} images"):
        model.normalize(images.astype(other))


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize(("kind", "no_data"), [("uint16", 0), ("float32", None), ("float16", -1.0)])
def test_missing_pixels_are_the_mean_and_enter_no_loss(kind, no_data, norm_pix_loss):
    model = model_of(norm_pix_loss, image_type=kind, mean=(50.0, 70.0), std=(5.0, 9.0), no_data=no_data)
    images = np.random.default_rng(0).integers(1, 100, (2, 8, 8, 2)).astype(kind)
    order = np.array([[0, 1, 2, 3], [3, 1, 0, 2]], np.int32)
    gone = np.zeros(images.shape, bool)
    gone[:, 2:7, 3:6, 1] = gone[0, 4:, 4:] = True  # of the first image a whole hidden patch
    holes = np.where(gone, np.array(np.nan if no_data is None else no_data, kind), images)
    x = model.normalize(holes)
    normal = np.asarray(x.images if isinstance(x, Normalized) else x)
    assert (normal[gone] == 0).all() and (normal[~gone] != 0).mean() > 0.9
    out, target = jax.jit(lambda model: (model(holes, order), model.target(holes, order[:, model.visible :])))(model)
    target = np.asarray(target)
    assert np.isfinite(out.loss).all() and np.isnan(target).sum() == gone_in_hidden(gone, order)
    assert_close(out.loss, np.nanmean((np.asarray(out.prediction) - target) ** 2, axis=(1, 2)))
    if norm_pix_loss:  # every patch by the pixels that exist
        assert np.abs(np.nanmean(target[1], axis=-1)).max() < 1e-5
        assert_close(np.nanstd(target[1], axis=-1, ddof=1), np.ones(3), 1e-4)
    whole = model_of(norm_pix_loss, image_type="uint16", mean=(50.0, 70.0), std=(5.0, 9.0))
    if kind == "uint16":
        assert_close(*(jax.jit(lambda model: model(images, order).loss)(each) for each in (model, whole)))


def gone_in_hidden(gone, order):
    tiles = gone.reshape(2, 2, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, -1)
    return sum(tiles[i, order[i, 1:]].sum() for i in range(2))


def test_a_patch_without_any_pixel_costs_nothing():
    model = model_of(True, image_type="float32", mean=(0.0, 0.0), std=(1.0, 1.0))
    images, order = np.full((1, 8, 8, 2), np.nan, np.float32), np.arange(4, dtype=np.int32)[None]
    assert jax.jit(lambda model: model(images, order).loss)(model).tolist() == [0.0]


def test_descriptions_of_earlier_versions_are_of_bytes():
    found = from_json({name: value for name, value in ViT(**PARTS).to_json().items() if name not in NEW})
    assert (found.image_type, found.bands, found.no_data) == ("uint8", (), None)
    with pytest.raises(ValueError, match="2 channels need as many names: a, b, c"):
        ViT(**PARTS, bands=("a", "b", "c"))
    with pytest.raises(ValueError, match="images are uint8, uint16"):
        ViT(**PARTS, image_type="int64")
    with pytest.raises(ValueError, match="takes uint8 images"):
        normalize(np.zeros((1, 2), np.float32), (0, 0), (1, 1))


NEW = ("image_type", "bands", "no_data")
