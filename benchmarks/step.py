"""Speed of a training step on CPU over the authors' PyTorch step (`step_peer.py`), as ratios of one run.

    python benchmarks/step.py [--workload vit-b|vit-b-quarter|demo|tune-vit-b] [--rounds 5] [--steps 1] [--cores 1]
        [--sides ...]

Every side is a process with its own model. They step in turn, in an order that changes every round, so that other work
on the machine slows them alike. Prints each side's ratios to PyTorch in float32, of wall and of CPU time: median and
range over the rounds. On a busy machine only CPU time is meaningful. Needs PyTorch: `.venv/bin/pip install torch`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

WORKLOADS = {
    # ViT-B/16 as in the paper; and the sizes of a demo on small pictures.
    "vit-b": (
        {"image_size": (224, 224), "patch_size": 16, "dim": 768, "layers": 12, "heads": 12}
        | {"dec_dim": 512, "dec_layers": 8, "dec_heads": 16},
        8,
    ),
    # A quarter of its layers: what a busy machine can still time.
    "vit-b-quarter": (
        {"image_size": (224, 224), "patch_size": 16, "dim": 768, "layers": 3, "heads": 12}
        | {"dec_dim": 512, "dec_layers": 2, "dec_heads": 16},
        8,
    ),
    "demo": (
        {"image_size": (32, 32), "patch_size": 4, "dim": 192, "layers": 6, "heads": 3}
        | {"dec_dim": 96, "dec_layers": 2, "dec_heads": 3},
        256,
    ),
    # Fine-tuning with all its recipe does to a batch on the device, erasing, mixup, cutmix, drop path and layer decay.
    "tune-vit-b": (
        {"image_size": (224, 224), "patch_size": 16, "dim": 768, "layers": 12, "heads": 12, "labels": 1000},
        8,
    ),
}
SIDES = ("torch-float32", "torch-bfloat16", "jax-float32", "jax-bfloat16")
PEER = SIDES[0]


def jax_step(sizes, batch, dtype, attention="auto"):
    """Make a function that takes one step as `maejax train` does, on the same random batch, and returns the loss."""
    import jax
    import numpy as np

    from maejax.data.pipeline import Batch
    from maejax.models import masking
    from maejax.models.build import initial_model
    from maejax.models.description import Compute
    from maejax.models.stored import from_json
    from maejax.tasks.masks import Masked
    from maejax.training.mesh import make_mesh, put_rows
    from maejax.training.optim import build_optimizer
    from maejax.training.state import create_state, make_step

    patches = (sizes["image_size"][0] // sizes["patch_size"]) ** 2
    key = jax.random.key(0)

    def losses(model, batch, microstep):
        return model(model.normalize(batch.images), batch.order).loss

    def draw(batch, step):
        order = masking.random(jax.random.fold_in(key, step), len(batch.images), patches)
        return Masked(batch.images, order, batch.valid, batch.valid)

    mesh = make_mesh()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, *sizes["image_size"], 3), np.uint8)
    with jax.set_mesh(mesh):
        optimizer = build_optimizer("adamw", lambda step: 1e-4, weight_decay=0.05, b1=0.9, b2=0.95)
        config, compute = from_json(sizes), Compute(dtype=dtype, attention=attention)
        state = create_state(lambda: initial_model(config, compute), optimizer, mesh)
        rows = put_rows(Batch(images, None, np.ones(batch, bool), None), mesh)
        step = make_step(losses, optimizer, lambda step: 1e-4, draw=draw)
    return stepping(step, state, rows, mesh)


def jax_tune_step(sizes, batch, dtype):
    """Make a function that takes one step as `maejax train --mode finetune` does, on the same random batch."""
    import jax
    import numpy as np

    from maejax.config import with_flags
    from maejax.data.pipeline import Batch
    from maejax.models.description import Compute
    from maejax.recipes import recipe
    from maejax.tasks import classify
    from maejax.training.mesh import make_mesh, put_rows
    from maejax.training.state import create_state

    given = {**sizes, "image_size": str(sizes["image_size"][0]), "train_batch_size": batch, "precision": dtype}
    config, mesh, rng = with_flags(recipe("finetune"), **given), make_mesh(), np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, *sizes["image_size"], 3), np.uint8)
    labels = rng.integers(0, sizes["labels"], batch, np.int32)
    with jax.set_mesh(mesh):
        model = classify.model_config(config, sizes["labels"])
        init, optimizer, step = classify.build_step(config, model, Compute(dtype=dtype))
        state = create_state(init, optimizer, mesh)
        rows = put_rows(Batch(images, labels, np.ones(batch, bool), None), mesh)
    return stepping(step, state, rows, mesh)


def stepping(step, state, rows, mesh):
    """Make a function that takes one step from where the last one ended, and returns the loss."""
    import jax

    held = [state]

    def one():
        with jax.set_mesh(mesh):
            held[0], metrics, _ = step(held[0], rows)
        return float(metrics["train/loss"])

    return one


def serve(workload, side, cores):
    """Be one side: for every line on standard input, a number, take that many steps and print what they took."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    sizes, batch = WORKLOADS[workload]
    framework, dtype = side.split("-")
    if framework == "torch":
        import torch
        from step_peer import training_step, tuning_step

        torch.set_num_threads(cores)
        step = (tuning_step if "labels" in sizes else training_step)(sizes, batch, dtype)
    else:
        from maejax.training.memory import keep_freed_memory

        keep_freed_memory()
        os.environ["JAX_PLATFORMS"] = "cpu"
        step = (jax_tune_step if "labels" in sizes else jax_step)(sizes, batch, dtype)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        losses = [step() for _ in range(int(line))]
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu, losses[-1]]), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="demo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps that a side takes in its turn")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--serve", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.workload, args.serve, args.cores)
    sides = list(dict.fromkeys([PEER, *args.sides]))
    command = [sys.executable, __file__, "--workload", args.workload, "--cores", str(args.cores), "--serve"]
    processes = {}

    def turn(side, steps):
        processes[side].stdin.write(f"{steps}\n")
        processes[side].stdin.flush()
        line = processes[side].stdout.readline()
        if not line:
            raise SystemExit(f"{side} failed")
        return json.loads(line)

    for side in sides:
        processes[side] = subprocess.Popen([*command, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        first = turn(side, 2)  # compiles, and meets its memory, before the next one starts
        print(f"{side}: ready, two first steps {first[0]:.1f} s, loss {first[2]:.4f}", flush=True)
    rounds = []
    for number in range(args.rounds):
        shift = number % len(sides)
        took = {side: turn(side, args.steps)[:2] for side in sides[shift:] + sides[:shift]}
        rounds.append(took)
        each = (f"{side} {' / '.join(f'{t / args.steps:.2f}' for t in took[side])}" for side in sides)
        print(f"round {number + 1}, s a step, wall / CPU: {', '.join(each)}; load {os.getloadavg()[0]:.1f}", flush=True)
    for side in sides:
        for kind, name in enumerate(("wall", "CPU")):
            ratios = [took[PEER][kind] / took[side][kind] for took in rounds]
            said = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{args.workload}, {args.cores} core(s), {side} over {PEER}, {name}: {said}")
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return None


if __name__ == "__main__":
    main()
