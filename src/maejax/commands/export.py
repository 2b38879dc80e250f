"""`maejax export`: an encoder for use elsewhere, as a folder for the Hugging Face hub or one file of StableHLO."""

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from maejax.commands.command import check_writable
from maejax.commands.inspect import Unstated
from maejax.config import declarations, flags
from maejax.console import plain
from maejax.errors import InputError, install
from maejax.recipes import recipe
from maejax.storage.atomic import write_whole
from maejax.storage.redact import redact

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # of StableHLO
TOLERANCE = 1e-5  # of features that are run back, relative to the largest
DATA_FLAGS = ("train_dataset_shards", "valid_dataset_shards")


@dataclass(frozen=True)
class ExportCommand(Unstated):
    """Write an encoder for use elsewhere: a folder for the Hugging Face hub, or one compiled file."""

    ckpt: str = field(metadata={"positional": "CKPT"})
    """Anything that `maejax inspect` takes."""
    to: Literal["hf-hub-folder", "stablehlo"] = "hf-hub-folder"
    """hf-hub-folder: weights for transformers and timm, with a model card. stablehlo: images in, features out, weights
    within; any JAX runs it, without maejax."""
    out: str = ""
    """Folder or file to write. Empty: NAME-hub or NAME.stablehlo, after the checkpoint."""
    name: str = ""
    """Name of the folder on the hub, OWNER/MODEL, for the commands on the card. Empty: the folder."""
    report: str = ""
    """report.json of `maejax evaluate`, whose scores go on the card."""
    pool: Literal["", "cls", "mean", "cls+mean", "map", "none"] = ""
    """For stablehlo: as of `maejax features`."""

    def outputs(self) -> dict[str, bool]:
        """Name what is written."""
        return {"out": self.to == "hf-hub-folder"}

    def run(self, console: Console) -> dict[str, Any]:
        """Write the export and return what was written; raises InputError for input that cannot be read."""
        scores = read_scores(self.report) if self.report else {}
        compiled = self.to == "stablehlo"
        if compiled and importlib.util.find_spec("flatbuffers") is None:
            raise InputError(f"--to stablehlo needs flatbuffers: {install('export')}")
        if self.out:
            check_writable("--out", self.out, folder=not compiled)
        from maejax.weights import hub, run_directory
        from maejax.weights.addresses import local

        weights, fetched = self.read(self.ckpt)
        here, kind = local(self.ckpt)[0], weights.config.encoder.image_type
        if not compiled and kind != "uint8":
            raise InputError(
                f"{self.ckpt}: takes images of {kind}, and the processors of transformers and timm prepare 8-bit "
                "pictures alone: give --to stablehlo, or `maejax convert --to timm` for the weights"
            )
        is_run = weights.layout == "maejax" and here.is_dir()
        stem = run_directory.locate(here)[0].absolute().name if is_run else here.stem
        target = Path(self.out or (f"{stem}.stablehlo" if compiled else f"{stem}-hub")).expanduser()
        check_writable("--out", target, folder=not compiled)
        notices = [*([fetched] if fetched else []), *weights.notices]
        if compiled:
            target.parent.mkdir(parents=True, exist_ok=True)
            pool = None if self.pool == "none" else self.chosen_pool(self.pool, weights.config.encoder, 0)
            notices.append(write_compiled(weights, target, pool))
            written = [target.name]
        else:
            facts = run_facts(here) if is_run else {"data": {}, "recipe": {}, "numbers": {}}
            facts["numbers"] |= scores
            notices += hub.write_folder(weights, target, hub.describe(weights, self.name or target.name, **facts))
            notices.append("add to README.md the licence of the weights, which depends on that of the data")
            written = sorted(path.name for path in target.iterdir())
        return {"out": str(target), "to": self.to, "kind": weights.config.kind, "files": written, "notices": notices}

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print what was written, and on the error stream what a reader must know."""
        for notice in result["notices"]:
            plain(Console(stderr=True), f"note: {notice}")
        plain(console, f"{result['kind']} written to {result['out']}: {', '.join(result['files'])}")


def write_compiled(weights: Any, path: Path, pool: Any) -> str:
    """Write images [B, H, W, C] of the model's type -> float32 features of `encoding.extract` as StableHLO, for any B.

    Weights and normalisation are inside; `jax.export.deserialize(bytes).call(images)` runs the file. It is run back on
    random images. Returns a sentence; raises InputError if features differ.
    """
    import jax
    import numpy as np
    from jax.export import deserialize, export, symbolic_shape

    from maejax.evaluate.encoding import encode
    from maejax.weights.weights import model_of

    model, encoder = model_of(weights), weights.config.encoder
    shape = *encoder.image_size, encoder.channels
    images = jax.ShapeDtypeStruct((*symbolic_shape("B"), *shape), np.dtype(encoder.image_type))
    exported = export(jax.jit(lambda images: encode(model, images, pool)), platforms=PLATFORMS)(images)
    data = exported.serialize()
    noise = np.random.default_rng(0).integers(0, 256, (3, *shape)).astype(encoder.image_type)
    wanted, found = np.asarray(encode(model, noise, pool)), deserialize(data).call(noise)
    apart = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    if not apart <= TOLERANCE:
        raise InputError(f"{path} is not written: run back, it differs from the model by {apart:.1e}")
    write_whole(path, bytes(data))
    return f"{path.stat().st_size:,} bytes, run back: within {apart:.1e} of the model's features"


def read_scores(path: str) -> dict[str, str]:
    """Read the scores of `maejax evaluate` as rows of a card; raises InputError if the file holds none."""
    try:
        report = json.loads(Path(path).expanduser().read_text())
        images, scores = report["images"], report["scores"]["pretrained"]
        row = {name: f"{value:.1f} %" for name, value in scores.items() if "std" not in name}
        return {"judged on": f"{images['test']:,} images of {len(report['classes'])} classes", **row}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"--report {path} is no report.json of `maejax evaluate`") from None


def run_facts(path: Path) -> dict[str, dict[str, Any]]:
    """Collect the data, the recipe and the numbers of a run for its card."""
    from maejax.training.log import read_metrics
    from maejax.training.rundir import read_config
    from maejax.weights import run_directory

    directory, checkpoint = run_directory.locate(path)
    config = read_config(directory)
    assert config is not None  # `files.read` found it
    given = {name: redact(value) if isinstance(value, str) else value for name, value in config["flags"].items()}
    usual, declared = flags(recipe(given["mode"])), declarations()
    step = int(checkpoint.name)
    steps: dict[str, Any] = {"steps": f"{step:,} of {given['training_steps']:,}"}
    changed = {  # of what is computed
        f"--{name.replace('_', '-')}": value
        for name, value in given.items()
        if name not in DATA_FLAGS and not declared.get(name, {}).get("free")
        if value != usual.get(name) and value not in ([], "")
    }
    data = {"images": "unknown" if config["images"] is None else f"{config['images']:,}"}
    data |= {name.partition("_")[0]: given[name] for name in DATA_FLAGS if given[name]}
    numbers = {}
    for metric in ("train/loss", "val/loss", "val/acc1", "val/acc5"):
        if before := [(at, value) for at, value in read_metrics(directory / "metrics.jsonl", metric) if at <= step]:
            numbers[metric] = f"{dict(before)[max(dict(before))]:.4g}"
    return {"data": data, "recipe": steps | changed, "numbers": numbers}
