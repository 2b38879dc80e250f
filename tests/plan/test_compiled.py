"""A step compiled for a TPU that is not here; needs the TPU's compiler (`pip install 'maejax[tpu]'`), not a TPU."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from maejax.commands.planner import compile_apart
from maejax.config import Config, with_flags
from maejax.data.pipeline import Batch
from maejax.models.build import abstract_model
from maejax.models.description import Compute
from maejax.models.stack import Stack
from maejax.models.transformer import Transformer
from maejax.plan.compiled import compile_for, read_shortage
from maejax.plan.hlo import parse
from maejax.plan.hlo_cost import module_cost
from maejax.plan.target import find_target
from maejax.tasks.pretrain import model_config
from maejax.training.mesh import split
from maejax.training.optim import build_optimizer
from maejax.training.state import abstract_state, make_step

SMALL = {
    "image_size": "32", "patch_size": 8, "dim": 128, "layers": 2, "heads": 2, "dec_dim": 128, "dec_layers": 1,
    "dec_heads": 2, "train_batch_size": 64, "precision": "bfloat16",
}  # fmt: skip


@pytest.mark.parametrize(
    ("message", "needs", "has"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.00G) exceeds "
         "available HBM (15.75G).", 16, 15.75),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40.5G of 31.75G hbm. ..", 40.5, 31.75),
    ],
)  # fmt: skip
def test_shortage_is_read_from_the_compilers_error(message, needs, has):
    assert read_shortage(message) == (needs * 2**30, has * 2**30)
    assert read_shortage("INVALID_ARGUMENT: something else") is None


@pytest.mark.parametrize("sharding", ["replicated", "fsdp"])
def test_step_on_four_chips(sharding, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    pytest.importorskip("libtpu", reason="pip install 'maejax[tpu]'")
    target, config = find_target("v4-8"), with_flags(Config(), **SMALL, sharding=sharding)
    compiled = compile_apart(config, target)
    assert compiled.memory is not None and target.chip is not None
    assert compiled.memory.peak < target.chip.memory / 100
    cost = module_cost(parse(compiled.text))
    assert not cost.unknown_loops
    assert "f32" not in cost.flop_by_type and cost.flop_by_type["bf16"] > 0.9 * cost.flop
    sent = {" ".join(key): nbytes for key, (_, nbytes) in cost.messages.items()}
    largest = max((c.nbytes for c in cost.collectives if c.kind == "all-gather"), default=0)
    if sharding == "replicated":
        # Every gradient is summed over the chips once, and nothing else is sent.
        gradients = sum(
            array.size for array in jax.tree.leaves(nnx.state(abstract_model(model_config(config)), nnx.Param))
        )
        assert set(sent) <= {"all-reduce f32", "all-reduce s32"}
        assert sent["all-reduce f32"] / 4 == pytest.approx(gradients, rel=0.001)
    else:
        # Each weight is gathered by itself; the largest gather is that of one layer's largest weight, in bfloat16.
        assert largest == 128 * 512 * 2
        assert not {"reduce-scatter bf16", "all-reduce bf16"} & set(sent)
        assert sent["reduce-scatter f32"] > 0
        assert sent.get("collective-permute f32", 0) < 0.05 * sent["reduce-scatter f32"]


@pytest.mark.slow
def test_a_product_split_over_many_chips_is_no_loop_of_messages(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    pytest.importorskip("libtpu", reason="pip install 'maejax[tpu]'")
    mesh, optimizer = find_target("v4-64").mesh, build_optimizer("adamw", lambda step: 1e-3, weight_decay=0.05)

    def init():
        return Transformer(Stack(dim=512, layers=1, heads=4), Compute(dtype="bfloat16", scan=True), nnx.Rngs(0))

    def losses(model, batch, microstep):
        return jnp.mean(model(batch.images).astype(jnp.float32) ** 2, axis=(1, 2))

    shapes = {"images": ((8192, 65, 512), jnp.bfloat16), "valid": ((8192,), bool)}
    arrays = {name: jax.ShapeDtypeStruct(*shape, sharding=split(mesh)) for name, shape in shapes.items()}
    batch = Batch(**arrays, labels=None, index=None)
    with jax.set_mesh(mesh):
        step = make_step(losses, optimizer, lambda step: 1e-3, sharding="fsdp")
    compiled = compile_for(mesh, step, (abstract_state(init, optimizer, mesh, "fsdp"), batch))
    kinds = {kind for kind, _ in module_cost(parse(compiled.text)).messages}
    assert kinds <= {"all-gather", "all-reduce", "reduce-scatter"}  # 520 permutations without `OPTIONS`


def test_libtpu_says_nothing_where_there_is_no_tpu():
    pytest.importorskip("libtpu", reason="pip install 'maejax[tpu]'")
    program = "import jax; from maejax.commands.command import prepare_devices; prepare_devices(); print(jax.devices())"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stderr == "" or "Tpu" in done.stdout, done.stderr
