"""Optimizers: which parameters decay, how fast each layer goes, trust ratios per layer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maejax.models.build import initial_model
from maejax.models.description import MAE, Classifier, Decoder, ViT
from maejax.models.trees import named_arrays, with_arrays
from maejax.training.optim import build_optimizer, decay_mask, layer_rates
from maejax.training.schedule import peak_rate, warmup_cosine, warmup_stable, warmup_stable_decay
from maejax.weights import torch_names

from ..bounds import assert_close, rounding

RATES, DECAY = (1e-3, 3e-3, 2e-3, 2e-3, 1e-3), 0.05  # of the trajectories in optimizers.npz


def classifier():
    encoder = ViT(image_size=(32, 32), patch_size=8, dim=48, layers=3, heads=3, posemb="learnable")
    return initial_model(Classifier(encoder=encoder, labels=7, pooling="gap"))


def autoencoder(**changes):
    encoder = ViT(image_size=(8, 8), patch_size=4, dim=16, layers=2, heads=2, layerscale=True, **changes)
    return initial_model(MAE(encoder=encoder, decoder=Decoder(dim=8, layers=1, heads=2)))


def first_updates(optimizer, grads, model):
    """Compute the updates of an optimizer's first step."""
    return jax.jit(lambda grads, model: optimizer.update(grads, optimizer.init(model), model)[0])(grads, model)


def test_rates_and_decay_of_fine_tuning_are_the_authors(golden):
    g = golden("fair_finetune_gap")
    rates, decays = (named_arrays(tree) for tree in (layer_rates(classifier(), 0.65), decay_mask(classifier())))
    for theirs, scale in g["lr_scale"].items():
        name, layer = torch_names.our_name(theirs)
        ours = rates[name] if layer is None else rates[name][layer]
        assert_close(np.ravel(ours), scale, rounding(4), name=theirs)  # a power of .65
        if theirs != "cls_token":  # the fine-tuning code spares it, the pre-training code does not
            assert decays[name] == (g["weight_decay"][theirs] > 0), theirs


def test_pre_training_decays_weights_and_tokens_only():
    decayed = {name for name, decays in named_arrays(decay_mask(autoencoder(qk_norm=True))).items() if decays}
    assert {"encoder.cls_token", "mask_token", "encoder.embed.kernel", "predict.kernel"} < decayed
    assert all(name.endswith(("kernel", "cls_token", "mask_token")) for name in decayed)
    assert sum(name.endswith("kernel") for name in named_arrays(autoencoder())) == len(decayed) - 2


def test_fixed_positions_get_no_optimizer_state_and_no_update():
    model = autoencoder()
    optimizer = build_optimizer("adamw", lambda step: 0.1, weight_decay=0.1)
    slots = jax.jit(optimizer.init)(model)
    assert not any("positions" in name for name in named_arrays(slots))
    grads = jax.tree.map(np.ones_like, model)
    updates = named_arrays(jax.jit(optimizer.update)(grads, slots, model)[0])
    for name, update in updates.items():
        assert bool(update.any()) != name.endswith("positions"), name


@pytest.mark.parametrize(("name", "settings"), [
    ("adamw", {"b2": 0.95}), ("sgd", {}), ("lamb", {"b2": 0.95, "eps": 1e-6, "clip_grad": 1.0}),
])  # fmt: skip
def test_trajectories_are_those_of_pytorch_and_timm(golden, name, settings):
    g = golden("optimizers")
    fixed = {name: array for name, array in named_arrays(autoencoder()).items() if name.endswith("positions")}
    model = with_arrays(autoencoder(), g["start"] | fixed)
    rates = jnp.array(RATES)
    optimizer = build_optimizer(name, lambda step: rates[step], weight_decay=DECAY, **settings)

    @jax.jit
    def step(model, slots, grads):
        updates, slots = optimizer.update(grads, slots, model)
        return optax.apply_updates(model, updates), slots

    slots = jax.jit(optimizer.init)(model)
    for turn in range(len(RATES)):
        grads = with_arrays(model, {name: array[turn] for name, array in g["grads"].items()} | fixed)
        model, slots = step(model, slots, grads)
    for array, ours in named_arrays(model).items():
        expected = fixed[array] if array in fixed else g[name][array]
        assert_close(ours, expected, name=array)
        if array not in fixed:
            assert np.abs(expected - g["start"][array]).max() > 1e-3, array


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_trust_ratios_are_per_layer(name):
    model = autoencoder()
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), model)
    optimizer = build_optimizer(name, lambda step: 1.0, weight_decay=0.1, b1=0.9, b2=0.999, eps=1e-6)
    stacked = named_arrays(first_updates(optimizer, grads, model))
    kernel = "encoder.transformer.blocks.fc1.kernel"
    for layer in range(2):
        weights, grad = (named_arrays(tree)[kernel][layer] for tree in (model, grads))
        if name == "lars":  # You et al. 2017: .001 |w| / |g + decay w|
            update = grad + 0.1 * weights
            expected = -0.001 * jnp.linalg.norm(weights.ravel()) / jnp.linalg.norm(update.ravel()) * update
        else:  # You et al. 2020; at the first step Adam's direction is g / (|g| + eps)
            update = grad / (jnp.abs(grad) + 1e-6) + 0.1 * weights
            expected = -jnp.linalg.norm(weights.ravel()) / jnp.linalg.norm(update.ravel()) * update
        assert_close(stacked[kernel][layer], expected, rounding(expected.size))  # the norms' sums
    if name == "lars":  # no trust ratio, no decay on biases
        bias = "encoder.transformer.blocks.fc1.bias"
        assert_close(stacked[bias], -named_arrays(grads)[bias], rounding(1))


def test_clipping_bounds_the_whole_gradient():
    model = autoencoder()
    optimizer = build_optimizer("sgd", lambda step: 1.0, weight_decay=0.0, clip_grad=0.5)
    updates = first_updates(optimizer, jax.tree.map(np.ones_like, model), model)
    assert float(jax.jit(optax.tree.norm)(updates)) <= 0.5 + 1e-5


def test_rate_rises_from_zero_and_falls_to_zero():
    peak = peak_rate(1.5e-4, 4096)
    rate = warmup_cosine(peak, 10, 110)
    assert peak == pytest.approx(2.4e-3)
    assert_close([rate(s) for s in (0, 5, 10, 60, 110)], [0, peak / 2, peak, peak / 2, 0], rounding(8))


def test_rate_stays_and_cools_down_at_the_end():
    stable, rate = warmup_stable(2.0, 10), warmup_stable_decay(2.0, 10, 110, 16, 0.4)
    steps = [0, 5, 10, 94, 98, 103, 110, 120]
    assert_close([stable(s) for s in steps], [0, 1, 2, 2, 2, 2, 2, 2], rounding(8))
    assert_close([rate(s) for s in steps], [0, 1, 2, 2, 1.2, 0.8, 0.4, 0.4], rounding(8))  # 1 - sqrt
    assert warmup_stable(2.0, 0)(0) == 2


def test_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="adamw, muon, lamb, sgd, lars, not adam"):
        build_optimizer("adam", lambda step: 1.0, weight_decay=0.0)
