"""The training step compiled for TPU pods, against the graph of the original in float32 from the same run.

    .venv/bin/pip install -e '.[tpu]'
    python benchmarks/tpu_plan.py [--only NAME ...] [--out benchmarks.json]

Every row is one step, compiled by the TPU's own compiler without a TPU and counted in its scheduled module as
docs/notes/plan.md describes. The original-like graph embeds all patches, gathers the visible tokens, restores the order
before the decoder and predicts every patch, all in float32, with plain attention and unsplit hidden layers. A row takes
minutes to compile; the file holds the finished rows.

MFU is the FLOP of the published algorithm over the FLOP of the chip in the time of a step, without messages. The time
is given by the compiler's cycles; by its cycles for matrix products and memory speed elsewhere, the attention kernel as
in docs/notes/plan.md (mix); the same with the kernel at the limits of the chip (bare); all at these limits (roof).
"""

import argparse
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from maejax.commands.planner import compile_step
from maejax.config import Config, with_flags
from maejax.models.description import PLAIN
from maejax.models.flops import pretrain_flop
from maejax.models.mae import MaskedAutoencoder, Output
from maejax.models.patches import patchify, take_patches
from maejax.models.tokens import frozen_if_constant
from maejax.plan.compiled import abstract_inputs, compile_for
from maejax.plan.hlo import parse
from maejax.plan.hlo_cost import module_cost
from maejax.plan.roofline import step_time
from maejax.plan.target import find_target
from maejax.tasks.masks import Masks
from maejax.tasks.pretrain import model_config
from maejax.training.optim import build_optimizer
from maejax.training.state import abstract_state, make_step

SIZES = {
    "B": {"dim": 768, "layers": 12, "heads": 12},
    "L": {"dim": 1024, "layers": 24, "heads": 16},
    "H": {"dim": 1280, "layers": 32, "heads": 16, "patch_size": 14},
    "tiny": {"dim": 256, "layers": 2, "heads": 4, "dec_dim": 128, "dec_layers": 1, "dec_heads": 4, "image_size": "64",
             "patch_size": 8},
}  # fmt: skip
# Name: model, slice, images a step, further flags; None: the original-like graph.
ROWS = {
    "B original-like": ("B", "v4-8", 512, None),
    "B": ("B", "v4-8", 512, {}),
    "B scan": ("B", "v4-8", 512, {"scan_layers": True}),
    "L": ("L", "v4-8", 512, {}),
    "L scan": ("L", "v4-8", 512, {"scan_layers": True}),
    "H/14": ("H", "v4-8", 512, {"sharding": "fsdp", "scan_layers": True}),
    "B fsdp": ("B", "v4-8", 512, {"sharding": "fsdp"}),
    "H/14 v4-64": ("H", "v4-64", 4096, {"sharding": "fsdp", "scan_layers": True}),
    "H/14 v5e-64": ("H", "v5litepod-64", 4096, {"sharding": "fsdp", "scan_layers": True}),
    "H/14 v5e-64 lean": ("H", "v5litepod-64", 4096, {"sharding": "fsdp", "scan_layers": True, "grad_ckpt": True}),
    "tiny original-like": ("tiny", "v4-8", 512, None),
    "tiny": ("tiny", "v4-8", 512, {}),
    "tiny fsdp": ("tiny", "v4-8", 512, {"sharding": "fsdp"}),
}


class OriginalLike(MaskedAutoencoder):
    """The published algorithm written as its codes write it: tokens gathered, put back in order, all of them scored."""

    def __call__(self, x, order, key=None):  # noqa: D102
        encoder, dtype = self.encoder, self.compute.dtype
        tokens = encoder.tokens(x)
        cls, patches = tokens[:, :1], jnp.take_along_axis(tokens[:, 1:], order[:, : self.visible, None], axis=1)
        latent = self.dec_embed(encoder.norm(encoder.transformer(jnp.concatenate([cls, patches], axis=1))))
        masks = jnp.broadcast_to(
            self.mask_token[...].astype(dtype), (len(x), self.patches - self.visible, latent.shape[-1])
        )
        shuffled = jnp.concatenate([latent[:, 1:], masks], axis=1)
        back = jnp.argsort(order, axis=1)
        in_order = jnp.take_along_axis(shuffled, back[:, :, None], axis=1)
        tokens = jnp.concatenate([latent[:, :1], in_order], axis=1) + frozen_if_constant(self.dec_positions)
        prediction = self.predict(self.dec_norm(self.decoder(tokens)))[:, 1:]
        error = ((prediction - patchify(x, self.config.encoder.patch_size)) ** 2).mean(-1)
        hidden = (back >= self.visible).astype(jnp.float32)
        return Output((error * hidden).sum(1) / hidden.sum(1), take_patches(prediction, order[:, self.visible :]))


