"""The paper's ablations in miniature, on photos: the table and figure of docs/ablations.md (`make ablations`).

python benchmarks/ablations.py ../shared/data/clothing-by-sender.tar --seeds 0 1 2

Each result is a JSON file in benchmarks/results/ablations, written as it comes. The same command goes on where it was
stopped, on another machine too: there the base is trained again where others start from it.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from clothing import PARTIAL, TUNE_EPOCHS, begin, cores, flags, prepare
from rich.console import Console

from maejax.data.sources import open_source
from maejax.evaluation.labelled import pair
from maejax.evaluation.protocols import score, untrained_like
from maejax.tasks import classify, eval_only, pretrain
from maejax.training.log import read_metrics
from maejax.training.rundir import write_json
from maejax.weights.files import load

EPOCHS = 20
RESULTS, FIGURE = Path(__file__).parent / "results/ablations", Path(__file__).parents[1] / "docs/ablations.png"


class Row(NamedTuple):
    """One setting: its table, its title, the flags that differ from the base, and the paper's accuracy in percent.

    With `tune` the base's encoder is fine-tuned with those flags. `teacher` gives the base's encoder as target.
    """

    table: str
    title: str
    flags: dict[str, Any]
    paper: float | None = None  # linear probing of ViT-L, 800 epochs; Figure 9: fine-tuning
    tune: bool = False
    teacher: bool = False


ROWS = {
    "base": Row("", "the base", {}, 73.5),
    "untrained": Row("", "the base, untrained", {"training_steps": 0}),
    "ratio-25": Row("Figure 5, mask ratio", "25 %", {"image_mask_ratio": 0.25}),
    "ratio-50": Row("Figure 5, mask ratio", "50 %", {"image_mask_ratio": 0.5}, 69.9),
    "ratio-60": Row("Figure 5, mask ratio", "60 %", {"image_mask_ratio": 0.6}, 71.8),
    "ratio-85": Row("Figure 5, mask ratio", "85 %", {"image_mask_ratio": 0.85}),
    "ratio-90": Row("Figure 5, mask ratio", "90 %", {"image_mask_ratio": 0.9}, 66.1),
    "mask-block-50": Row("Table 1f, masks", "block, 50 %", {"mask": "block", "image_mask_ratio": 0.5}, 72.3),
    "mask-block": Row("Table 1f, masks", "block, 75 %", {"mask": "block"}, 63.9),
    "mask-grid": Row("Table 1f, masks", "grid, 75 %", {"mask": "grid"}, 66.0),
    "mask-noise": Row("Table 1f, masks", "noise, 75 %", {"mask": "noise"}),
    "mask-range": Row("Table 1f, masks", "random, 60 to 90 %", {"image_mask_ratio": (0.6, 0.9)}),
    "depth-2": Row("Table 1a, decoder blocks", "2", {"dec_layers": 2}, 70.0),
    "depth-4": Row("Table 1a, decoder blocks", "4", {"dec_layers": 4}, 71.9),
    "width-32": Row("Table 1b, decoder width", "32, a quarter of the encoder's", {"dec_dim": 32}, 71.3),
    "width-128": Row("Table 1b, decoder width", "128, the encoder's", {"dec_dim": 128}, 73.1),
    "mask-tokens": Row("Table 1c, mask tokens", "in the encoder", {"encoder_mask_tokens": True}, 59.6),
    "pixels": Row("Table 1d, target", "pixels, not normalised", {"norm_pix_loss": False}, 73.5),
    "pca": Row("Table 1d, target", "96 principal components", {"target": "pca", "norm_pix_loss": False}, 72.3),
    "loss-all": Row("Table 1d, target", "loss on visible patches too", {"loss_on": "all"}),
    "ema": Row("Table 1d, target", "running average", {"target": "ema", "norm_pix_loss": False}),
    "teacher": Row("Table 1d, target", "the base's features", {"norm_pix_loss": False}, teacher=True),
    "crop-none": Row("Table 1e, augmentation", "none", {"random_crop": "none", "flip": "none"}, 65.7),
    "crop-fixed": Row("Table 1e, augmentation", "crops of a fixed size", {"random_crop": "src"}, 73.1),
    "jitter": Row("Table 1e, augmentation", "colour jitter of .4 too", {"color_jitter": 0.4}, 71.9),
    "cross-1": Row("cross-attention decoder", "predicts all hidden patches", {"decoder": "cross"}),
    "cross-50": Row("cross-attention decoder", "half of them", {"decoder": "cross", "predict_share": 0.5}),
    "cross-33": Row("cross-attention decoder", "a third of them", {"decoder": "cross", "predict_share": 0.33}),
    "muon": Row("optimizer", "Muon, the same rate", {"optimizer": "muon"}),
    "blocks-1": Row("Figure 9, blocks tuned", "1 of 4", PARTIAL, 81.0, tune=True),
    "blocks-2": Row("Figure 9, blocks tuned", "2 of 4", {"finetune_blocks": "2"}, 84.6, tune=True),
    "blocks-4": Row("Figure 9, blocks tuned", "all 4", {}, 84.9, tune=True),
}


class Claim(NamedTuple):
    """An order in the paper's linear probing: `better` is ahead of `worse`."""

    better: str
    worse: str
    said: str


