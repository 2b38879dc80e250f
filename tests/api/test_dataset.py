"""Images of the user's program: what is read of each kind, and what is said of the others."""

import numpy as np
import pytest
from PIL import Image

from maejax import Dataset
from maejax.data.own_images import OwnStream
from maejax.data.sources import Source
from maejax.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
LABELS = [2, 0, 1, 2, 0, 1]


class Loader:
    """Gives batches, as a loader of PyTorch does: a length, no items by number."""

    def __len__(self):
        return 3

    def __iter__(self):
        return ((IMAGES[i : i + 2], np.array(LABELS[i : i + 2])) for i in range(0, 6, 2))


class Mappings:
    """Gives mappings by number, as a dataset of Hugging Face does, with pictures of Pillow."""

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return {"image": Image.fromarray(IMAGES[i]), "label": LABELS[i]}


OF_EACH_KIND = {
    "array": (lambda: Dataset(IMAGES, labels=LABELS), Source),
    "list": (lambda: Dataset(list(zip(IMAGES, LABELS, strict=True))), Source),
    "mappings": (lambda: Dataset(Mappings()), Source),
    "loader": (lambda: Dataset(Loader()), OwnStream),
    "function": (lambda: Dataset(lambda: zip(IMAGES, LABELS, strict=True)), OwnStream),
}


@pytest.mark.parametrize("kind", OF_EACH_KIND)
def test_every_kind_holds_the_same_images(kind):
    make, opened = OF_EACH_KIND[kind]
    data = make()
    assert isinstance(data.open(), opened)
    assert len(data) == 6 and data.labels.tolist() == LABELS
    assert all((data[i][0] == IMAGES[i]).all() and data[i][1] == LABELS[i] for i in range(6))
    with pytest.raises(IndexError):
        data[6]


def test_places_and_names_of_classes(images):
    there = Dataset(images)
    assert len(there) == 24 and there.plain and there.labels.tolist() == [i % 3 for i in range(24)]
    named = Dataset(IMAGES, labels=["b", "a", "b", "a", "b", "a"])
    assert named.classes == ("a", "b") and named.labels.tolist() == [1, 0] * 3
    assert Dataset(IMAGES[:2], labels=["b", "a"], classes=["b", "a"]).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("images", "given", "said"),
    [
        ((x for x in IMAGES), {}, "a generator is gone through once"),
        (lambda: iter(()), {}, "gave no image: it has to begin anew each time"),
        ([], {}, "holds no image"),
        (7, {}, "int is no source of images: give a place, an array"),
        (["a"], {}, "an image is an array of numbers [H, W] or [H, W, C]"),
        ([{"picture": IMAGES[0]}], {}, "a mapping with picture: call the image `image`"),
        (IMAGES[..., 0][0], {}, "images are uint8 [8, 8]; they must be numbers [n, H, W] or [n, H, W, C]"),
        (IMAGES, {"labels": [1]}, "has 1 labels for 6 images; give one for each"),
        (IMAGES, {"labels": [0.5] * 6}, "0.5 is no class; a label is a number or a name"),
        (IMAGES, {"labels": list("aabbcc"), "classes": "ab"}, "the label 'c' is none of the classes a, b"),
        ([(IMAGES, [1])], {}, "an image is an array"),
        (lambda: [(IMAGES, [1])], {}, "a batch of 6 images has 1 labels"),
    ],
)
def test_what_is_no_image_is_named(images, given, said):
    with pytest.raises(InputError) as error:
        Dataset(images, name="mine", **given).open_whole().read(0)
    assert said in str(error.value)
    assert "python:mine" in str(error.value)