def original_step(config, target):
    """Compile the step of the original-like graph: float32, AdamW, data parallel."""
    model = model_config(config)

    def losses(model, batch, microstep):
        return model(model.normalize(batch.images), batch.order).loss

    def rate(step):
        return 1e-3

    mesh, optimizer = target.mesh, build_optimizer("adamw", rate, weight_decay=0.05)

    def init():
        return OriginalLike(model, PLAIN, nnx.Rngs(0))

    inputs = abstract_inputs(mesh, config.data.train_batch_size, (*config.image_shape, 3))
    step = make_step(losses, optimizer, rate, draw=Masks.of(config, model).draw)
    return compile_for(mesh, step, (abstract_state(init, optimizer, mesh), *inputs))


def measure(name: str) -> dict:
    """Compile one row and read it."""
    size, topology, batch, changes = ROWS[name]
    target = find_target(topology)
    assert target.chip is not None
    config = with_flags(Config(), **SIZES[size], train_batch_size=batch, precision="bfloat16", **(changes or {}))
    compiled = original_step(config, target) if changes is None else compile_step(config, target)
    row: dict = {"row": name, "topology": topology, "batch": batch, "compile_seconds": compiled.seconds}
    if compiled.memory is None:
        return row | {"needs": compiled.needs, "has": compiled.has}
    cost = module_cost(parse(compiled.text))
    devices, flop = len(target.devices), pretrain_flop(model_config(config))
    times = step_time(cost, target.chip, devices)
    ideal = flop * batch / devices / target.chip.peak
    gathers = [c.nbytes for c in cost.collectives if c.kind == "all-gather"]
    return row | {
        "hbm_gb": cost.nbytes / 1e9, "temp_gb": compiled.memory.temporaries / 1e9,
        "peak_gib": compiled.memory.peak / 2**30, "memory_gib": target.chip.memory / 2**30,
        "mfu": {
            "cycles": ideal / times.cycles, "mix": ideal / times.mix, "bare": ideal / (times.mix - times.in_kernels),
            "roof": ideal / times.roof,
        },
        "matmul_flop": cost.flop_by_type, "largest_gather_mb": max(gathers, default=0) / 1e6,
        "messages": {" ".join(key): value for key, value in cost.messages.items()},
        "message_ms": 1e3 * times.messages, "unknown_loops": cost.unknown_loops,
    }  # fmt: skip


def tell(row: dict, base: dict | None) -> str:
    """Say a row in a line."""
    if "hbm_gb" not in row:
        return f"{row['row']:<20} does not fit: needs {row['needs'] / 2**30:.1f} of {row['has'] / 2**30:.1f} GiB"
    mfu = "/".join(f"{100 * row['mfu'][k]:.0f}" for k in ("cycles", "mix", "bare", "roof"))
    ratio = f" ({row['hbm_gb'] / base['hbm_gb']:.2f}x)" if base and base is not row else ""
    messages = ", ".join(f"{count} {name} {size / 1e6:.0f} MB" for name, (count, size) in row["messages"].items())
    return (
        f"{row['row']:<20} HBM {row['hbm_gb']:6.1f} GB{ratio}  MFU {mfu} %  temp {row['temp_gb']:.1f} GB  "
        f"peak {row['peak_gib']:.1f} of {row['memory_gib']:.0f} GiB  [{row['compile_seconds']:.0f} s]  {messages}; "
        f"largest gather {row['largest_gather_mb']:.1f} MB"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[name for name in ROWS if not name.startswith("tiny")])
    parser.add_argument("--out", type=Path, default=Path("tpu_plan.json"))
    args = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax.config.update("jax_platforms", "cpu")
    rows = {row["row"]: row for row in json.loads(args.out.read_text())} if args.out.exists() else {}
    for name in args.only:
        rows[name] = measure(name)
        args.out.write_text(json.dumps(list(rows.values()), indent=1))
        print(tell(rows[name], rows.get(f"{ROWS[name][0]} original-like")), flush=True)


if __name__ == "__main__":
    main()
