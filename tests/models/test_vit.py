"""The encoder: initialisation, positions, pooling, precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.scipy.stats import norm

from maejax.models import layers
from maejax.models.arrays import named_arrays, with_arrays
from maejax.models.layers import gelu, linear, mlp
from maejax.models.patches import patchify, sincos_table, unpatchify
from maejax.models.vit import VisionTransformer, normalize


def test_weights_start_as_the_authors_do():
    model = VisionTransformer(image_size=(32, 32), dim=768, layers=2, posemb="learnable", rngs=nnx.Rngs(0))
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
        np.testing.assert_allclose(sincos_table((side, side), dim), theirs, atol=1e-6)


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


def test_gelu_is_exact_and_so_is_its_gradient():
    h = jnp.linspace(-6, 6, 101)
    np.testing.assert_allclose(gelu(h), h * norm.cdf(h), atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(h), norm.cdf(h) + h * norm.pdf(h), atol=1e-6)


def test_mlp_by_pieces_of_the_tokens_is_the_same_and_keeps_less(monkeypatch):
    fc1, fc2 = linear(8, 32, jnp.float32, nnx.Rngs(0)), linear(32, 8, jnp.float32, nnx.Rngs(1))
    x = jax.random.normal(jax.random.key(0), (4, 13, 8))

    def value(fc1, fc2, x):
        return jnp.sum(mlp(x, fc1, fc2, "erf") ** 2)

    def found():
        loss, backward = jax.vjp(value, fc1, fc2, x)
        kept = [array.shape for array in jax.tree.leaves(backward) if array.shape[-1:] == (32,) and array.ndim == 3]
        return (loss, backward(1.0)), sorted(kept)

    plain, _ = found()
    monkeypatch.setattr(layers, "tpu_ahead", lambda: True)
    monkeypatch.setattr(layers, "PIECE_BYTES", 4 * 5 * 32 * 4)  # of 13 tokens, five at the most
    in_pieces, kept = found()
    assert kept == [(4, 4, 32), (4, 4, 32), (4, 5, 32)]  # what enters the GELU, and not what leaves it
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), in_pieces, plain)
    monkeypatch.setattr(layers, "MOST_PIECES", 2)
    assert layers.piece_ends(x, 32) == []


def test_half_precision_layers_sum_in_single_and_do_not_round_their_gradients():
    layer = linear(24, 40, jnp.bfloat16, nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(size=(3, 50, size)), jnp.bfloat16) for size in (24, 40))

    def both(layer, x, g):
        y, backward = jax.vjp(lambda layer, x: layer(x), layer, x)
        return y, *backward(g)

    y, found, dx = jax.jit(both)(layer, x, g)
    x32, g32, weights = np.float32(x), np.float32(g), np.float32(layer.kernel[...].astype(jnp.bfloat16))
    np.testing.assert_allclose(found.kernel[...], np.einsum("btd,bte->de", x32, g32), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.bias[...], g32.sum((0, 1)), rtol=1e-4, atol=1e-4)
    assert y.dtype == dx.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(y), x32 @ weights, rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(np.float32(dx), g32 @ weights.T, rtol=2**-8, atol=1e-5)


def test_normalize_uses_mean_and_std_of_every_channel():
    images = jnp.full((1, 2, 2, 2), 255, jnp.uint8)
    x = normalize(images, (0.5, 0.0), (0.5, 0.25))
    np.testing.assert_allclose(x[0, 0, 0], [1.0, 4.0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_features_do_not_depend_on_the_batch(dtype):
    model = VisionTransformer(
        image_size=(16, 8), patch_size=4, dim=16, layers=2, heads=2, dtype=dtype, rngs=nnx.Rngs(0)
    )
    x = jax.random.normal(jax.random.key(0), (5, 16, 8, 3))
    cls, mean, tokens = (model.encode(x, pool) for pool in ("cls", "mean", None))
    assert cls.shape == mean.shape == (5, 16) and tokens.shape == (5, 9, 16) and tokens.dtype == jnp.float32
    np.testing.assert_allclose(mean, tokens[:, 1:].mean(1), rtol=1e-6)
    np.testing.assert_allclose(model.encode(x[2:3]), cls[2:3], atol=1e-6)
    with pytest.raises(ValueError, match='pool must be "cls", "mean" or None'):
        model.encode(x, "max")


def test_weights_that_do_not_fit_are_listed():
    model = VisionTransformer(image_size=(8, 8), patch_size=4, dim=16, layers=1, heads=2, rngs=nnx.Rngs(0))
    arrays = dict(named_arrays(model))
    arrays["head.kernel"] = arrays.pop("norm.bias")
    arrays["cls_token"] = arrays["cls_token"][..., :3]
    with pytest.raises(ValueError, match=r"cls_token is .*; extra head.kernel .*; missing norm.bias"):
        with_arrays(model, arrays)
