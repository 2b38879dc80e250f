"""Mixup and cutmix: timm's formula, a new mixture at every step, padding never mixed in."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maejax.training.mesh import make_mesh, put_rows
from maejax.training.mixing import Mixture, blend, cut_box, draw_mixture, mix, soft_targets

from ..bounds import assert_close, rounding


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_batch_is_mixed_as_timm_does(golden, kind):
    g = golden("mixing")
    images = jnp.asarray(g["images"])
    targets = soft_targets(jnp.asarray(g["labels"]), 5, float(g["smoothing"]))
    for case in range(6):
        theirs = g[f"{kind}{case}"]
        lam = jnp.float32(theirs["lam"])
        if kind == "mixup":
            mixture = Mixture(jnp.full(images.shape[1:3], lam), lam)
        else:
            mixture = cut_box(lam, theirs["row"], theirs["column"], images.shape[1:3])
        mixed, soft = blend(images, targets, jnp.ones(4, bool), mixture)
        assert_close(mixed, theirs["images"])
        assert_close(soft, theirs["targets"])


def test_a_thousand_steps_mix_a_thousand_ways():
    size = (40, 56)
    draw = partial(draw_mixture, seed=3, size=size, mixup=0.8, cutmix=1.0)
    pixels, lam = map(np.asarray, jax.jit(jax.vmap(draw))(jnp.arange(1000)))
    assert_close(pixels.mean((1, 2)), lam, rounding(40 * 56))  # the box's area is 1 - lambda
    assert (pixels[1:] != pixels[:-1]).any((1, 2)).all()
    assert len({mixture.tobytes() for mixture in pixels}) > 980  # boxes are whole pixels: two of a size may meet
    # An image is cut where its weights are 0 and 1; a box of no pixel counts as mixup, at most 1 in a thousand here.
    cut = ((pixels == 0) | (pixels == 1)).all((1, 2))
    assert abs(cut.mean() - 0.5) < 0.05  # 3 standard deviations of a share
    mixed = lam[~cut]
    assert len(np.unique(mixed)) == len(mixed)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    assert abs(mixed.mean() - 0.5) < 3 * np.sqrt(0.0962 / len(mixed))
    assert mixed.var() == pytest.approx(1 / (4 * 2.6), rel=0.15)
    # Without the border, cutmix's lambda is uniform; the border takes away up to three quarters of a box.
    rng = np.random.default_rng(0)
    side, y, x = np.sqrt(rng.random(10**5)), rng.random(10**5), rng.random(10**5)
    left = [np.minimum(at + side / 2, 1) - np.maximum(at - side / 2, 0) for at in (y, x)]
    expected = 1 - left[0] * left[1]
    assert abs(lam[cut].mean() - expected.mean()) < 0.04
    assert lam[cut].var() == pytest.approx(expected.var(), rel=0.2)
    # Boxes are solid, and lie everywhere.
    centres = []
    for mixture in pixels[cut]:
        rows, columns = np.nonzero(mixture == 0)
        if len(rows):
            assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            centres.append((rows.mean() / size[0], columns.mean() / size[1]))
    assert np.abs(np.mean(centres, 0) - 0.5).max() < 0.04


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_one_of_the_two_may_be_off(mixup, cutmix):
    draw = partial(draw_mixture, seed=0, size=(16, 16), mixup=mixup, cutmix=cutmix)
    pixels = np.asarray(jax.jit(jax.vmap(draw))(jnp.arange(50)).pixels)
    assert all((len(np.unique(mixture)) == 1) == bool(mixup) for mixture in pixels if 0 < mixture.mean() < 1)


def batch(rows=8):
    rng = np.random.default_rng(1)
    return {
        "images": rng.integers(0, 256, (rows, 16, 16, 3), np.uint8),
        "targets": np.eye(4, dtype=np.float32)[rng.integers(0, 4, rows)],
        "valid": np.arange(rows) != 2,
    }


def test_padding_is_never_mixed_in_on_any_number_of_devices():
    rows = batch()
    mixing = jax.jit(partial(mix, seed=5, mixup=0.8, cutmix=1.0))
    alone = mixing(**rows, step=7)
    for row in (2, 5):  # the padding and its partner
        np.testing.assert_array_equal(alone[0][row], rows["images"][row])
        np.testing.assert_array_equal(alone[1][row], rows["targets"][row])
    assert all(bool((alone[0][row] != rows["images"][row]).any()) for row in (0, 1, 3, 4, 6, 7))
    mesh = make_mesh()
    assert mesh.size == 4
    for whole, parted in zip(alone, mixing(**put_rows(rows, mesh), step=7), strict=True):
        np.testing.assert_array_equal(whole, parted)
    assert not np.array_equal(alone[0], mixing(**rows, step=8)[0])
    assert mix(**rows, step=7, seed=5, mixup=0, cutmix=0)[0] is rows["images"]
