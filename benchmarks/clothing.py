"""Pre-trained against untrained and from scratch, on real photos: the table of docs/clothing.md (`make clothing`).

python benchmarks/clothing.py ../shared/data/clothing-small.tar
"""

import argparse
import multiprocessing
import os
import sys
import tarfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from maejax.config import with_flags
from maejax.data.packing import pack
from maejax.data.sources import open_source
from maejax.evaluation.labelled import pair
from maejax.evaluation.protocols import score, untrained_like
from maejax.recipes import recipe
from maejax.tasks import classify, eval_only, pretrain
from maejax.training.memory import keep_freed_memory
from maejax.training.rundir import write_json
from maejax.weights.files import load

SPLITS = ("train", "validation", "test")
PACKED = 96  # short side in pixels: what training decodes again and again
MODEL: dict[str, Any] = {
    "image_size": "72", "patch_size": 12, "layers": 4, "dim": 128, "heads": 4, "train_loader_workers": 1,
    "valid_loader_workers": 1, "valid_batch_size": 128, "log_interval": 100, "save_interval": 1000,
}  # fmt: skip
PRETRAIN = {
    "dec_layers": 1, "dec_dim": 64, "dec_heads": 4, "norm_pix_loss": True, "train_batch_size": 128,
    "learning_rate": 4e-3,
}  # fmt: skip
# The same for all that is trained with labels; a small model on few images wants milder mixing than ImageNet's.
TUNE = {
    "train_batch_size": 64, "learning_rate": 4e-3, "auto_augment": "none", "random_erasing": 0.0, "crop_scale": 0.35,
    "mixup": 0.2, "cutmix": 0.0, "droppath": 0.1,
}  # fmt: skip
PARTIAL = {"finetune_blocks": "1", "learning_rate": 1.6e-2}  # one block alone wants a higher rate
PRETRAIN_EPOCHS, TUNE_EPOCHS = 48, 6
COST = 0.47  # of an image in pre-training, which sees a quarter of the patches, against one in fine-tuning, in CPU time
STAGES = (("mae", "scratch-long", "scratch"), ("frozen", "full", "blocks-1"))  # the longest first
KINDS = {
    "pretrained/knn": "pre-trained, frozen: 20-NN", "untrained/knn": "untrained, frozen: 20-NN",
    "pretrained/linear": "pre-trained, frozen: linear probe", "untrained/linear": "untrained, frozen: linear probe",
    "blocks-1": "pre-trained, last block fine-tuned", "full": "pre-trained, all fine-tuned",
    "scratch": "from scratch, as long as fine-tuning",
    "scratch-long": "from scratch, as long as pre-training and fine-tuning together",
}  # fmt: skip


def prepare(data: Path, out: Path) -> dict[str, str]:
    """Unpack the photos and pack them small, once; returns the shards of each split."""
    folder = data
    if data.is_file():
        folder = out / "photos"
        if not folder.exists():
            with tarfile.open(data) as tar:
                tar.extractall(out / "unpacking", filter="data")
            (out / "unpacking").rename(folder)
    found = {split: next(iter(sorted(folder.glob(f"**/{split}"))), None) for split in SPLITS}
    if missing := [split for split, path in found.items() if path is None]:
        sys.exit(f"{data} has no folder {missing[0]}; it must hold train, validation and test with a folder per class")
    for split, path in found.items():
        pack(str(path), str(out / "packed" / split), image_size=PACKED)
    return {split: f"{out}/packed/{split}/{split}-*.tar" for split in SPLITS}


