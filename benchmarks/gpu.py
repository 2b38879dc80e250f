"""All that is to be measured on an NVIDIA GPU, in one call of less than ten minutes.

    .venv/bin/pip install -e '.[cuda]' && .venv/bin/pip install torch
    python benchmarks/gpu.py [--out gpu] [--seconds 540] [--tiny]

1. `maejax doctor`: the card, and its forms of attention beside plain products.
2. A step of ViT-S, B and L in bfloat16 on one card, in turn: with cuDNN's attention, with plain products, and PyTorch's
   (compiled, with its fused attention and fused AdamW). The part of the peak and the memory, beside what
   `maejax plan --topology gpu` says.
3. Training of ViT-S from drawn JPEGs at 224 px, which the loader has to feed.
4. Training of a tiny ViT from an array of 50,000 images of 32 px for two minutes.

Writes OUT/gpu.json after each part, so that a call that is ended leaves what it has, and OUT/gpu.md. Images of (3) and
(4) are noise: nothing is learned. `--tiny` has tiny sizes and runs on CPU too. A part that fails is named with its
error.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from step import WORKLOADS, jax_step

VIT = WORKLOADS["vit-b"][0]
SIZES = {  # and images a step
    "ViT-S": (VIT | {"dim": 384, "heads": 6}, 256),
    "ViT-B": (VIT, 128),
    "ViT-L": (VIT | {"dim": 1024, "layers": 24, "heads": 16}, 64),
}
TINY = {"image_size": (32, 32), "patch_size": 8, "dim": 64, "layers": 1, "heads": 2}
TINY_SIZES = {"tiny": (TINY | {"dec_dim": 32, "dec_layers": 1, "dec_heads": 2}, 4)}
SIDES = ("cudnn", "xla", "torch")
MAEJAX = [sys.executable, "-m", "maejax"]


def serve(name: str, side: str, tiny: bool) -> None:
    """Be one side: for every number on standard input take that many steps; print seconds, loss and peak memory."""
    sizes, batch = (TINY_SIZES if tiny else SIZES)[name]
    if side == "torch":
        import torch
        from step_peer import training_step

        device = "cuda" if torch.cuda.is_available() else "cpu"
        step = training_step(sizes, batch, "bfloat16", device, compiled=device == "cuda")
    else:
        import jax

        step = jax_step(sizes, batch, "bfloat16", side)
    for line in sys.stdin:
        start = time.perf_counter()
        losses = [step() for _ in range(int(line))]  # each waits for its loss
        took = time.perf_counter() - start
        if side == "torch":
            peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        else:
            peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
        print(json.dumps([took, losses[-1], peak]), flush=True)


def run(words: list[str], seconds: float) -> str:
    """Run a command of maejax and return what it prints; raises CalledProcessError or TimeoutExpired."""
    return subprocess.run([*MAEJAX, *words], check=True, capture_output=True, text=True, timeout=seconds).stdout


def measure_steps(name: str, args, left) -> dict:
    """Step on all sides in turn; return images/s of each, ratios to PyTorch of the same round, and peak memory."""
    _, batch = (TINY_SIZES if args.tiny else SIZES)[name]
    # Two processes of JAX and one of PyTorch share the card.
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, __file__, *(["--tiny"] if args.tiny else []), "--serve", name]
    sides, found = {}, {"batch": batch, "failed": {}}

    def turn(side, steps):
        sides[side].stdin.write(f"{steps}\n")
        sides[side].stdin.flush()
        return json.loads(sides[side].stdout.readline() or "null")

    rounds = []
    try:
        for side in SIDES:
            sides[side] = subprocess.Popen(
                [*command, side], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            if turn(side, 3) is None:
                found["failed"][side] = "it ended; its message is above"
                sides.pop(side).wait()
        for number in range(args.rounds):
            if number and left() < 10:
                break
            order = list(sides)[number % max(1, len(sides)) :] + list(sides)[: number % max(1, len(sides))]
            rounds.append({side: turn(side, args.steps) for side in order})
    finally:
        for process in sides.values():
            process.kill()
            process.wait()
    for side in sides:
        seconds = [took[side][0] / args.steps for took in rounds]
        found[side] = {
            "images_per_second": batch / statistics.median(seconds),
            "peak_memory": rounds[-1][side][2],
            "loss": rounds[-1][side][1],
        }
        if "torch" in sides:
            ratios = [took["torch"][0] / took[side][0] for took in rounds]
            found[side]["over_torch"] = [statistics.median(ratios), min(ratios), max(ratios)]
    return found


def plan(name: str, args, left) -> dict:
    """Return what `maejax plan` says of the step on the devices that are here."""
    sizes, batch = (TINY_SIZES if args.tiny else SIZES)[name]
    given = {**sizes, "image_size": sizes["image_size"][0], "train_batch_size": batch, "precision": "bfloat16"}
    words = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    topology = "cpu" if args.tiny else "gpu"
    with tempfile.TemporaryDirectory() as folder:
        printed = run(["plan", "--topology", topology, "--out", folder, "--json", *words], left())
    facts = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    kept = ("device_kind", "memory", "step_seconds", "mfu", "hbm_bytes", "model_flop", "batch_size")
    return {key: facts.get(key) for key in kept}


def train(args, left, seconds: float, source: str, sizes: dict, batch: int) -> dict:
    """Train for some seconds; return the median rate, the wait for input and the peak memory of its log."""
    words = [word for key, value in sizes.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        words += ["--name", "speed", "--output-dir", folder, "--train-dataset-shards", source]
        words += ["--train-batch-size", str(batch), "--warmup-steps", "1", "--training-steps", "1000000"]
        words += ["--log-interval", "2" if args.tiny else "20", "--save-interval", "1000000"]
        errors = Path(folder, "errors")
        with errors.open("w") as written:
            process = subprocess.Popen([*MAEJAX, "train", *words], stdout=subprocess.DEVNULL, stderr=written)
        log, end = Path(folder, "speed", "metrics.jsonl"), time.monotonic() + min(seconds, left())
        while process.poll() is None and time.monotonic() < end:
            time.sleep(1)
            if args.tiny and log.exists() and len(log.read_text().splitlines()) > 3:
                break
        process.terminate()  # it saves and ends
        process.wait(timeout=120)
        message = errors.read_text().strip()
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    rates = [line["train/images_per_second"] for line in lines if "train/images_per_second" in line][1:]
    if not rates:
        raise RuntimeError(message.splitlines()[-1] if message else "it logged no rate")
    waits = [line["train/input_wait"] for line in lines if "train/input_wait" in line][1:]
    return {
        "images_per_second": statistics.median(rates),
        "input_wait": statistics.median(waits),
        "readings": len(rates),
    }


def draw(folder: Path, tiny: bool) -> tuple[str, str]:
    """Write JPEGs of noise, and an array of small images; return their addresses."""
    import numpy as np
    from PIL import Image

    rng, photos = np.random.default_rng(0), folder / "photos"
    photos.mkdir()
    size = (40, 48) if tiny else (375, 500)
    for i in range(8 if tiny else 512):
        coarse = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
        Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(photos / f"{i}.jpg", quality=90)
    small = folder / "small.npz"
    np.savez(small, images=rng.integers(0, 256, (16 if tiny else 50_000, 32, 32, 3), np.uint8))
    return str(photos), str(small)


def table(results: dict) -> str:
    """Return the results as Markdown."""
    lines = [f"{results.get('card', 'no card')}, JAX {results['jax']}", ""]
    lines += [
        "| step | images/s | over PyTorch | of peak | peak memory | plan: of peak | plan: memory |",
        "|---" * 7 + "|",
    ]
    for name, found in results.get("steps", {}).items():
        said = found.get("plan", {})
        image_flop = said["model_flop"] / said["batch_size"] if said else 0
        for side in filter(found.__contains__, SIDES):
            each, peak = found[side], results.get("peak")
            over = "{:.2f} ({:.2f} to {:.2f})".format(*each["over_torch"]) if "over_torch" in each else ""
            of_peak = f"{each['images_per_second'] * image_flop / peak:.0%}" if peak and image_flop else ""
            planned = ["", ""]
            if side == "cudnn" and said:
                mfu, memory = said["mfu"], said["memory"]
                planned = [f"{mfu['mix']:.0%} to {mfu['roof']:.0%}" if mfu else "", f"{memory['peak'] / 2**30:.2f} GiB"]
            rate, used = f"{each['images_per_second']:,.0f}", f"{each['peak_memory'] / 2**30:.2f} GiB"
            lines.append(f"| {name} {side} | {rate} | {over} | {of_peak} | {used} | {planned[0]} | {planned[1]} |")
    lines += ["", "| training | images/s | waits for input |", "|---|---|---|"]
    for name in ("photos", "arrays"):
        if found := results.get(name):
            lines.append(f"| {name} | {found['images_per_second']:,.0f} | {found['input_wait']:.0%} |")
    lines += [
        "",
        *(f"- doctor: {check['status']} {check['name']}: {check['found']}" for check in results.get("doctor", [])),
    ]
    lines += [f"- {part} failed: {why}" for part, why in results["failed"].items()]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--seconds", type=float, default=540, help="what all parts may take together")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps that a side takes in its turn")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on any device")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(*args.serve, args.tiny)
    import jax

    args.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + args.seconds
    results: dict = {"jax": jax.__version__, "failed": {}, "steps": {}}

    def left() -> float:
        return max(1.0, end - time.monotonic())

    def part(where: dict, key: str, measure) -> None:
        try:
            where[key] = measure()
        except Exception as error:
            results["failed"][key] = f"{type(error).__name__}: {error}"[:300]
        (args.out / "gpu.json").write_text(json.dumps(results, indent=2) + "\n")
        (args.out / "gpu.md").write_text(table(results))
        print(f"{key}: {time.monotonic() - end + args.seconds:.0f} s", flush=True)

    part(results, "card", lambda: card() or "no card")
    part(results, "peak", peak_of_card)
    doctor = [*MAEJAX, "doctor", "--output-dir", str(args.out / "runs"), "--json"]
    part(
        results, "doctor", lambda: checks(subprocess.run(doctor, capture_output=True, text=True, timeout=left()).stdout)
    )
    for name in TINY_SIZES if args.tiny else SIZES:
        part(results["steps"], name, lambda name=name: measure_steps(name, args, left))
        if name in results["steps"]:
            part(results["steps"][name], "plan", lambda name=name: plan(name, args, left))
    with tempfile.TemporaryDirectory() as folder:
        photos, small = draw(Path(folder), args.tiny)
        tiny = {**TINY, "image_size": 32}
        small_vit = tiny if args.tiny else {"image_size": 32, "patch_size": 4, "dim": 192, "layers": 12, "heads": 3}
        photo_vit = tiny if args.tiny else {"image_size": 224, "dim": 384, "layers": 12, "heads": 6}
        part(results, "photos", lambda: train(args, left, 60, photos, photo_vit, 4 if args.tiny else 256))
        part(results, "arrays", lambda: train(args, left, 120, small, small_vit, 4 if args.tiny else 1024))
    print(table(results))
    return 0 if not results["failed"] else 1


def card() -> str:
    """Return the name and driver of the cards, empty if there is none."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def peak_of_card() -> float | None:
    """Return the published FLOP/s of the card in bfloat16; None if they are not known."""
    from maejax.training.chips import CHIPS

    return next((chip.peak for chip in CHIPS if card().startswith(chip.kind)), None)


def checks(printed: str) -> list[dict]:
    """Return the checks that `maejax doctor --json` printed."""
    return json.loads(printed[printed.index("{") : printed.rindex("}") + 1])["checks"]


if __name__ == "__main__":
    sys.exit(main())
