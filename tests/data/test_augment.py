import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maejax.data import augment
from maejax.data.augment import Box, build_eval, build_train, center_crop, hflip, jitter_colors
from maejax.data.decode import decode
from maejax.data.sources import open_source

PHOTOS = Path(__file__).parents[3] / "shared/data/clothing-small.tar"

# One step of rounding in a quarter of the values. Photos, which have flat areas, stay below .2: tested on them below.
ROUNDING = 0.26


def gen(seed=0):
    return np.random.Generator(np.random.Philox(key=seed))


def cut(image, box: Box):
    top, left, height, width = box
    return image[top : top + height, left : left + width]


def pillow_resize(image, box: Box, size):
    crop = Image.fromarray(cut(image, box))
    return np.asarray(crop.resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.mark.parametrize("without_cykooz", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 300, 400), (31, 40, 120, 100), (5, 5, 250, 60), (0, 0, 1, 400)])
def test_resize_matches_pillow(photo, monkeypatch, without_cykooz, box):
    if without_cykooz:
        monkeypatch.setattr(augment, "cykooz", None)
    for size in ((224, 224), (64, 96)):
        expected = pillow_resize(photo, box, size).astype(int)
        assert np.abs(augment.resize(cut(photo, box), size) - expected).mean() <= ROUNDING
        five = augment.resize(cut(np.concatenate([photo, photo[..., :2]], axis=-1), box), size)
        assert np.abs(five[..., :3] - expected).mean() <= ROUNDING
        alone = augment.resize(cut(photo, box)[..., 1:2], size)
        assert alone.shape == (*size, 1)
        assert np.abs(alone[..., 0] - expected[..., 1]).mean() <= ROUNDING


@pytest.mark.skipif(not PHOTOS.exists(), reason="the photos are not on this machine")
def test_crops_of_real_photos_match_pillow():
    source, rng = open_source(str(PHOTOS)), gen()
    differences = []
    for i in range(0, len(source), 120):
        photo = decode(source.read(i))
        box = augment.random_box(photo.shape[:2], rng, (224, 224), (0.2, 1.0))
        expected = pillow_resize(photo, box, (224, 224)).astype(int)
        differences.append(np.abs(augment.resize(cut(photo, box), (224, 224)) - expected).mean())
    assert np.mean(differences) <= 0.2


def test_channels_are_resized_independently(photo):
    four = np.dstack([photo, np.zeros_like(photo[..., :1])])  # as alpha it would blacken the others
    resized = augment.resize(four, (50, 50))
    np.testing.assert_array_equal(resized[..., :3], augment.resize(photo, (50, 50)))


def test_random_boxes_are_distributed_as_published():
    rng = gen()
    boxes = np.array([augment.random_box((400, 400), rng, (224, 224), (0.2, 1.0)) for _ in range(4000)])
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (top + height <= 400).all()
    assert (left + width <= 400).all()
    share, stretch = height * width / 400**2, np.log(width / height)
    assert 0.195 < share.min() < 0.21
    # Wide and tall boxes of a large share do not fit and are drawn again: the mean share is not .6.
    area, ratio = gen(1).uniform(0.2, 1, 10**5), np.exp(gen(2).uniform(np.log(3 / 4), np.log(4 / 3), 10**5))
    assert abs(share.mean() - area[np.maximum(area * ratio, area / ratio) <= 1].mean()) < 0.01
    assert abs(stretch.mean()) < 0.01
    assert np.abs(stretch).max() <= np.log(4 / 3) + 0.02
    free = (height < 400) & (width < 400)
    assert abs((top[free] / (400 - height[free])).mean() - 0.5) < 0.03


@pytest.mark.parametrize(("group", "scale"), [("crop8", (0.08, 1.0)), ("crop20", (0.2, 1.0))])
def test_crops_are_distributed_as_torchvisions(golden, group, scale):
    theirs, rng = golden("statistics")[group], gen()
    boxes = np.array([augment.random_box((300, 400), rng, (224, 224), scale) for _ in range(20_000)])
    top, left, height, width = boxes.T
    ours = {
        "area": height * width / (300 * 400),
        "aspect": np.log(width / height),
        "top": top / np.maximum(300 - height, 1),
        "left": left / np.maximum(400 - width, 1),
    }
    for name, values in ours.items():
        assert_quantiles(values, theirs[name], name)


def test_jitter_is_distributed_as_torchvisions(golden, photo):
    theirs, rng = golden("statistics")["jitter"], gen()
    small = np.asarray(Image.fromarray(photo).resize((64, 48)))
    pictures = np.stack([jitter_colors(small, 0.4, rng).astype(np.float64) for _ in range(2000)])
    ours = {
        "brightness": pictures.mean((1, 2, 3)),
        "contrast": pictures.mean(3).std((1, 2)),
        "saturation": pictures.std(3).mean((1, 2)),
    }
    for name, values in ours.items():
        assert_quantiles(values, theirs[name], name, tolerance=0.06)  # of a tenth of the draws


def test_as_many_are_mirrored_as_by_torchvision(golden):
    row, rng = np.array([[[0], [1]]], np.uint8), gen()
    share = np.mean([hflip(row, rng)[0, 0, 0] for _ in range(20_000)])
    assert abs(share - golden("statistics")["flip"]["share"]) < 0.015


def assert_quantiles(values, theirs, name, tolerance=0.02):
    """Compare with quantiles of as many draws: three standard errors of both are .015 of the outer ones' distance."""
    quantiles = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    np.testing.assert_allclose(quantiles, theirs, atol=tolerance * np.ptp(theirs), err_msg=name)


