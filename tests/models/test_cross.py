"""The cross-attention decoder against what the CrossMAE authors' code computes, and its invariants."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maejax.models import masking
from maejax.models.build import initial_model
from maejax.models.description import MAE, Compute, Decoder, ViT
from maejax.models.flops import pretrain_flop
from maejax.models.trees import named_arrays, with_arrays
from maejax.ops import attention
from maejax.training.optim import build_optimizer
from maejax.weights import torch_names

from ..bounds import assert_close, rounding

# Of `tiny`: the pixels of a patch, about 170 terms in each of six blocks, nine for a mix, the pixels of the prediction.
SUMS = 48 + 6 * 170 + 9 + 48


@pytest.fixture(params=["cross_mae_raw", "cross_mae_norm_pix"])
def authors(request, golden):
    g = golden(request.param)
    size, patch, dim, layers, heads, dec_dim, dec_layers, dec_heads, _ = (int(v) for v in g["config"])
    share = float(g["predicted_ratio"]) / float(g["mask_ratio"])
    inputs = "all" if g["use_input"] else "blocks"
    config = MAE(
        encoder=ViT(image_size=(size, size), patch_size=patch, dim=dim, layers=layers, heads=heads),
        decoder=Decoder(
            dim=dec_dim, layers=dec_layers, heads=dec_heads, attention="cross", inputs=inputs, predict_share=share
        ),
        mask_ratio=float(g["mask_ratio"]),
        norm_pix_loss=bool(g["norm_pix"]),
    )
    model = initial_model(config)
    # Theirs has no final norm, for their decoder reads what comes before it.
    norm = {name: array for name, array in named_arrays(model).items() if name.startswith("encoder.norm.")}
    return with_arrays(model, norm | torch_names.to_ours(g["weights"])), g


def batch(g, i):
    return jnp.asarray(g["images"][i].transpose(0, 2, 3, 1)), masking.order_of(jnp.asarray(g["noise"][i]))


def mean_loss(model, x, order):
    return model(x, order).loss.mean()


def tiny(decoder=(), compute=(), encoder=()):
    vit = ViT(**{"image_size": (16, 24), "patch_size": 4, "dim": 16, "layers": 3, "heads": 2} | dict(encoder))
    usual = {"dim": 8, "layers": 2, "heads": 2, "attention": "cross", "predict_share": 0.33}
    return initial_model(MAE(encoder=vit, decoder=Decoder(**usual | dict(decoder))), Compute(**dict(compute)))


def test_prediction_and_loss_equal_the_authors(authors):
    model, g = authors
    x, order = batch(g, 0)
    out = jax.jit(type(model).__call__)(model, x, order)
    # Theirs are in the order of the patches of the image.
    asked = np.asarray(order)[:, -model.config.predicted :]
    assert out.prediction.shape == g["pred"].shape
    assert_close(np.take_along_axis(np.asarray(out.prediction), np.argsort(asked, axis=1)[..., None], 1), g["pred"])
    assert_close(out.loss.mean(), g["losses"][0])
    hidden = np.zeros_like(g["mask"])
    np.put_along_axis(hidden, asked, 1, axis=1)
    np.testing.assert_array_equal(hidden, g["mask"])


def test_gradients_equal_the_authors(authors):
    model, g = authors
    ours = named_arrays(jax.jit(jax.grad(mean_loss))(model, *batch(g, 0)))
    theirs = torch_names.to_ours(g["grads"])
    for name, expected in theirs.items():
        assert_close(ours[name], expected, name=name)
    untrained = {"encoder.positions", "dec_positions", "encoder.norm.scale", "encoder.norm.bias"}
    assert ours.keys() - theirs.keys() == untrained and not any(ours[name].any() for name in untrained)


def test_five_adamw_steps_equal_the_authors(authors):
    model, g = authors
    optimizer = build_optimizer("adamw", lambda step: 1e-3, weight_decay=0.05, b1=0.9, b2=0.95)
    slots = jax.jit(optimizer.init)(model)

    @jax.jit
    def step(model, slots, x, order):
        loss, grads = jax.value_and_grad(mean_loss)(model, x, order)
        updates, slots = optimizer.update(grads, slots, model)
        return optax.apply_updates(model, updates), slots, loss

    losses = []
    for i in range(5):
        model, slots, loss = step(model, slots, *batch(g, i))
        losses.append(float(loss))
    assert_close(losses, list(g["losses"]))


@pytest.mark.parametrize("inputs", ["all", pytest.param("last", marks=pytest.mark.slow)])
def test_scan_and_remat_change_nothing(inputs):
    x, order = jax.random.normal(jax.random.key(1), (2, 16, 24, 3)), masking.random(jax.random.key(2), 2, 24)
    key, results = jax.random.key(3), []
    for compute in ({}, {"scan": True}, {"remat": True})[: 2 if inputs == "last" else 3]:
        model = tiny({"inputs": inputs, "droppath": 0.3}, compute, {"dropout": 0.2})
        results.append(named_arrays(jax.jit(jax.value_and_grad(lambda m: m(x, order, key).loss.mean()))(model)))
        assert_close(results[-1], results[0], rounding(2 * SUMS + 2 * 24))


@pytest.mark.parametrize("scan", [False, True])
def test_gradients_are_never_summed_over_samples_in_half_precision(scan):
    """What is widened to float32 still has a row for every sample, beside layers or states: see test_mae.py."""
    learned = {"posemb": "learnable", "layerscale": True}
    model = jax.eval_shape(lambda: tiny(learned, {"dtype": "bfloat16", "scan": scan}, learned))
    x, order = jax.ShapeDtypeStruct((7, 16, 24, 3), jnp.float32), jax.ShapeDtypeStruct((7, 24), jnp.int32)
    text = str(jax.make_jaxpr(jax.grad(mean_loss))(model, x, order))
    widened = re.findall(r":f32\[([\d,]*)\] = convert_element_type", text)
    assert len(widened) > 20 and not [sizes for sizes in widened if "7" not in sizes.split(",")[:2]]


def test_mask_tokens_ask_alone():
    """A prediction depends on no other patch that is asked for, and on no hidden pixel."""
    model, order = tiny(), masking.random(jax.random.key(2), 1, 24)
    x = jax.random.normal(jax.random.key(1), (1, 16, 24, 3))
    forward = jax.jit(type(model).__call__, static_argnames="every")
    few, all_hidden = forward(model, x, order), forward(model, x, order, every=True)
    count = model.config.predicted
    assert count == few.prediction.shape[1] == 6 and all_hidden.prediction.shape[1] == 18
    assert_close(all_hidden.prediction[:, -count:], few.prediction, rounding(SUMS))
    latent = jax.eval_shape(lambda: model.latent(x, order))
    assert latent.shape == (4, 1, 7, 16)  # the input, and the outputs of three blocks
    noise = jnp.where(jnp.isin(jnp.arange(24), order[0, : model.visible]).reshape(4, 6)[None, :, :, None], 0.0, 9.0)
    hidden_changed = x + noise.repeat(4, 1).repeat(4, 2)
    assert_close(forward(model, hidden_changed, order).prediction, few.prediction, rounding(SUMS))


@pytest.mark.parametrize("share", [0.33, pytest.param(1.0, marks=pytest.mark.slow)])
def test_fast_forms_take_fewer_or_more_queries_than_keys(monkeypatch, share):
    model = tiny({"dim": 128, "heads": 4, "predict_share": share}, encoder={"dim": 128, "layers": 1})
    x, order = jax.random.normal(jax.random.key(1), (3, 16, 24, 3)), masking.random(jax.random.key(2), 3, 24)

    def outcome():
        return named_arrays(jax.jit(jax.value_and_grad(lambda m: mean_loss(m, x, order)))(model))

    plain, product = outcome(), jax.nn.dot_product_attention
    for kernel in ("attend_on_chip", "attend_packed_on_chip"):
        monkeypatch.setattr(attention, kernel, functools.partial(getattr(attention, kernel), interpret=True))
    stand_in = lambda *qkv, implementation, **masks: product(*qkv, implementation="xla", **masks)  # noqa: E731
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    for form in ("pallas", "cudnn"):
        monkeypatch.setattr(attention, "chosen_form", lambda *_, form=form: form)
        assert_close(outcome(), plain)


@pytest.mark.parametrize(
    ("dim", "layers", "heads", "ratio"), [(384, 12, 6, 0.38), (768, 12, 12, 0.59), (1024, 24, 16, 0.81)]
)
def test_a_third_of_the_patches_cost_what_was_counted_by_hand(dim, layers, heads, ratio):
    vit = ViT(dim=dim, layers=layers, heads=heads)
    crossed = MAE(encoder=vit, decoder=Decoder(attention="cross", inputs="last", predict_share=0.33))
    assert pretrain_flop(crossed) / pretrain_flop(MAE(encoder=vit)) == pytest.approx(ratio, abs=0.02)
