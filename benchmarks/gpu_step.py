"""Speed of the training step on NVIDIA GPUs with attention by plain products ("xla") and by cuDNN ("cudnn").

    python benchmarks/gpu_step.py [--model vit-b|vit-l] [--batch-size 128] [--rounds 5] [--steps 10]

Uses all GPUs that JAX finds, with `--batch-size` images on each. First, one step from the same weights must give the
same loss in both forms, within half precision. Then both forms step in turn. Prints the card, the images per second of
each form, the ratio with its range, and the memory.
"""

import argparse
import statistics
import sys
import time

import jax
from step import WORKLOADS, jax_step

FORMS = ("xla", "cudnn")
MODELS = {"vit-b": WORKLOADS["vit-b"][0], "vit-l": WORKLOADS["vit-b"][0] | {"dim": 1024, "layers": 24, "heads": 16}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="vit-b")
    parser.add_argument("--batch-size", type=int, default=128, help="images on each GPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps that a form takes in its turn")
    args = parser.parse_args()
    if jax.default_backend() != "gpu":
        print(
            f"no GPU: JAX sees {jax.default_backend()} only; .venv/bin/pip install -e '.[cuda]' lets it use one",
            file=sys.stderr,
        )
        return 2
    batch = args.batch_size * jax.device_count()
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, JAX {jax.__version__}, {args.model}, batch {batch}")
    steps, firsts = {}, {}
    for form in FORMS:
        start = time.perf_counter()
        steps[form] = jax_step(MODELS[args.model], batch, "bfloat16", form)
        firsts[form] = steps[form]()
        memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
        print(f"{form}: first loss {firsts[form]:.5f}, {time.perf_counter() - start:.0f} s to compile, "
              f"peak {memory / 2**30:.2f} GiB so far")  # fmt: skip
    if abs(firsts["cudnn"] / firsts["xla"] - 1) > 1e-3:
        print("the losses differ: cuDNN's attention is not to be used here", file=sys.stderr)
        return 1
    seconds = {form: [] for form in FORMS}
    for number in range(args.rounds):
        for form in FORMS[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            losses = [steps[form]() for _ in range(args.steps)]
            seconds[form].append((time.perf_counter() - start) / args.steps)
            print(f"round {number + 1} {form}: {batch / seconds[form][-1]:.0f} images/s, loss {losses[-1]:.4f}")
    ratios = [xla / cudnn for xla, cudnn in zip(seconds["xla"], seconds["cudnn"], strict=True)]
    print(
        f"cudnn over xla, speed of the step: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
