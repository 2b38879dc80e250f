"""Checkpoints: bit for bit, the newest few, strict about the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maejax.models.arrays import named_arrays
from maejax.models.mae import MaskedAutoencoder
from maejax.training.checkpoint import Checkpoints, read_model_arrays, saved_steps
from maejax.training.mesh import make_mesh
from maejax.training.optim import build_optimizer
from maejax.training.state import TrainState, abstract_state, create_state


def model(dim=16):
    return MaskedAutoencoder(
        image_size=(8, 8), patch_size=4, dim=dim, layers=2, heads=2, dec_dim=8, dec_layers=1, dec_heads=2,
        rngs=nnx.Rngs(0),
    )  # fmt: skip


OPTIMIZER = build_optimizer("adamw", lambda step: 1e-3, weight_decay=0.1)


def test_a_state_comes_back_bit_for_bit_and_old_ones_go(tmp_path):
    mesh = make_mesh()
    state = create_state(model, OPTIMIZER, mesh)
    state = jax.tree.map(lambda a: a + 1, state)  # no zeros left in the slots
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest is None
        for step in (1, 2, 3):
            checkpoints.save(TrainState(jnp.asarray(step), state.model, state.opt_state), step)
    assert saved_steps(tmp_path) == [2, 3]
    with Checkpoints(tmp_path) as checkpoints:
        back = checkpoints.restore(abstract_state(model, OPTIMIZER, mesh))
    assert int(back.step) == 3
    before, after = (jax.tree.leaves((s.model, s.opt_state)) for s in (state, back))
    for a, b in zip(before, after, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    alone = read_model_arrays(tmp_path / "3")
    assert alone.keys() == named_arrays(state.model).keys()


def test_the_state_is_born_on_every_device():
    state = create_state(model, OPTIMIZER, make_mesh())
    for array in jax.tree.leaves(state):
        assert len(array.sharding.device_set) == jax.device_count() == 4


def test_another_model_is_refused(tmp_path):
    mesh = make_mesh()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(create_state(model, OPTIMIZER, mesh), 1)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="cls_token"):
        checkpoints.restore(abstract_state(lambda: model(dim=32), OPTIMIZER, mesh))
