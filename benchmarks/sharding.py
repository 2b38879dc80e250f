"""Memory that a training step takes on each of 1, 4 and 8 devices, replicated and split: `benchmarks/sharding.py`.

Compiles the real step of ViT-L/16 with its decoder (AdamW, 8 images in all) for fake CPU devices, and asks XLA's
memory_analysis. The state is exact for any machine; the rest is that of the CPU compiler.
"""

import argparse
import json
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import optax

from maejax.models.build import initial_model
from maejax.models.description import MAE, Compute, ViT
from maejax.tasks.pretrain import Masked
from maejax.training.mesh import make_mesh, split
from maejax.training.optim import build_optimizer
from maejax.training.state import abstract_state, make_step

VIT_L = MAE(encoder=ViT(dim=1024, layers=24, heads=16))
IMAGES = 8


def measure(sharding: str) -> dict[str, float]:
    """Compile a step for the devices that are there; return GiB on each."""
    mesh = make_mesh()
    init = partial(initial_model, VIT_L, Compute(scan=True))
    rate = optax.constant_schedule(1e-4)
    optimizer = build_optimizer("adamw", rate, weight_decay=0.05, b2=0.95)
    state = abstract_state(init, optimizer, mesh, sharding)

    def rows(shape, dtype):
        return jax.ShapeDtypeStruct((IMAGES, *shape), dtype, sharding=split(mesh))

    batch = Masked(rows((224, 224, 3), jnp.uint8), rows((196,), jnp.int32), rows((), bool), rows((), jnp.int32))
    with jax.set_mesh(mesh):
        step = make_step(_losses, optimizer, rate, sharding=sharding).lower(state, batch)
        found = step.compile().memory_analysis()
    images = IMAGES // jax.device_count() * (224 * 224 * 3 + 1 + 4 * 196)
    return {"state": (found.argument_size_in_bytes - images) / 2**30, "temporary": found.temp_size_in_bytes / 2**30}


def _losses(model, batch, _microstep):
    return model(model.normalize(batch.images), batch.order).loss


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--devices", type=int, nargs="+", default=[1, 4, 8])
    arguments.add_argument("--sharding", nargs="+", default=["replicated", "fsdp"])
    arguments.add_argument("--here", action="store_true", help="measure in this process, and print JSON")
    given = arguments.parse_args()
    if given.here:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", given.devices[0])
        print(json.dumps(measure(given.sharding[0])))
        return
    print("| devices | sharding | state, GiB a device | temporary, GiB a device |\n|---|---|---|---|")
    for sharding in given.sharding:
        for devices in given.devices:
            command = [sys.executable, __file__, "--here", "--devices", str(devices), "--sharding", sharding]
            printed = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
            found = json.loads(printed.splitlines()[-1])
            print(f"| {devices} | {sharding} | {found['state']:.2f} | {found['temporary']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
