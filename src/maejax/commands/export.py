"""What serves an encoder elsewhere: a folder for the Hugging Face hub, or one file of StableHLO (`maejax export`)."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from maejax.config import flags, recipe
from maejax.errors import InputError, WeightsError, install
from maejax.evaluate import stablehlo
from maejax.training.log import read_metrics
from maejax.training.rundir import read_config
from maejax.weights import files, hub, run_directory
from maejax.weights.addresses import local
from maejax.weights.weights import Weights, model_of

TOLERANCE = 1e-5  # of features that are run back, relative to the largest
DATA_FLAGS = ("train_dataset_shards", "valid_dataset_shards")
UNTOLD = {"output_dir", "project", "hostname", "name", "cache_dir", "resume", "wandb", "tensorboard", "profile"}


def export(ckpt: str, to: str, out: str, *, name: str, report: str, pool: str) -> dict[str, Any]:
    """Write an export and return what was written, as JSON can hold it.

    Raises:
        InputError: the checkpoint or the report cannot be read, or a file run back does not give the model's features.

    """
    scores = read_report(report)
    if to == "stablehlo":
        check_installed()
    here, said = local(ckpt)
    weights = files.read(here)
    stem = run_directory.locate(here)[0].absolute().name if weights.layout == "maejax" and here.is_dir() else here.stem
    notices = [said] if said else []
    if to == "stablehlo":
        target = Path(out or f"{stem}.stablehlo").expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        notices.append(write_and_check(weights, target, None if pool == "none" else pool))
        written = [target.name]
    else:
        target = Path(out or f"{stem}-hub").expanduser()
        told = tell_run(here) if weights.layout == "maejax" and here.is_dir() else {"data": {}, "recipe": {}}
        numbers = told.pop("numbers", {}) | scores
        card = hub.describe(weights, name or target.name, **told, numbers=numbers)
        notices += hub.write_folder(weights, target, card)
        notices.append("say in README.md under which licence the weights may be used; the data decides that")
        written = sorted(path.name for path in target.iterdir())
    return {"out": str(target), "to": to, "kind": weights.config.kind, "files": written, "notices": notices}


def check_installed() -> None:
    """Refuse to begin without what JAX writes StableHLO with.

    Raises:
        InputError: it is missing.

    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError(f"--to stablehlo needs flatbuffers: {install('export')}")


def write_and_check(weights: Weights, path: Path, pool: Any) -> str:
    """Write StableHLO and run it back on random images."""
    model, encoder = model_of(weights), weights.config.encoder
    size = stablehlo.write_compiled(model, path, pool=pool)
    shape = (3, *encoder.image_size, encoder.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    apart = stablehlo.difference(model, path, images, pool)
    if not apart <= TOLERANCE:
        path.unlink()
        raise InputError(f"{path}, run back, differs from the model by {apart:.1e} and was removed")
    return f"{size:,} bytes, run back: within {apart:.1e} of the model's features"


def read_report(path: str) -> dict[str, str]:
    """Read the scores of `maejax evaluate` as rows of a card.

    Raises:
        InputError: it is no such report.

    """
    if not path:
        return {}
    try:
        told = json.loads(Path(path).expanduser().read_text())
        images = told["images"]
        row = {name: f"{value:.1f} %" for name, value in told["scores"]["pretrained"].items() if "std" not in name}
    except (OSError, ValueError, KeyError, TypeError):
        raise WeightsError(f"--report {path} is no report.json of `maejax evaluate`") from None
    return {"judged on": f"{images['test']:,} images of {len(told['classes'])} classes", **row}


def tell_run(path: Path) -> dict[str, dict[str, Any]]:
    """Collect the data, the recipe and the numbers of a run for its card."""
    directory, checkpoint = run_directory.locate(path)
    config = read_config(directory)
    assert config is not None  # `files.read` found it
    given = config["flags"]
    usual = flags(recipe(given["mode"]))
    told: dict[str, Any] = {"steps": f"{int(checkpoint.name):,} of {given['training_steps']:,}"}
    told |= {
        f"--{name.replace('_', '-')}": value
        for name, value in given.items()
        if name not in UNTOLD | set(DATA_FLAGS) and value != usual.get(name) and value not in ([], "")
    }
    data = {"images": "unknown" if config["images"] is None else f"{config['images']:,}"}
    data |= {name.partition("_")[0]: given[name] for name in DATA_FLAGS if given[name]}
    numbers = {}
    for metric in ("train/loss", "val/loss", "val/acc1", "val/acc5"):
        found = dict(read_metrics(directory / "metrics.jsonl", metric))
        if steps := [step for step in found if step <= int(checkpoint.name)]:
            numbers[metric] = f"{found[max(steps)]:.4g}"
    return {"data": data, "recipe": told, "numbers": numbers}
