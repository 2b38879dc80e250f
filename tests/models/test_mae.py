"""The masked autoencoder against what the authors' code computes, and its invariants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maejax.interop import fair
from maejax.models.arrays import named_arrays, with_arrays
from maejax.models import masking
from maejax.models.mae import MaskedAutoencoder
from maejax.models.patches import unpatchify


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / max(np.abs(theirs).max(), 1e-30)


@pytest.fixture(params=["fair_mae_raw", "fair_mae_norm_pix"])
def authors(request, golden):
    g = golden(request.param)
    size, patch, dim, layers, heads, dec_dim, dec_layers, dec_heads, _ = (int(v) for v in g["config"])
    model = MaskedAutoencoder(
        image_size=(size, size), patch_size=patch, dim=dim, layers=layers, heads=heads, dec_dim=dec_dim,
        dec_layers=dec_layers, dec_heads=dec_heads, mask_ratio=float(g["mask_ratio"]),
        norm_pix_loss=bool(g["norm_pix"]), rngs=nnx.Rngs(0),
    )  # fmt: skip
    return with_arrays(model, fair.to_ours(g["weights"])), g


def batch(g, i):
    return jnp.asarray(g["images"][i].transpose(0, 2, 3, 1)), masking.order_of(jnp.asarray(g["noise"][i]))


def loss_of(model, x, order):
    return model(x, order).loss.mean()


def test_forward_equals_the_authors(authors):
    model, g = authors
    x, order = batch(g, 0)
    latent = model.encoder(x, order[:, : model.visible])
    assert relative(latent, g["latent"]) < 1e-5
    out = model(x, order)
    theirs = np.take_along_axis(g["pred"], np.asarray(order)[:, model.visible :, None], axis=1)
    assert relative(out.prediction, theirs) < 1e-5
    target = model.target(x, order)
    np.testing.assert_allclose(out.loss, ((theirs - target) ** 2).mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(out.loss.mean(), g["losses"][0], rtol=1e-5)
    hidden = np.ones_like(g["mask"])
    np.put_along_axis(hidden, np.asarray(order)[:, : model.visible], 0, axis=1)
    np.testing.assert_array_equal(hidden, g["mask"])


def test_gradients_equal_the_authors(authors):
    model, g = authors
    ours = named_arrays(jax.grad(loss_of)(model, *batch(g, 0)))
    theirs = fair.to_ours(g["grads"])
    for name, expected in theirs.items():
        assert relative(ours[name], expected) < 1e-5, name
    assert ours.keys() - theirs.keys() == {"encoder.positions", "dec_positions"}
    assert not ours["encoder.positions"].any() and not ours["dec_positions"].any()
