"""The encoder: initialisation, positions, pooling, precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maejax.models.build import initial_model
from maejax.models.description import Compute, ViT
from maejax.models.patches import patchify, sincos_table, unpatchify
from maejax.models.trees import named_arrays, with_arrays
from maejax.models.vit import normalize
from maejax.ops import attention

from ..bounds import assert_close, rounding


def test_weights_start_as_the_authors_do():
    model = initial_model(ViT(image_size=(32, 32), dim=768, layers=2, posemb="learnable"))
    arrays = named_arrays(model)
    blocks = "transformer.blocks."
    for name, fans in {
        "embed.kernel": (768, 768),  # 16 x 16 x 3 pixels, as a linear layer
        f"{blocks}attention.qkv.kernel": (768, 2304),
        f"{blocks}attention.proj.kernel": (768, 768),
        f"{blocks}fc1.kernel": (768, 3072),
        f"{blocks}fc2.kernel": (3072, 768),
    }.items():
        bound = np.sqrt(6 / sum(fans))
        assert arrays[name].shape[-2:] == fans
        assert 0.99 * bound < float(jnp.abs(arrays[name]).max()) < 1.0001 * bound, name
        np.testing.assert_allclose(arrays[name].std(), bound / np.sqrt(3), rtol=0.01)
    np.testing.assert_allclose(arrays["cls_token"].std(), 0.02, rtol=0.1)
    for name, array in arrays.items():
        if name.endswith("bias"):
            assert not array.any()
        if name.endswith("scale"):
            assert (array == 1).all()
    assert not np.allclose(*arrays[f"{blocks}fc1.kernel"])  # every layer has its own


def test_positions_are_the_authors_table(golden):
    for stem, dim in (("fair_mae_raw", 48), ("fair_mae_norm_pix", 48)):
        theirs = golden(stem)["weights"]["pos_embed"][0]
        side = int(np.sqrt(len(theirs) - 1))
        assert_close(sincos_table((side, side), dim), theirs, rounding(1))


def test_positions_of_a_wide_grid_tell_row_from_column():
    table = sincos_table((2, 3), 8)[1:].reshape(2, 3, 8)
    np.testing.assert_array_equal(table[0, :, :4], table[1, :, :4])  # the first half: columns
    np.testing.assert_array_equal(table[:, 0, 4:], table[:, 2, 4:])  # the second half: rows
    assert len(np.unique(table.reshape(6, 8), axis=0)) == 6


def test_patches_are_flattened_row_column_channel():
    images = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(patches[0, 1], images[0, 0:2, 2:4].reshape(-1))
    np.testing.assert_array_equal(unpatchify(patches, (2, 3), 2), images)


def test_normalize_uses_mean_and_std_of_every_channel():
    images = jnp.full((1, 2, 2, 2), 255, jnp.uint8)
    x = normalize(images, (0.5, 0.0), (0.5, 0.25))
    assert_close(x[0, 0, 0], np.array([1.0, 4.0]), rounding(2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_do_not_depend_on_the_batch(dtype):
    model = initial_model(ViT(image_size=(16, 8), patch_size=4, dim=16, layers=2, heads=2), Compute(dtype=dtype))
    x = jax.random.normal(jax.random.key(0), (5, 16, 8, 3))
    encode = jax.jit(type(model).encode, static_argnames="pool")
    cls, mean, tokens = (encode(model, x, pool=pool) for pool in ("cls", "mean", None))
    assert cls.shape == mean.shape == (5, 16) and tokens.shape == (5, 9, 16) and tokens.dtype == jnp.float32
    assert_close(mean, tokens[:, 1:].mean(1), rounding(8))
    # A patch's pixels, about 170 terms in each of two blocks, the last norm.
    assert_close(encode(model, x[2:3]), cls[2:3], rounding(48 + 2 * 170 + 16))
    np.testing.assert_array_equal(encode(model, x, pool="cls+mean"), np.concatenate([cls, mean], axis=1))
    with pytest.raises(ValueError, match="pool is cls, mean, cls\\+mean or None"):
        model.encode(x, "max")


def test_weights_that_do_not_fit_are_listed():
    model = initial_model(ViT(image_size=(8, 8), patch_size=4, dim=16, layers=1, heads=2))
    arrays = dict(named_arrays(model))
    arrays["head.kernel"] = arrays.pop("norm.bias")
    arrays["cls_token"] = arrays["cls_token"][..., :3]
    with pytest.raises(ValueError, match=r"cls_token is .*; extra head.kernel .*; missing norm.bias"):
        with_arrays(model, arrays)


def test_images_of_another_form_are_named():
    model = initial_model(ViT(image_size=(8, 16), patch_size=4, layers=1, dim=16, heads=2), Compute(attention="xla"))
    x = np.zeros((2, 8, 16, 3), np.uint8)
    for images, sentence in (
        (x[0], r"\[B, 8, 16, 3\] here, not \[8, 16, 3\]: add a batch axis"),
        (x.transpose(0, 3, 1, 2), "put the channels last"),
        (x[:, :, :8], "resize or crop"),
        (x.astype(int), "uint8, or normalised"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model.encode(images)
    with pytest.raises(ValueError, match=r"takes uint8 images, 0..255, not float32"):
        model.normalize(x.astype(np.float32))
    assert_close(model.encode(x), model.encode(model.normalize(x)))


@pytest.mark.parametrize("form", ["pallas", "cudnn"])
def test_rotary_positions_are_turned_in_fast_forms_too(monkeypatch, form):
    """The code of each form runs here, interpreted or with JAX's own products in place of NVIDIA's."""
    config = ViT(
        image_size=(16, 24), patch_size=4, dim=128, heads=2, layers=1, posemb="rotary", registers=2, gated=True
    )
    model, x = initial_model(config), np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    keep = jnp.asarray([[5, 0, 23], [7, 1, 2]])

    def outcomes(*kept):
        return jax.jit(lambda model: tuple(model(x, keep) for keep in kept))(model)

    plain = outcomes(None, keep)
    product = jax.nn.dot_product_attention
    monkeypatch.setattr(attention, "chosen_form", lambda *_: form)
    packed = functools.partial(attention.attend_packed_on_chip, interpret=True)
    monkeypatch.setattr(attention, "attend_packed_on_chip", packed)
    stand_in = lambda *qkv, implementation, **masks: product(*qkv, implementation="xla", **masks)  # noqa: E731
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    *found, turned = outcomes(None, keep, keep[:, ::-1])
    assert_close(tuple(found), plain)
    # A patch is where it stands in the image, not in the order in which it enters.
    assert_close(turned[:, :3], plain[1][:, :3])