CLAIMS = (
    Claim("base", "ratio-25", "75 % hidden beats 25 % (Figure 5: 20 and 30 %)"),
    Claim("base", "ratio-50", "75 % hidden beats 50 % (Figure 5)"),
    Claim("base", "ratio-90", "75 % hidden beats 90 % (Figure 5)"),
    Claim("base", "mask-block-50", "random masks beat blocks of 50 % (Table 1f)"),
    Claim("base", "mask-block", "random masks beat blocks of 75 % (Table 1f)"),
    Claim("base", "mask-grid", "random masks beat a grid (Table 1f)"),
    Claim("depth-2", "base", "2 decoder blocks beat 1 (Table 1a)"),
    Claim("depth-4", "base", "4 decoder blocks beat 1 (Table 1a)"),
    Claim("base", "width-32", "a decoder of half the width beats a quarter (Table 1b)"),
    Claim("base", "mask-tokens", "an encoder without mask tokens is better (Table 1c)"),
    Claim("base", "pixels", "normalised pixels beat pixels (Table 1d)"),
    Claim("pixels", "pca", "pixels beat principal components (Table 1d)"),
    Claim("base", "crop-none", "random crops beat none (Table 1e)"),
    Claim("base", "jitter", "colour jitter does harm (Table 1e)"),
    Claim("blocks-1", "base", "one block tuned beats a linear probe (Figure 9)"),
    Claim("blocks-4", "blocks-1", "all blocks tuned beat one (Figure 9)"),
)


def measure(name: str, seed: int, out: Path, results: Path, shards: dict[str, str], share: float) -> dict[str, Any]:
    """Train and evaluate one row with one seed, and write its JSON; returns what it holds."""
    row, start = ROWS[name], time.process_time()
    with (out / "runs" / f"{name}-{seed}.log").open("a") as log:
        judge = tuned if row.tune else frozen
        found = judge(row, name, seed, out, shards, share, Console(file=log, width=120))
    result = {"row": name, "seed": seed, "share": share, "flags": row.flags, **found}
    result["cpu_seconds"] = round(time.process_time() - start, 1)
    write_json(results / f"{name}-{seed}.json", result)
    return result


