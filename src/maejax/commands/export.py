"""`maejax export`: an encoder for use elsewhere: a folder for the Hugging Face hub, a file of ONNX or of StableHLO."""

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from rich.console import Console

from maejax.commands.command import check_writable, command_line
from maejax.commands.inspect import Unstated
from maejax.config import declarations, flags
from maejax.console import plain
from maejax.errors import InputError, install
from maejax.models.description import MAE, Classifier
from maejax.recipes import recipe
from maejax.storage.atomic import write_whole
from maejax.storage.redact import redact

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # of StableHLO
NEEDED = {"hf-hub-folder": (), "onnx": ("onnx", "onnxruntime"), "stablehlo": ("flatbuffers",)}  # packages
TOLERANCE = 1e-5  # of features that are run back, relative to the largest
DATA_FLAGS = ("train_dataset_shards", "valid_dataset_shards")


@dataclass(frozen=True)
class ForHub(Unstated):
    """Flags of the commands that make a folder for the Hugging Face hub."""

    onnx: bool = field(default=False, kw_only=True)
    """Put onnx/model.onnx into the folder for the hub too, and the lines that run it on its card."""
    report: str = field(default="", kw_only=True)
    """report.json of `maejax evaluate`: its scores go on the card, and the file into the folder."""
    licence: str = field(default="", kw_only=True)
    """Licence of the weights, which depends on that of the data: the hub's word for it, such as apache-2.0 or
    cc-by-nc-4.0, for the card; or a file with its text, which goes into the folder."""
    pool: Literal["", "cls", "mean", "cls+mean", "map", "none"] = field(default="", kw_only=True)
    """Of the features in a file of onnx or stablehlo, as of `maejax features`. Empty: for onnx the logits of a
    classifier, else the first of the poolings that the encoder has."""


