"""Muon: each layer of a stack and each matrix of a packed projection is made orthogonal alone; AdamW has the rest."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maejax.models.build import initial_model
from maejax.models.description import MAE, Decoder, ViT
from maejax.models.trees import is_stacked, named_arrays
from maejax.training import mesh as placement
from maejax.training.mesh import make_mesh, state_sharding
from maejax.training.optim import build_optimizer, decay_mask

from ..bounds import assert_close

BLOCK = {"attention.qkv": 3, "attention.q": 1, "attention.kv": 2, "attention.proj": 1, "fc1": 1, "fc2": 1}
MATRICES = {f"{stack}.blocks.{layer}.kernel": n for stack in ("encoder.transformer", "decoder")
            for layer, n in BLOCK.items()}  # fmt: skip
MATRICES |= {"encoder.transformer.blocks.fc1.kernel": 2, "dec_embed.kernel": 1}  # gates and values
RATE, DECAY, STEPS = 0.1, 0.3, 2


def autoencoder(attention: Any = "self"):
    encoder = ViT(image_size=(8, 8), patch_size=4, dim=16, layers=2, heads=2, gated=True)
    return initial_model(MAE(encoder=encoder, decoder=Decoder(dim=8, layers=1, heads=2, attention=attention)))


def gradients(model):
    rng = np.random.default_rng(0)
    return [jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), model) for _ in range(STEPS)]


def follow(optimizer, params, grads):
    @jax.jit
    def step(params, slots, grad):
        updates, slots = optimizer.update(grad, slots, params)
        return optax.apply_updates(params, updates), slots

    slots = optimizer.init(params)
    for grad in grads:
        params, slots = step(params, slots, grad)
    return params


def single_matrices(arrays):
    """Cut every stack and every packed projection into matrices [D, E], and leave out what is none."""
    found = {}
    for name in MATRICES.keys() & arrays.keys():
        layers = arrays[name] if ".blocks." in name else arrays[name][None]
        for i, layer in enumerate(layers):
            found |= {(name, i, k): part for k, part in enumerate(jnp.split(layer, MATRICES[name], axis=1))}
    return found


@pytest.mark.parametrize("attention", ["self", "cross"])
def test_it_is_optax_muon_of_every_matrix_and_adamw_of_the_rest(attention):
    model = autoencoder(attention)
    grads = gradients(model)
    optimizer = build_optimizer("muon", lambda step: RATE, weight_decay=DECAY, b1=0.8, b2=0.9, eps=1e-6)
    ours = named_arrays(follow(optimizer, model, grads))

    start, turns = named_arrays(model), [named_arrays(grad) for grad in grads]
    muon = optax.contrib.muon(RATE, weight_decay=DECAY, consistent_rms=0.2)
    matrices = follow(muon, single_matrices(start), [single_matrices(turn) for turn in turns])
    assert len(matrices) == {"self": 2 * 7 + 6 + 1, "cross": 2 * 7 + 6}[attention]
    assert_close(single_matrices(ours), matrices)

    rest = start.keys() - MATRICES.keys() - {"encoder.positions", "dec_positions"}
    assert {"encoder.embed.kernel", "predict.kernel", "mask_token", "encoder.norm.bias"} < rest
    others = [{name: arrays[name] for name in rest} for arrays in (start, *turns)]
    decayed = {name: value for name, value in named_arrays(decay_mask(model)).items() if name in rest}
    adamw = optax.adamw(RATE, 0.8, 0.9, 1e-6, weight_decay=DECAY, mask=decayed)
    assert_close({name: ours[name] for name in rest}, follow(adamw, others[0], others[1:]))


def test_a_matrix_that_is_split_over_devices_is_made_orthogonal_as_one(monkeypatch):
    monkeypatch.setattr(placement, "SMALL", 64)
    model, mesh = autoencoder(), make_mesh()
    optimizer, (grad, _) = build_optimizer("muon", lambda step: RATE, weight_decay=DECAY), gradients(model)
    places = state_sharding(model, mesh, "fsdp")
    assert sum(is_stacked(path) and "data" in place.spec for path, place in jax.tree.leaves_with_path(places)) > 8
    given = grad, optimizer.init(model), model
    updates, slots = jax.jit(optimizer.update)(*jax.device_put(given, state_sharding(given, mesh, "fsdp")))
    wanted = jax.jit(optimizer.update)(*given)
    assert_close((updates, slots), wanted)