def flags(out: Path, mode: str, name: str, seed: int, images: int, epochs: float, shards: dict[str, str], **more):
    """Resolve the flags of a run; a tenth of it is warm-up."""
    chosen = {**MODEL, **(PRETRAIN if mode == "pretrain" else TUNE), **more}
    steps = max(2, round(epochs * images / chosen["train_batch_size"]))
    chosen.setdefault("eval_interval", max(1, steps // 10))
    seeds = {f"{which}_seed": seed for which in ("init", "mixup", "dropout", "shuffle", "noise")}
    return with_flags(
        recipe(mode), **chosen, **seeds, output_dir=str(out), name=f"{name}-{seed}", training_steps=steps,
        warmup_steps=steps // 10, train_dataset_shards=shards["train"], valid_dataset_shards=shards["validation"],
    )  # fmt: skip


def measure(kind: str, seed: int, out: Path, shards: dict[str, str], share: float) -> dict[str, dict[str, float]]:
    """Train and evaluate one thing with one seed; returns accuracies on the test images, and seconds of training."""
    images, pretrained = len(open_source(shards["train"])), out / f"mae-{seed}"
    with (out / f"{kind}-{seed}.log").open("a") as log:
        console, start = Console(file=log, width=120), time.monotonic()
        if kind == "frozen":
            return {"scores": frozen(load(pretrained).encoder, shards, seed), "seconds": {}}
        epochs = share * (PRETRAIN_EPOCHS if kind == "mae" else TUNE_EPOCHS)
        if kind == "mae":
            run = pretrain.run(flags(out, "pretrain", kind, seed, images, epochs, shards), console)
        else:
            more: dict[str, Any] = {"lr_decay": 1.0} if "scratch" in kind else {"pretrained_ckpt": str(pretrained)}
            more |= PARTIAL if kind == "blocks-1" else {}
            epochs += COST * share * PRETRAIN_EPOCHS if kind == "scratch-long" else 0
            run = classify.run(flags(out, "finetune", kind, seed, images, epochs, shards, **more), console)
        if not run.done:
            sys.exit("stopped; the same command continues")
        seconds, scores = time.monotonic() - start, {}
        if kind != "mae":
            judged = flags(
                out, "finetune", f"{kind}-test", seed, images, epochs, shards | {"validation": shards["test"]},
                pretrained_ckpt=str(run.directory / "best"),
            )  # fmt: skip
            scores = {kind: float(eval_only.run(judged, console)["val/acc1"])}
    return {"scores": scores, "seconds": {kind: seconds}}


def frozen(encoder, shards: dict[str, str], seed: int) -> dict[str, float]:
    """Evaluate a frozen encoder, and the same encoder untrained."""
    scores = {}
    for which, judged in (("pretrained", encoder), ("untrained", untrained_like(encoder, seed))):
        data = pair(open_source(shards["train"]), open_source(shards["test"]))
        found = score(judged, data, ("knn", "linear"), batch_size=128, workers=1, seed=seed).accuracies
        scores |= {f"{which}/knn": float(found["knn_20"]), f"{which}/linear": float(found["linear"])}
    return scores


def begin(cores) -> None:
    """Pin a process to its own core: models this small gain little from a second one."""
    keep_freed_memory()  # as the command line does
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {cores.get()})


def measure_all(out: Path, shards: dict[str, str], seeds: int, share: float) -> dict[str, dict[str, list[float]]]:
    """Measure everything with every seed, a process for each core; pre-training comes first."""
    results: dict[str, dict[str, list[float]]] = {"scores": {}, "seconds": {}}
    spawn, found = multiprocessing.get_context("spawn"), cores()
    queue = spawn.Queue()
    for core in found:
        queue.put(core)
    with ProcessPoolExecutor(len(found), spawn, begin, (queue,)) as pool:
        for kinds in STAGES:
            jobs = {
                (kind, seed): pool.submit(measure, kind, seed, out, shards, share)
                for kind in kinds for seed in range(seeds)
            }  # fmt: skip
            for (kind, seed), job in jobs.items():
                for group, values in job.result().items():
                    for name, value in values.items():
                        results[group].setdefault(name, []).append(value)
                print(f"{kind}-{seed}: {job.result()}", flush=True)
                write_json(out / "results.json", results)
    return results


def cores() -> list[int]:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Format mean and spread over the seeds."""
    lines = ["| | top-1 on the test images, % | seconds |", "|---|---|---|"]
    for kind, title in KINDS.items():
        values, took = results["scores"][kind], results["seconds"].get(kind)
        spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        lines.append(f"| {title} | {np.mean(values):.1f}{spread} | {'' if took is None else f'{np.mean(took):.0f}'} |")
    return "\n".join(lines)


def main() -> None:
    """Run all seeds and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a tar or a folder with train, validation and test, a folder per class")
    parser.add_argument("--out", type=Path, default=Path("runs/clothing"))
    parser.add_argument("--docs", type=Path, default=Path("docs/clothing.md"), help="where the table goes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of all epochs, to see it work; writes no table then")
    args = parser.parse_args()
    if not args.data.exists():
        sys.exit(
            f"{args.data} is not there; name a tar or a folder with train, validation and test in it, "
            "each with a folder per class: make clothing DATA=/path/to/photos"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    shards = prepare(args.data, args.out)
    results = measure_all(args.out, shards, args.seeds, args.share)
    print(table(results))
    minutes = (time.monotonic() - start) / 60
    counts = {split: len(open_source(spec)) for split, spec in shards.items()}
    classes = len(open_source(shards["train"]).classes)
    if args.share != 1:
        return
    took, error = np.mean(results["seconds"]["mae"]), 100 * (0.25 / counts["test"]) ** 0.5
    args.docs.write_text(f"""# Photos of clothes, measured

`make clothing` pre-trains a small masked autoencoder on {counts["train"]:,} photos without labels. It compares the
encoder with the same encoder untrained, and with training from scratch for as long. {classes} classes,
{counts["train"]:,} training, {counts["validation"]:,} validation and {counts["test"]:,} test images;
{args.seeds} seeds, mean and standard deviation.

{table(results)}

Everything took {minutes:.0f} minutes on {len(cores())} cores, with a run on each; pre-training took {took:.0f} s.
Finished runs are not repeated, and their seconds are then near 0. `{args.out}` holds all runs, and every number in
`results.json`.

The model is {MODEL["layers"]} x {MODEL["dim"]} at {MODEL["image_size"]} px with patches of {MODEL["patch_size"]}. It is
pre-trained for {PRETRAIN_EPOCHS} epochs on the training images and fine-tuned for {TUNE_EPOCHS}. The longer training
from scratch takes {TUNE_EPOCHS + COST * PRETRAIN_EPOCHS:.0f} epochs, since an image costs {COST} as much in
pre-training. All training with labels has the same augmentation and, but for the last block alone, the same peak rate;
the validation images choose its checkpoint. The number of test images alone gives one accuracy near 50 % a standard
error of {error:.1f} points. Every setting is at the top of `benchmarks/clothing.py`.

## Your own photos

```bash
make clothing DATA=photos/      # a folder or a tar with train, validation and test, each with a folder per class
```

This replaces this page by one about your photos. Finished runs are kept in `runs/clothing` and not repeated: name
another folder with `.venv/bin/python benchmarks/clothing.py photos/ --out runs/photos`.
""")
    print(f"written to {args.docs}")


if __name__ == "__main__":
    main()
