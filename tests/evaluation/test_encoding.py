from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maejax.evaluation.encoding import extract
from maejax.models.description import ViT
from maejax.models.pooling import pooled

from ..bounds import assert_close, rounding

SUMS = 3 + 16  # channels, and patches


class Encoder(nnx.Module):
    """Tokens that mix the pixels of one image: cls is their sum, the patches are a linear map of single pixels."""

    traces = 0
    config = SimpleNamespace(encoder=ViT())

    def __init__(self):
        self.weight = nnx.Param(jax.random.normal(jax.random.key(0), (3, 8)))

    def normalize(self, images):
        return images.astype(jnp.float32) / 255

    def encode(self, x, pool="cls"):
        Encoder.traces += 1
        patches = x.reshape(len(x), -1, 3) @ self.weight[...]
        return pooled(jnp.concatenate([patches.sum(axis=1, keepdims=True), patches], axis=1), pool, ViT())


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), dtype=np.uint8)


def test_a_feature_depends_neither_on_the_batch_size_nor_on_how_the_images_arrive(images):
    whole = extract(Encoder(), images)
    assert whole.shape == (11, 16)
    assert whole.dtype == np.float32
    assert_close(extract(Encoder(), images, batch_size=4), whole, rounding(SUMS))
    pieces = iter([images[:5], images[5:6], images[6:]])
    assert_close(extract(Encoder(), pieces, batch_size=4), whole, rounding(SUMS))


def test_pooling_is_what_its_name_says(images):
    cls, mean = (extract(Encoder(), images, pool=pool) for pool in ("cls", "mean"))
    assert_close(cls, 16 * mean, rounding(SUMS))
    np.testing.assert_array_equal(extract(Encoder(), images), np.concatenate([cls, mean], axis=1))


def test_the_last_short_batch_does_not_compile_again(images):
    before = Encoder.traces
    extract(Encoder(), iter([images[:7], images[7:]]), batch_size=5)
    assert Encoder.traces == before + 1


def test_wrong_input_is_refused(images):
    with pytest.raises(ValueError, match="pool is"):
        extract(Encoder(), images, pool="max")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="uint8"):
        extract(Encoder(), images / 255)
    with pytest.raises(ValueError, match="no images"):
        extract(Encoder(), iter([]))