def frozen(
    row: Row, name: str, seed: int, out: Path, shards: dict[str, str], share: float, console: Console
) -> dict[str, Any]:
    """Pre-train, then evaluate the frozen encoder: 20-NN and linear probe on the test photos, in percent."""
    images, loss = len(open_source(shards["train"])), None
    if name == "untrained":
        encoder = untrained_like(load(out / "runs" / f"base-{seed}").encoder, seed)
    else:
        more = {"eval_interval": 0, **row.flags}
        if row.teacher:
            more["target"] = str(out / "runs" / f"base-{seed}")
        config = flags(out / "runs", "pretrain", name, seed, images, share * EPOCHS, shards, **more)
        run = pretrain.run(config, console)
        if not run.done:
            sys.exit("stopped; the same command continues")
        encoder, loss = run.model.encoder, read_metrics(run.directory / "metrics.jsonl", "val/loss")[-1][1]
    splits = pair(open_source(shards["train"]), open_source(shards["test"]))
    found = score(encoder, splits, ("knn", "linear"), batch_size=128, workers=1, seed=seed).accuracies
    return {"knn": found["knn_20"], "linear": found["linear"], "loss": loss}


def tuned(
    row: Row, name: str, seed: int, out: Path, shards: dict[str, str], share: float, console: Console
) -> dict[str, Any]:
    """Fine-tune the base's encoder; the validation photos choose the checkpoint, the test photos judge it."""
    images = len(open_source(shards["train"]))
    common = (out / "runs", "finetune", name, seed, images, share * TUNE_EPOCHS)
    base = str(out / "runs" / f"base-{seed}")
    run = classify.run(flags(*common, shards, pretrained_ckpt=base, **row.flags), console)
    if not run.done:
        sys.exit("stopped; the same command continues")
    test = shards | {"validation": shards["test"]}
    judged = flags(*common, test, pretrained_ckpt=str(run.directory / "best"))
    return {"finetuned": round(float(eval_only.run(judged, console)["val/acc1"]), 2)}


def missing(
    names: Iterable[str], seeds: Iterable[int], out: Path, results: Path, share: float
) -> list[tuple[str, int]]:
    """List the rows and seeds that have no result of the same flags and share yet, a seed after the other.

    The base is among them too where others start from its run and the run is not in `out`.
    """
    jobs = []
    for seed in seeds:
        wanted = [name for name in names if not is_measured(name, seed, results, share)]
        starts = any(ROWS[name].tune or ROWS[name].teacher or name == "untrained" for name in wanted)
        if starts and "base" not in wanted and not (out / "runs" / f"base-{seed}" / "config.json").exists():
            wanted = ["base", *wanted]
        jobs += [(name, seed) for name in wanted]
    return jobs


def is_measured(name: str, seed: int, results: Path, share: float) -> bool:
    """Return whether a row has a result of the same flags and share."""
    path = results / f"{name}-{seed}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return (found.get("flags"), found.get("share")) == (json.loads(json.dumps(ROWS[name].flags)), share)


def measure_missing(
    jobs: list[tuple[str, int]], out: Path, results: Path, shards: dict[str, str], share: float
) -> None:
    """Measure jobs, one process for each core; the base comes first, for others start from it."""
    spawn, found = multiprocessing.get_context("spawn"), cores()
    queue = spawn.Queue()
    for core in found:
        queue.put(core)
    with ProcessPoolExecutor(len(found), spawn, begin, (queue,)) as pool:
        for stage in ([job for job in jobs if job[0] == "base"], [job for job in jobs if job[0] != "base"]):
            running = {pool.submit(measure, *job, out, results, shards, share): job for job in stage}
            for done in as_completed(running):
                print(f"{time.strftime('%H:%M:%S')} {done.result()}", flush=True)


Scores = dict[str, dict[int, dict[str, Any]]]  # by row and seed


def read_results(results: Path, share: float) -> Scores:
    """Read all results of a share of the epochs."""
    found: Scores = {}
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text())
        if result["row"] in ROWS and result["share"] == share:
            found.setdefault(result["row"], {})[result["seed"]] = result
    return found


