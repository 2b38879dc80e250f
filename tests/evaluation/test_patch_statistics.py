import numpy as np
import pytest

from maejax.evaluation.patch_statistics import hidden_statistics, interpolated_statistics

GRID, SIZE = (4, 5), 6


def smooth_tiles(channels=3):
    """Patches of a smooth image, and the same with patterns in the hidden three quarters, as a perfect model has it."""
    rows, columns = np.mgrid[: GRID[0] * SIZE, : GRID[1] * SIZE]
    waves = [np.sin(rows / 7 + k) + np.cos(columns / 5 - k) + rows / 20 for k in range(channels)]
    image = np.stack(waves, axis=-1)
    truth = image.reshape(GRID[0], SIZE, GRID[1], SIZE, channels).swapaxes(1, 2).reshape(-1, SIZE, SIZE, channels)
    visible = np.zeros(len(truth), bool)
    visible[np.random.default_rng(0).permutation(len(truth))[:5]] = True
    mean = truth.mean(axis=(1, 2, 3), keepdims=True)
    std = truth.std(axis=(1, 2, 3), ddof=1, keepdims=True)
    patterns = np.where(visible[:, None, None, None], truth, (truth - mean) / std)
    return truth, patterns, visible


@pytest.mark.parametrize("channels", [1, 3])
def test_seams_come_twice_as_close_as_interpolation(channels):
    truth, tiles, visible = smooth_tiles(channels)

    def error(statistics):
        mean, std = statistics(tiles, visible, GRID)
        shown = mean[:, None, None, None] + std[:, None, None, None] * tiles
        return np.sqrt(np.mean((shown - truth)[~visible] ** 2))

    assert error(hidden_statistics) < error(interpolated_statistics) / 2


def test_contrast_stays_positive_even_for_inverted_patterns():
    _, tiles, visible = smooth_tiles()
    tiles[~visible] *= -1
    _, std = hidden_statistics(tiles, visible, GRID)
    assert (std > 0).all()
    assert (std[visible] == 1).all()


def test_interpolation_is_exact_where_all_visible_patches_agree():
    tiles = np.tile(np.linspace(-1, 3, SIZE)[:, None, None], (20, 1, SIZE, 1))
    visible = np.arange(20) % 4 == 0
    mean, std = interpolated_statistics(tiles, visible, GRID)
    np.testing.assert_allclose(mean, 1)
    np.testing.assert_allclose(std, tiles[0].std(ddof=1))


def test_one_row_of_patches_and_a_single_visible_one_are_enough():
    tiles = np.random.default_rng(0).normal(size=(4, 2, 2, 1))
    mean, std = hidden_statistics(tiles, np.array([True, False, False, False]), (1, 4))
    assert np.isfinite(mean).all()
    assert (std > 0).all()
