"""Checkpoints: bit for bit, the newest few, strict about the model; damaged files and full disks lose no more."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maejax.errors import Failed, InputError
from maejax.models.build import initial_model
from maejax.models.description import MAE, Decoder, ViT
from maejax.models.trees import named_arrays
from maejax.training.checkpoint import Checkpoints, read_model_arrays, saved_steps
from maejax.training.mesh import make_mesh
from maejax.training.optim import build_optimizer
from maejax.training.state import TrainState, abstract_state

from ..conftest import create_state


def model(dim=16):
    encoder = ViT(image_size=(8, 8), patch_size=4, dim=dim, layers=2, heads=2)
    return initial_model(MAE(encoder=encoder, decoder=Decoder(dim=8, layers=1, heads=2)))


OPTIMIZER = build_optimizer("adamw", lambda step: 1e-3, weight_decay=0.1)


def test_a_state_comes_back_bit_for_bit_and_old_ones_go(tmp_path, monkeypatch):
    monkeypatch.setattr("maejax.training.checkpoint.SLICE", 0)  # as arrays of many MiB are written
    mesh = make_mesh()
    state = create_state(model, OPTIMIZER, mesh)
    state = jax.jit(lambda state: jax.tree.map(lambda a: a + 1, state))(state)  # no zeros left in the slots
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest is None
        for step in (1, 2, 3):
            checkpoints.save(TrainState(jnp.asarray(step), state.model, state.opt_state), step, {"position": [step]})
    assert saved_steps(tmp_path) == [2, 3]
    with Checkpoints(tmp_path) as checkpoints:
        back, step, data = checkpoints.restore(abstract_state(model, OPTIMIZER, mesh))
    assert int(back.step) == step == 3 and data == {"position": [3]}
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


@pytest.fixture(scope="module")
def state():
    return create_state(model, OPTIMIZER, make_mesh())


def largest_file(checkpoint: Path) -> Path:
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_bit(path: Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit": lambda checkpoint: flip_a_bit(largest_file(checkpoint)),
    "half a file": lambda checkpoint: largest_file(checkpoint).write_bytes(largest_file(checkpoint).read_bytes()[:100]),
    "a missing file": lambda checkpoint: largest_file(checkpoint).unlink(),
    "no description": lambda checkpoint: (checkpoint / "_CHECKPOINT_METADATA").write_text("{"),
}


@pytest.mark.filterwarnings("ignore:coroutine '.*_background_load' was never awaited:RuntimeWarning")  # Orbax's
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, state, caplog, damage):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 1)
        checkpoints.save(state, 2)
    DAMAGE[damage](tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        back, step, _ = checkpoints.restore(state)
        assert step == 1 and f"checkpoint {tmp_path / '2'} is damaged" in caplog.text
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (back, state)), strict=True))
        assert (tmp_path / "2.damaged").is_dir()
        checkpoints.save(state, 2)  # the same step again
    assert saved_steps(tmp_path) == [1, 2]


def test_where_all_are_damaged_nothing_is_touched(tmp_path, state):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 1)
    flip_a_bit(largest_file(tmp_path / "1"))
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match=r"can be read \(tried 1\)"):
        checkpoints.restore(state)
    assert saved_steps(tmp_path) == [1]


@pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache")  # JAX's own files have no room either
def test_a_full_disk_costs_one_save_and_is_said(tmp_path, state, caplog, full_disk):
    with Checkpoints(tmp_path) as checkpoints:
        with full_disk():
            checkpoints.save(state, 1)
            checkpoints.wait()
        assert "checkpoint 1 in" in caplog.text and "training goes on" in caplog.text
        checkpoints.save(state, 2)
    assert saved_steps(tmp_path) == [2]
    with pytest.raises(Failed, match="the last save failed"), Checkpoints(tmp_path) as checkpoints:  # noqa: SIM117
        with full_disk():
            checkpoints.save(state, 3)
            checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2"]