def test_a_box_that_never_fits_falls_back_to_the_centre():
    assert augment.random_box((10, 100), gen(), (8, 8), (1.0, 1.0)) == (0, 43, 10, 13)
    assert augment.random_box((100, 10), gen(), (8, 8), (1.0, 1.0)) == (43, 0, 13, 10)
    assert augment.random_box((10, 100), gen(), (8, 80), (1.0, 1.0))[3] > 70  # wide boxes for a wide target


def test_center_crop_is_torchvisions(photo):
    cropped = center_crop(photo, (224, 224), 0.875)
    whole = pillow_resize(photo, (0, 0, 300, 400), (256, 341))  # 341 = int(256 * 400 / 300)
    expected = whole[16:240, 58:282].astype(int)  # round(58.5) = 58
    assert np.abs(cropped - expected).mean() <= ROUNDING
    assert center_crop(photo, (64, 192), 1.0).shape == (64, 192, 3)
    assert center_crop(photo, (192, 64), 0.9).shape == (192, 64, 3)
    whole = pillow_resize(photo, (0, 0, 300, 400), (109, 145))  # 109 = int(96 / .875), as in timm
    assert np.abs(center_crop(photo, (96, 96), 0.875) - whole[6:102, 24:120].astype(int)).mean() <= ROUNDING
    same = photo[:28, :28]
    assert center_crop(same, (28, 28), 1.0).base is photo  # nothing to do, nothing copied


def test_a_thin_image_takes_the_memory_of_its_crop(monkeypatch):
    thin = np.random.default_rng(0).integers(0, 256, (2, 30000, 3), np.uint8)
    expected = Image.fromarray(thin[:, 14900:15100]).resize((25600, 256), Image.Resampling.BICUBIC)
    expected = np.asarray(expected)[16:240, 12688:12912].astype(int)
    monkeypatch.setattr(augment, "resize", None)  # it would make an image of 3.8 million pixels a row
    assert np.abs(center_crop(thin, (224, 224), 0.875) - expected).mean() <= ROUNDING
    for image in (thin, thin.transpose(1, 0, 2)):
        assert center_crop(image, (224, 224), 0.875).shape == (224, 224, 3)
        assert augment.simple_resized_crop(image, (224, 224), gen()).shape == (224, 224, 3)


def test_simple_crop_moves_within_four_pixels_of_reflection():
    image = np.arange(20 * 20, dtype=np.uint8).reshape(20, 20, 1)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    windows = {padded[i : i + 20, j : j + 20].tobytes(): (i, j) for i in range(9) for j in range(9)}
    seen = {windows[augment.simple_resized_crop(image, (20, 20), gen(seed)).tobytes()] for seed in range(300)}
    assert {i for i, _ in seen} == {j for _, j in seen} == set(range(9))


def test_every_other_image_is_mirrored(photo):
    mirrored = [np.array_equal(hflip(photo[:8, :8], gen(seed)), photo[:8, 7::-1]) for seed in range(400)]
    assert 160 < sum(mirrored) < 240


def test_jitter_changes_colours_within_its_factor(photo):
    grey = np.full((4, 4, 1), 100, np.uint8)
    values = [int(jitter_colors(grey, 0.4, gen(seed))[0, 0, 0]) for seed in range(200)]
    assert 59 <= min(values) < 70
    assert 130 < max(values) <= 141
    coloured = jitter_colors(photo, 0.4, gen(1))
    assert coloured.shape == photo.shape
    assert not np.array_equal(coloured, photo)
    with pytest.raises(ValueError, match="color_jitter"):
        jitter_colors(np.zeros((4, 4, 4), np.uint8), 0.4, gen())


@pytest.mark.parametrize("crop", ["rrc", "src", "none"])
def test_training_transforms_depend_on_the_generator_alone(photo, crop):
    transform = pickle.loads(pickle.dumps(build_train((32, 48), crop, (0.2, 1.0), 0.3)))
    first = transform(photo, gen(5))
    assert (first.shape, first.dtype) == ((32, 48, 3), np.uint8)
    np.testing.assert_array_equal(first, transform(photo, gen(5)))
    assert any(not np.array_equal(first, transform(photo, gen(seed))) for seed in (6, 7, 8))


def test_evaluation_is_the_centre_crop(photo):
    transform = pickle.loads(pickle.dumps(build_eval((32, 32), 0.875)))
    np.testing.assert_array_equal(transform(photo, gen()), center_crop(photo, (32, 32), 0.875))


def test_tiny_and_extreme_images_come_out_in_size():
    for shape in ((1, 1, 3), (1, 500, 3), (500, 2, 1)):
        image = np.full(shape, 77, np.uint8)
        for result in (
            build_train((8, 8), "rrc", (0.2, 1.0), 0.0, flip="none")(image, gen()),
            augment.simple_resized_crop(image, (8, 8), gen()),
            center_crop(image, (8, 8), 0.875),
        ):
            assert result.shape == (8, 8, shape[2])
            assert (result == 77).all()


def test_borders_are_those_of_numpy():
    rng = np.random.default_rng(0)
    for _ in range(300):
        image = rng.integers(0, 256, (*rng.integers(1, 9, 2), 3), np.uint8)
        rows, columns = (tuple(rng.integers(0, 9, 2).tolist()) for _ in range(2))
        expected = np.pad(image, (rows, columns, (0, 0)), mode="reflect")
        assert (augment.reflect(image, rows, columns) == expected).all(), (image.shape, rows, columns)
