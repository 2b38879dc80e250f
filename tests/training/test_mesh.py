"""A split state: each device holds its part, and no more than one layer is ever whole."""

import re

import jax
import jax.numpy as jnp
import pytest

from maejax.models.build import initial_model
from maejax.models.description import MAE, Compute, Decoder, ViT
from maejax.models.trees import is_stacked
from maejax.tasks.pretrain import Masked
from maejax.training import mesh as placement
from maejax.training.mesh import make_mesh, split
from maejax.training.optim import build_optimizer
from maejax.training.state import abstract_state, make_step

LAYERS = 3


def model():
    encoder = ViT(image_size=(16, 16), patch_size=4, dim=48, layers=LAYERS, heads=2)
    return initial_model(MAE(encoder=encoder, decoder=Decoder(dim=32, layers=1, heads=2)), Compute(scan=True))


def losses(model, batch, microstep):
    return model(model.normalize(batch.images), batch.order).loss


def compile_step():
    """Compile the step of a split state on all devices; return it and the state's description."""
    mesh = make_mesh()
    optimizer = build_optimizer("adamw", lambda step: 1e-3, weight_decay=0.1)
    state = abstract_state(model, optimizer, mesh, "fsdp")

    def rows(shape, dtype):
        return jax.ShapeDtypeStruct((4, *shape), dtype, sharding=split(mesh))

    batch = Masked(rows((16, 16, 3), jnp.uint8), rows((16,), jnp.int32), rows((), bool), rows((), jnp.int32))
    with jax.set_mesh(mesh):
        return make_step(losses, optimizer, lambda step: 1e-3, sharding="fsdp").lower(state, batch).compile(), state


def whole_stacks(state):
    """List the shapes of stacks of layers that are split, as HLO writes them, but for those that a part has too."""
    leaves = [(a.shape, a.sharding.shard_shape(a.shape)) for path, a in jax.tree.leaves_with_path(state.model)
              if is_stacked(path)]  # fmt: skip
    parts = {part for _, part in leaves}
    return {
        f"f32[{','.join(map(str, whole))}]"
        for whole, part in leaves
        if whole[0] > 1 and whole != part and whole not in parts
    }


@pytest.fixture
def split_small(monkeypatch):
    monkeypatch.setattr(placement, "SMALL", 64)


def test_one_layer_at_a_time_is_whole_in_both_directions(split_small):
    step, state = compile_step()
    text = step.as_text()
    whole = whole_stacks(state)
    assert {"f32[3,48,144]", "f32[3,48,192]", "f32[3,192,48]"} <= whole
    # Neither weights nor gradients nor optimizer state of a whole stack are anywhere in the program.
    assert not [shape for shape in whole if shape in text]
    loops = [part for part in re.split(r"\n(?=\S)", text) if "while/body" in part and not part.startswith("ENTRY")]
    gathered = [set(re.findall(r"= f32\[(?:1,)?(\d+,\d+)\]\S* all-gather\(", loop)) for loop in loops]
    assert sum({"48,144", "48,48", "48,192", "192,48"} <= found for found in gathered) == 2  # forward and backward
    state_bytes = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state))
    assert step.memory_analysis().argument_size_in_bytes < 0.27 * state_bytes