def table(found: Scores) -> str:
    """Format mean and deviation over the seeds, and the paper's number, a line for each row."""
    lines = ["| | | seeds | 20-NN | linear | fine-tuned | paper |", "|---|---|---|---|---|---|---|"]
    for name, row in ROWS.items():
        results = list(found.get(name, {}).values())
        cells = [row.table or "**base**", row.title, str(len(results) or "")]
        for measure in ("knn", "linear", "finetuned"):
            values = [result[measure] for result in results if measure in result]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}" if values else "")
        lines.append(f"| {' | '.join([*cells, '' if row.paper is None else f'{row.paper:.1f}'])} |")
    return "\n".join(lines)


def verdicts(found: Scores) -> str:
    """Say of each of the paper's orders whether it is seen: the mean difference is beyond two standard errors."""
    lines = ["| the paper's order | difference here, points | verdict |", "|---|---|---|"]
    for claim in CLAIMS:
        one, other = (found.get(name, {}) for name in claim[:2])
        score = ("finetuned", "linear")
        pairs = [[next(r[s] for s in score if s in r) for r in (one[seed], other[seed])] for seed in one.keys() & other]
        if len(pairs) < 2:
            lines.append(f"| {claim.said} | | not measured |")
            continue
        apart = np.subtract(*np.transpose(pairs))
        mean, error = apart.mean(), apart.std(ddof=1) / len(apart) ** 0.5
        verdict = "not told apart" if abs(mean) <= 2 * error else "seen" if mean > 0 else "the other way round"
        lines.append(f"| {claim.said} | {mean:+.1f} ± {error:.1f} | {verdict} |")
    return "\n".join(lines)


def draw(found: Scores, path: Path) -> None:
    """Draw the linear accuracy of every row that has one: a dot for each seed, a bar at their mean."""
    from matplotlib import pyplot

    rows = [name for name in ROWS if any("linear" in result for result in found.get(name, {}).values())]
    figure, axes = pyplot.subplots(figsize=(8, 0.3 * len(rows) + 1), layout="constrained")
    base = np.mean([result["linear"] for result in found["base"].values()])
    axes.axvline(base, color="#1f6feb", linewidth=1)
    for place, name in enumerate(reversed(rows)):
        values = [result["linear"] for result in found[name].values()]
        axes.plot(values, [place] * len(values), "o", color="#999999", markersize=4)
        axes.plot([np.mean(values)], [place], "|", color="black", markersize=12, markeredgewidth=2)
    titles = [f"{ROWS[name].table.partition(', ')[2] or ROWS[name].table}: {ROWS[name].title}" for name in rows]
    axes.set_yticks(range(len(rows)), [title.removeprefix(": ") for title in reversed(titles)])
    axes.set_xlabel("linear probe on the test photos, %")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a tar or a folder with train, validation and test, a folder per class")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help=" ".join(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--report", action="store_true", help="measure nothing; print the tables of what is there")
    parser.add_argument("--share", type=float, default=1.0, help="of all epochs, to see it work")
    given = parser.parse_args()
    if given.report:
        report(read_results(given.results, given.share))
        return
    if not given.data.exists():
        sys.exit(f"{given.data} is not there; name a tar or a folder with train, validation and test in it")
    for folder in (given.out / "runs", given.results):
        folder.mkdir(parents=True, exist_ok=True)
    shards = prepare(given.data, given.out)
    jobs = missing(given.rows, given.seeds, given.out, given.results, given.share)
    print(f"{len(given.rows)} rows, {len(given.seeds)} seeds: {len(jobs)} to measure", flush=True)
    measure_missing(jobs, given.out, given.results, shards, given.share)
    report(read_results(given.results, given.share))


def report(found: Scores) -> None:
    """Print the tables, and draw the figure of the page where matplotlib is there."""
    print(f"{table(found)}\n\n{verdicts(found)}")
    with suppress(ImportError):
        draw(found, FIGURE)


if __name__ == "__main__":
    main()
