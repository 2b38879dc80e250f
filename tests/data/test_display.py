import numpy as np
import pytest

from maejax.data.display import GREY, as_picture, limits_of, shown_bands
from maejax.errors import InputError


def test_three_bands_are_stretched_between_their_percentiles():
    images = np.random.default_rng(0).integers(0, 10_000, (4, 32, 32, 5), np.uint16)
    images[0, :4] = 0
    bands = shown_bands("c,1,a", tuple("abcde"), 5)
    assert bands == (2, 1, 0)
    limits = limits_of(images, bands, 0)
    existing = images[..., 2][images[..., 2] > 0]
    np.testing.assert_allclose(limits[:, 0], np.percentile(existing, (2, 98)))
    picture = as_picture(images, bands, limits, 0)
    assert picture.shape == (4, 32, 32, 3) and picture.dtype == np.uint8 and (picture[0, :4] == GREY).all()
    shares = [(picture == value).mean() for value in (0, 255)]
    assert all(0.01 < share < 0.03 for share in shares)


def test_bytes_are_shown_as_they_are_and_the_first_of_many_bands_is_grey():
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 4), np.uint8)
    for channels, bands in ((1, (0,)), (2, (0,)), (3, (0, 1, 2)), (4, (0, 1, 2)), (13, (0,))):
        assert shown_bands("", (), channels) == bands
    np.testing.assert_array_equal(as_picture(images, (0, 1, 2), limits_of(images, (0, 1, 2))), images[..., :3])
    for asked, words in (("1,2", "name three bands"), ("1,2,9", "--show-bands 9: the images have the numbers 0 to 3")):
        with pytest.raises(InputError, match=words):
            shown_bands(asked, (), 4)
