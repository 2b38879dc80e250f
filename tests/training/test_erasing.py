"""Random erasing: boxes and pixels as timm's, the same on any number of devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from maejax.training.erasing import draw_boxes, erase
from maejax.training.mesh import make_mesh, put_rows

erasing = jax.jit(erase, static_argnames=("seed", "probability"))


def test_boxes_and_pixels_are_distributed_as_timms(golden):
    theirs, size = golden("statistics")["erase"], (64, 96)
    draw = jax.jit(partial(draw_boxes, rows=20_000, size=size, probability=1.0))
    top, left, height, width = map(np.asarray, draw(jax.random.key(0)))
    ours = {
        "area": height * width / (64 * 96),
        "aspect": np.log(width / height),
        "top": top / np.maximum(64 - height, 1),
        "left": left / np.maximum(96 - width, 1),
    }
    for name, values in ours.items():
        # Quantiles of 20,000 draws: three standard errors of both are .015 of the range between the outer ones.
        quantiles = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
        np.testing.assert_allclose(quantiles, theirs[name], atol=0.02 * np.ptp(theirs[name]), err_msg=name)
    assert (top + height).max() <= 64
    assert (left + width).max() <= 96
    noise = np.asarray(erasing(jnp.zeros((60, *size, 3)), 0, seed=0, probability=1.0))
    noise = noise[noise != 0]
    np.testing.assert_allclose([noise.mean(), noise.std()], theirs["pixels"], atol=0.01)


def test_a_quarter_is_erased_and_the_rest_stays():
    images = jnp.full((4000, 8, 8, 1), 9.0)
    erased = np.asarray(erasing(images, 3, seed=1, probability=0.25))
    changed = (erased != 9).any((1, 2, 3))
    assert abs(changed.mean() - 0.25) < 0.021  # three standard errors
    assert (erased[~changed] == 9).all()
    assert (erased[changed] == 9).any((1, 2, 3)).all()  # never all of an image


def test_numbers_belong_to_seed_step_and_row_on_any_number_of_devices():
    images = np.zeros((8, 16, 16, 3), np.float32)
    chosen = partial(erasing, seed=2, probability=1.0)
    alone = np.asarray(chosen(images, 5))
    mesh = make_mesh()
    assert mesh.size == 4
    np.testing.assert_array_equal(alone, chosen(put_rows(images, mesh), 5))
    others = [alone, chosen(images, 6), erasing(images, 5, seed=3, probability=1.0)]
    assert len({np.asarray(image).tobytes() for batch in others for image in batch}) == 24
    assert erase(images, 5, seed=2, probability=0.0) is images
