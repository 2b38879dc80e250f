"""Masks: permutations all, of the shape that the strategy says."""

from typing import get_args

import jax
import numpy as np
import pytest

from maejax.models import masking


@pytest.mark.parametrize("shape", [(14, 14), (7, 4)])
def test_every_strategy_orders_all_patches(shape):
    n = shape[0] * shape[1]
    for kind in get_args(masking.Kind):
        order = masking.draw(kind, jax.random.key(0), 8, shape)
        np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(n), (8, 1)))
        assert len(np.unique(order, axis=0)) == 8


def test_grid_keeps_one_of_four():
    order = np.asarray(masking.grid(jax.random.key(0), 2, (14, 14)))
    rows, columns = np.divmod(order[:, :49], 14)
    assert not (rows % 2).any() and not (columns % 2).any()


def neighbours_alike(order, hidden):
    mask = np.zeros(196, bool)
    mask[order[-hidden:]] = True
    mask = mask.reshape(14, 14)
    return (mask[1:] == mask[:-1]).mean() + (mask[:, 1:] == mask[:, :-1]).mean()


def test_blocks_hide_what_lies_together():
    keys = jax.random.key(0)
    block, random = (np.asarray(f) for f in (masking.block(keys, 16, (14, 14)), masking.random(keys, 16, 196)))
    for hidden in (98, 147):
        assert min(neighbours_alike(o, hidden) for o in block) > max(neighbours_alike(o, hidden) for o in random)


def test_noise_has_a_band():
    """The power of what is seen lies in waves of a few patches, not in those as long as the image or in short ones."""

    def power(kind):
        order, seen = np.asarray(masking.draw(kind, jax.random.key(0), 64, (14, 14))), np.zeros((64, 196))
        np.put_along_axis(seen, order[:, :49], 1, axis=1)
        waves = np.mean(np.abs(np.fft.fft2(seen.reshape(-1, 14, 14))) ** 2, axis=0)
        across = np.hypot(*np.meshgrid(*[np.fft.fftfreq(14, 1 / 14)] * 2))  # waves across the image
        bands = [waves[(across > low) & (across <= high)].mean() for low, high in ((0, 1), (1.5, 4), (5, 10))]
        return np.array(bands) / waves[across > 0].mean()

    long, middle, short = power("noise")
    assert middle > 1.5 and long < middle / 2 and short < middle / 2
    assert power("block")[0] > 3 and np.abs(power("random") - 1).max() < 0.4


def test_order_of_noise_is_the_authors(golden):
    g = golden("fair_mae_raw")
    order = masking.order_of(g["noise"][0])
    np.testing.assert_array_equal(np.argsort(order, axis=1), g["ids_restore"])
