"""The masked autoencoder against what the authors' code computes, and its invariants."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maejax.models import masking
from maejax.models.build import initial_model
from maejax.models.description import MAE, Compute, Decoder, ViT
from maejax.models.patches import patchify
from maejax.models.trees import named_arrays, with_arrays
from maejax.training.optim import build_optimizer
from maejax.weights import torch_names

from ..bounds import assert_close, assert_trained_alike, rounding

# Of `tiny`: a patch's pixels, about 170 terms in each of four blocks, the pixels of the prediction.
SUMS = 48 + 4 * 170 + 48


@pytest.fixture(params=["fair_mae_raw", "fair_mae_norm_pix"])
def authors(request, golden):
    g = golden(request.param)
    size, patch, dim, layers, heads, dec_dim, dec_layers, dec_heads, _ = (int(v) for v in g["config"])
    config = MAE(
        encoder=ViT(image_size=(size, size), patch_size=patch, dim=dim, layers=layers, heads=heads),
        decoder=Decoder(dim=dec_dim, layers=dec_layers, heads=dec_heads),
        mask_ratio=float(g["mask_ratio"]),
        norm_pix_loss=bool(g["norm_pix"]),
    )
    return with_arrays(initial_model(config), torch_names.to_ours(g["weights"])), g


def tiny(encoder=(), decoder=(), compute=(), **changes):
    vit = ViT(**{"image_size": (16, 24), "patch_size": 4, "dim": 16, "layers": 2, "heads": 2} | dict(encoder))
    stack = Decoder(**{"dim": 8, "layers": 2, "heads": 2} | dict(decoder))
    return initial_model(MAE(encoder=vit, decoder=stack, **changes), Compute(**dict(compute)))


def batch(g, i):
    return jnp.asarray(g["images"][i].transpose(0, 2, 3, 1)), masking.order_of(jnp.asarray(g["noise"][i]))


def mean_loss(model, x, order):
    return model(x, order).loss.mean()


def test_forward_equals_the_authors(authors):
    model, g = authors
    x, order = batch(g, 0)
    assert_close(jax.jit(lambda m, x, keep: m.encoder(x, keep))(model, x, order[:, : model.visible]), g["latent"])
    out = jax.jit(type(model).__call__)(model, x, order)
    theirs = np.take_along_axis(g["pred"], np.asarray(order)[:, model.visible :, None], axis=1)
    assert_close(out.prediction, theirs)
    assert_close(out.loss, ((theirs - model.target(x, order[:, model.visible :])) ** 2).mean((1, 2)))
    assert_close(out.loss.mean(), g["losses"][0])
    hidden = np.ones_like(g["mask"])
    np.put_along_axis(hidden, np.asarray(order)[:, : model.visible], 0, axis=1)
    np.testing.assert_array_equal(hidden, g["mask"])


def test_gradients_equal_the_authors(authors):
    model, g = authors
    ours = named_arrays(jax.jit(jax.grad(mean_loss))(model, *batch(g, 0)))
    theirs = torch_names.to_ours(g["grads"])
    for name, expected in theirs.items():
        assert_close(ours[name], expected, name=name)
    assert ours.keys() - theirs.keys() == {"encoder.positions", "dec_positions"}
    assert not ours["encoder.positions"].any() and not ours["dec_positions"].any()


def test_ten_adamw_steps_equal_the_authors(authors):
    model, g = authors
    optimizer = build_optimizer("adamw", lambda step: 1e-3, weight_decay=0.05, b1=0.9, b2=0.95)
    slots = jax.jit(optimizer.init)(model)

    @jax.jit
    def step(model, slots, x, order):
        loss, grads = jax.value_and_grad(mean_loss)(model, x, order)
        updates, slots = optimizer.update(grads, slots, model)
        return optax.apply_updates(model, updates), slots, loss

    losses = []
    for i in range(10):
        model, slots, loss = step(model, slots, *batch(g, i))
        losses.append(float(loss))
    assert_close(losses, list(g["losses"]))
    ours = named_arrays(model)
    for theirs, expected in g["after"].items():
        name, layer = torch_names.our_name(theirs)
        array = np.asarray(ours[name] if layer is None else ours[name][layer])
        expected = torch_names.our_value(theirs, expected)
        if theirs.endswith("qkv.bias"):
            # Softmax ignores what all scores share: the keys' bias has no gradient, and Adam blows its rounding up.
            array, expected = (np.delete(a, slice(len(a) // 3, 2 * len(a) // 3)) for a in (array, expected))
        assert_trained_alike(array, expected, name=theirs)


def test_scan_and_remat_change_nothing():
    x = jax.random.normal(jax.random.key(1), (2, 16, 24, 3))
    order = masking.random(jax.random.key(2), 2, 24)
    key = jax.random.key(3)
    results = []
    for compute in ({}, {"scan": True}, {"remat": True}, {"scan": True, "remat": True}):
        model = tiny({"droppath": 0.3, "dropout": 0.2}, compute=compute)
        results.append(named_arrays(jax.jit(jax.value_and_grad(lambda m: m(x, order, key).loss.mean()))(model)))
        assert_close(results[-1], results[0], rounding(2 * SUMS + 2 * 24))


def test_a_scan_keeps_no_scores():
    model = jax.eval_shape(lambda: tiny({"layers": 3}, compute={"scan": True}))
    x, order = jax.ShapeDtypeStruct((5, 16, 24, 3), jnp.float32), jax.ShapeDtypeStruct((5, 24), jnp.int32)
    text = str(jax.make_jaxpr(jax.grad(mean_loss))(model, x, order))
    assert "f32[3,5,7,48]" in text  # queries, keys and values of all layers, cls and 6 patches
    assert "f32[3,5,2,7,7]" not in text and "f32[5,2,7,7]" in text  # their scores, and those of one layer at a time


@pytest.mark.parametrize("scan", [False, True])
def test_gradients_are_never_summed_over_samples_in_half_precision(scan):
    """What is widened to float32 still has a row for every sample: a sum that was rounded would have none."""
    learned = {"posemb": "learnable", "layerscale": True, "qk_norm": True}
    model = jax.eval_shape(lambda: tiny(learned, learned, {"dtype": "bfloat16", "scan": scan}))
    x, order = jax.ShapeDtypeStruct((7, 16, 24, 3), jnp.float32), jax.ShapeDtypeStruct((7, 24), jnp.int32)

    def loss(model, x, order):
        return model(x, order).loss.sum() + model.encode(x, None).sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(model, x, order))
    widened = re.findall(r":f32\[([\d,]*)\] = convert_element_type", text)
    assert len(widened) > 20 and not [sizes for sizes in widened if not sizes.startswith("7,")]


def test_only_masked_patches_are_scored_and_visible_ones_are_seen():
    model = tiny()
    x = jax.random.normal(jax.random.key(1), (1, 16, 24, 3))
    order = masking.random(jax.random.key(2), 1, 24)
    seen = jnp.isin(jnp.arange(24), order[0, : model.visible])
    noise = jax.random.normal(jax.random.key(3), (1, 24, 48))
    place = jnp.where(seen[None, :, None], 0, noise)
    rows = place.reshape(1, 4, 6, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
    assert jnp.array_equal(patchify(rows, 4), place)
    # Other hidden pixels: the same prediction, another loss.
    before, after = (jax.jit(type(model).__call__)(model, images, order) for images in (x, x + rows))
    np.testing.assert_array_equal(before.prediction, after.prediction)
    assert float(jnp.abs(before.loss - after.loss).min()) > 1e-3


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_bytes_give_what_normalised_images_give(norm_pix_loss):
    model = tiny({"mean": (0.2, 0.5, 0.7), "std": (0.1, 0.3, 0.2)}, norm_pix_loss=norm_pix_loss)
    images = jax.random.randint(jax.random.key(1), (2, 16, 24, 3), 0, 256).astype(jnp.uint8)
    order = masking.random(jax.random.key(2), 2, model.patches)
    ours, theirs = (jax.jit(type(model).__call__)(model, x, order) for x in (images, model.normalize(images)))
    assert_close(ours.prediction, theirs.prediction, rounding(SUMS))
    assert_close(ours.loss, theirs.loss, rounding(SUMS))


def test_every_sample_has_its_own_mask_and_any_ratio_is_exact():
    order = masking.random(jax.random.key(0), 64, 196)
    assert len({tuple(sorted(row)) for row in np.asarray(order)[:, :49].tolist()}) == 64
    for percent in range(5, 100, 5):
        assert MAE(mask_ratio=percent / 100).visible == int(196 * (1 - percent / 100))
    for ratio in (0.05, 0.55, 0.95):
        sizes = {"image_size": (56, 56), "layers": 1}
        model = jax.eval_shape(lambda: tiny(sizes, {"layers": 1}, mask_ratio=ratio))  # noqa: B023
        kept = model.visible
        out = jax.eval_shape(lambda m, x, o: m(x, o), model, jnp.zeros((1, 56, 56, 3)), order[:1])
        assert out.prediction.shape == (1, 196 - kept, 48)


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": {"channels": 1, "mean": (0.5,), "std": (0.2,)}},
        {"encoder": {"channels": 7, "mean": (0.5,) * 7, "std": (0.2,) * 7}},
        {"encoder": {"posemb": "learnable"}, "decoder": {"posemb": "learnable"}},
        {"encoder": {"layerscale": True}, "decoder": {"layerscale": True}},
        {"encoder": {"qk_norm": True}, "decoder": {"qk_norm": True}},
        {"encoder": {"dropout": 0.1, "droppath": 0.2}, "decoder": {"dropout": 0.1, "droppath": 0.2}},
        {"compute": {"dtype": "bfloat16"}},
        {"norm_pix_loss": True},
        {"decoder": {"layers": 1}},
    ],
    ids=str,
)
def test_every_option_trains(changes):
    model = tiny(**changes | {"encoder": {"layers": 1} | changes.get("encoder", {})})
    images = jax.random.randint(jax.random.key(0), (2, 16, 24, model.config.encoder.channels), 0, 256).astype(jnp.uint8)
    order = masking.random(jax.random.key(1), 2, 24)

    def loss(model):
        return model(model.normalize(images), order, jax.random.key(2)).loss.mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(model)
    assert np.isfinite(value) and value.dtype == jnp.float32
    fixed = {"encoder.positions", "dec_positions"} if "posemb" not in changes.get("encoder", {}) else set()
    for name, grad in named_arrays(grads).items():
        assert grad.dtype == jnp.float32
        if name not in fixed and not name.endswith(("qkv.bias", "k_norm.bias")):  # a key's bias has no effect
            assert float(jnp.abs(grad).max()) > 0, name


def test_dropout_needs_a_key_and_follows_it():
    model = tiny({"droppath": 0.5, "dropout": 0.5})
    x, order = jnp.ones((2, 16, 24, 3)), masking.random(jax.random.key(0), 2, 24)
    forward = jax.jit(type(model).__call__)
    evaluation = forward(model, x, order).loss
    np.testing.assert_array_equal(evaluation, forward(model, x, order).loss)
    first, again, other = (forward(model, x, order, jax.random.key(k)).loss for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other) and not np.allclose(first, evaluation)


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="patches of 5 pixels do not divide an image of 16 x 24"):
        tiny({"patch_size": 5})
    with pytest.raises(ValueError, match="3 heads do not divide a width of 16"):
        tiny({"heads": 3})
    with pytest.raises(ValueError, match=r"mask ratio 0\.99 leaves 0 of 24"):
        tiny(mask_ratio=0.99)
