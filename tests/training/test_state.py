"""One step: parts add up to the whole, rows that are not valid count for nothing, nothing is compiled twice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maejax.data.pipeline import Batch
from maejax.models import masking
from maejax.models.build import initial_model
from maejax.models.description import MAE, Decoder, ViT
from maejax.training.mesh import make_mesh, put_rows
from maejax.training.optim import build_optimizer
from maejax.training.state import create_state, make_step

from ..bounds import assert_close, rounding

RATE = 0.1
# Forwards and backwards: a patch's pixels, about 170 terms in each of two blocks, then all rows and patches.
SUMS = 2 * (48 + 2 * 170) + 8 * 4


def model():
    encoder = ViT(image_size=(8, 8), patch_size=4, dim=16, layers=1, heads=2)
    return initial_model(MAE(encoder=encoder, decoder=Decoder(dim=8, layers=1, heads=2)))


def losses(model, batch, microstep):
    # Masks go by the image, so that a row has the same loss wherever it stands.
    order = jax.vmap(lambda i: masking.random(jax.random.fold_in(jax.random.key(0), i), 1, 4)[0])(batch.index)
    return model(model.normalize(batch.images), order).loss


def batch(rows=8, valid=None):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (rows, 8, 8, 3), np.uint8)
    valid = np.ones(rows, bool) if valid is None else valid
    return Batch(images, np.zeros(rows, np.int32), valid, np.arange(rows))


SGD = build_optimizer("sgd", lambda step: RATE, weight_decay=0.0)


@functools.cache
def built(grad_accum, losses):
    return make_step(losses, SGD, lambda step: RATE, grad_accum=grad_accum)


def one_step(rows, grad_accum=1, losses=losses):
    mesh = make_mesh()
    state = create_state(model, SGD, mesh)
    with jax.set_mesh(mesh):
        return built(grad_accum, losses)(state, put_rows(rows, mesh))


def test_parts_of_a_batch_add_up_to_the_whole():
    valid = np.array([1, 1, 0, 1, 1, 1, 1, 0], bool)  # unevenly spread over the parts
    whole, parts = one_step(batch(valid=valid)), one_step(batch(valid=valid), grad_accum=2)
    assert_close(parts[0].model, whole[0].model, rounding(SUMS))
    assert_close(parts[1], whole[1], rounding(SUMS))


def test_no_part_of_any_step_shares_its_dropout_with_another():
    def spread_microsteps(model, batch, microstep):
        return jnp.exp2(microstep.astype(jnp.float32)) * jnp.ones(len(batch.valid)) + 0 * model.encoder.cls_token.sum()

    _, metrics, _ = one_step(batch(), grad_accum=4, losses=spread_microsteps)
    assert metrics["train/loss"] == (1 + 2 + 4 + 8) / 4


def test_invalid_rows_count_for_nothing():
    valid = np.arange(8) < 4
    ours = batch(valid=valid)
    changed = ours._replace(images=np.where(valid[:, None, None, None], ours.images, 255).astype(np.uint8))
    assert_close(one_step(changed)[0].model, one_step(ours)[0].model, rounding(SUMS))
    assert_close(one_step(Batch(*(rows[:4] for rows in ours)))[1], one_step(ours)[1], rounding(SUMS))


def test_nothing_is_compiled_after_the_first_step():
    mesh = make_mesh()
    optimizer = build_optimizer("adamw", lambda step: RATE, weight_decay=0.0)
    state = create_state(model, optimizer, mesh)
    step = make_step(losses, optimizer, lambda step: jnp.float32(RATE))
    with jax.set_mesh(mesh):
        for _ in range(3):
            state, metrics, _ = step(state, put_rows(batch(), mesh))
    assert step._cache_size() == 1
    assert int(state.step) == 3
    assert metrics.keys() == {"train/loss", "train/grad_norm", "train/param_norm", "train/learning_rate"}


@pytest.mark.parametrize("name", ["muon", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adamw", "lars"))])
def test_a_skipped_step_leaves_every_array_as_it_was(name):
    """Muon has the states of matrices and, by AdamW, those of vectors."""
    mesh, optimizer = make_mesh(), build_optimizer(name, lambda step: RATE, weight_decay=0.1)
    with jax.set_mesh(mesh):
        step = make_step(lambda *given: losses(*given) * given[1].labels, optimizer, lambda step: RATE)
        rows = [put_rows(batch()._replace(labels=np.full(8, f, np.float32)), mesh) for f in (1, np.nan)]
        state, _, _ = step(create_state(model, optimizer, mesh), rows[0])
        before = jax.tree.map(np.asarray, state)
        state, metrics, control = step(state, rows[1])
    assert control.bad and control.halted and np.isfinite(metrics["train/param_norm"])
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(old, new)