@dataclass(frozen=True)
class ExportCommand(ForHub):
    """Write an encoder for use elsewhere: a folder for the Hugging Face hub, or one file that runs without maejax."""

    ckpt: str = field(metadata={"positional": "CKPT"})
    """Anything that `maejax inspect` takes."""
    to: Literal["hf-hub-folder", "onnx", "stablehlo"] = "hf-hub-folder"
    """hf-hub-folder: weights for transformers and timm, with a model card. onnx: images in, features or logits out,
    weights within; onnxruntime and others run it. stablehlo: as onnx, features alone; any JAX runs it."""
    out: str = ""
    """Folder or file to write. Empty: NAME-hub, NAME.onnx or NAME.stablehlo, after the checkpoint."""
    name: str = ""
    """Name of the folder on the hub, OWNER/MODEL, for the commands on the card. Empty: the folder."""

    def outputs(self) -> dict[str, bool]:
        """Name what is written."""
        return {"out": self.to == "hf-hub-folder"}

    def run(self, console: Console) -> dict[str, Any]:
        """Write the export and return what was written; raises InputError for input that cannot be read."""
        scores, licence = read_scores(self.report) if self.report else {}, licence_of(self.licence)
        folder = self.to == "hf-hub-folder"
        flag = "--onnx" if self.onnx else f"--to {self.to}"
        if not folder and self.onnx:
            raise InputError(f"--onnx adds a file to the folder for the hub: leave it out of --to {self.to}")
        if folder and self.pool and not self.onnx:
            raise InputError(f"--pool {self.pool} is for files that compute features: add --onnx, or leave it out")
        for package in NEEDED["onnx" if self.onnx else self.to]:
            if importlib.util.find_spec(package) is None:
                extra = "export" if self.to == "stablehlo" else "onnx"
                raise InputError(f"{flag} needs {package}: {install(extra)}")
        if self.out:
            check_writable("--out", self.out, folder=folder)
        from maejax.weights import hub, run_directory
        from maejax.weights.addresses import local, named_in

        weights, fetched = self.read(self.ckpt)
        here, kind = local(self.ckpt)[0], weights.config.encoder.image_type
        if folder and kind != "uint8":
            raise InputError(
                f"{self.ckpt}: takes images of {kind}, and the processors of transformers and timm prepare 8-bit "
                "pictures alone: give --to onnx or stablehlo, or `maejax convert --to timm` for the weights"
            )
        is_run = weights.layout == "maejax" and here.is_dir()
        stem = run_directory.locate(here)[0].absolute().name if is_run else named_in(self.ckpt) or here.stem
        target = Path(self.out or (f"{stem}-hub" if folder else f"{stem}.{self.to}")).expanduser()
        check_writable("--out", target, folder=folder)
        notices, use = [*([fetched] if fetched else []), *weights.notices], ""
        pool = None if self.pool == "none" else self.chosen_pool(self.pool, weights.config.encoder, 0)
        logits = isinstance(weights.config, Classifier) and not self.pool
        if folder:
            facts = run_facts(here) if is_run else {"data": {}, "recipe": {}, "numbers": {}}
            facts["numbers"] |= scores
            target.mkdir(parents=True, exist_ok=True)
            files = write_onnx(weights, target / hub.ONNX_FILE, pool, logits=logits)[0] if self.onnx else []
            card = hub.describe(weights, self.name or target.name, onnx=files, licence=licence, **facts)
            notices += hub.write_folder(weights, target, card)
            for given, name in ((self.report, "report.json"), (self.licence * (licence == "other"), "LICENSE")):
                if given:
                    write_whole(target / name, Path(given).expanduser().read_bytes())
            if not licence:
                notices.append("no --licence: what others may do with the weights depends on that of the data")
            written = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
        elif self.to == "onnx":
            written, said = write_onnx(weights, target, pool, logits=logits)
            notices, use = [*notices, *said], hub.running_onnx(weights, f'"{target}"')
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            notices.append(write_compiled(weights, target, pool))
            written = [target.name]
        facts = {"out": str(target), "to": self.to, "kind": weights.config.kind, "files": written}
        return facts | {"notices": notices, "use": use}

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print what was written, and on the error stream what a reader must know."""
        for notice in result["notices"]:
            plain(Console(stderr=True), f"note: {notice}")
        plain(console, f"{result['kind']} written to {result['out']}: {', '.join(result['files'])}")
        if result["use"]:
            plain(console, f"\n{result['use']}")

    def following(self, result: dict[str, Any]) -> str:
        """Return how a folder gets to the hub."""
        return command_line("push", result["out"], self.name or "OWNER/NAME") if self.to == "hf-hub-folder" else ""


def write_compiled(weights: Any, path: Path, pool: Any) -> str:
    """Write images [B, H, W, C] of the model's type -> float32 features of `encoding.extract` as StableHLO, for any B.

    Weights and normalisation are inside; `jax.export.deserialize(bytes).call(images)` runs the file. It is run back on
    random images. Returns a sentence; raises InputError if features differ.
    """
    import jax
    import numpy as np
    from jax.export import deserialize, export, symbolic_shape

    from maejax.evaluation.encoding import encode
    from maejax.weights.weights import model_of

    model, encoder = model_of(weights), weights.config.encoder
    shape = *symbolic_shape("B"), *encoder.image_size, encoder.channels
    images = jax.ShapeDtypeStruct(shape, np.dtype(encoder.image_type))
    exported = export(jax.jit(lambda images: encode(model, images, pool)), platforms=PLATFORMS)(images)
    data = exported.serialize()
    said = run_back(path, deserialize(data).call, lambda images: encode(model, images, pool), encoder)
    write_whole(path, bytes(data))
    return f"{path.stat().st_size:,} bytes, {said}"


def write_onnx(weights: Any, path: Path, pool: Any, *, logits: bool) -> tuple[list[str], list[str]]:
    """Write what `onnx_export.model_proto` builds, in one file or two; returns their names, and sentences.

    It is run back by onnxruntime on random images; raises InputError if features or logits differ.
    """
    import jax
    import onnxruntime

    from maejax.evaluation.encoding import encode
    from maejax.weights import onnx_export
    from maejax.weights.weights import model_of

    proto, model = onnx_export.model_proto(weights, pool, logits=logits), model_of(weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as folder:
        made = onnx_export.save(proto, Path(folder) / path.name)
        session = onnxruntime.InferenceSession(made[-1], providers=["CPUExecutionProvider"])
        ours = jax.jit(model) if logits else lambda images: encode(model, images, pool)
        said = run_back(path, lambda images: session.run(None, {"images": images})[0], ours, weights.config.encoder)
        files = [each.replace(path.with_name(each.name)) for each in made]
    size = sum(each.stat().st_size for each in files)
    notices = [f"opset {onnx_export.OPSET}, {size:,} bytes, {said}"]
    if isinstance(weights.config, MAE):
        notices.append("the file holds the encoder alone, without masks")
    return [each.name for each in files], notices


def run_back(path: Path, run: Callable[[Any], Any], model: Callable[[Any], Any], encoder: Any) -> str:
    """Compare a written model with ours on three random images, and say by how much; InputError if they differ."""
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 256, (3, *encoder.image_size, encoder.channels))
    images = noise.astype(encoder.image_type)
    wanted = np.asarray(model(images))
    apart = float(np.abs(run(images) - wanted).max() / np.abs(wanted).max())
    if not apart <= TOLERANCE:
        raise InputError(f"{path} is not written: run back, it differs from the model by {apart:.1e}")
    return f"run back: within {apart:.1e} of what the model computes"


def read_scores(path: str) -> dict[str, str]:
    """Read the scores of `maejax evaluate` as rows of a card; raises InputError if the file holds none."""
    try:
        report = json.loads(Path(path).expanduser().read_text())
        images, scores = report["images"], report["scores"]["pretrained"]
        row = {name: f"{value:.1f} %" for name, value in scores.items() if "std" not in name}
        return {"judged on": f"{images['test']:,} images of {len(report['classes'])} classes", **row}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"--report {path} is no report.json of `maejax evaluate`") from None


def licence_of(given: str) -> str:
    """Return the hub's word for a licence, "other" if its text is in a file; raises InputError if it is neither."""
    if given and Path(given).expanduser().is_file():
        return "other"
    if given and not re.fullmatch(r"[a-z][a-z0-9.-]*", given):
        raise InputError(f"--licence {given}: give the hub's word for it, such as apache-2.0, or a file with its text")
    return given


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
