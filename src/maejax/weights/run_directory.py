"""Our own layout: a run directory, or one of its checkpoints."""

from pathlib import Path

import numpy as np

from maejax.errors import InputError
from maejax.models.stored import from_json
from maejax.storage import mirror
from maejax.training.checkpoint import read_model_arrays, saved_steps
from maejax.training.rundir import BEST, CHECKPOINTS, read_config
from maejax.weights.custom_code import NO_CODE, CustomCode
from maejax.weights.weights import Weights, blank_arrays, check


def locate(path: str | Path) -> tuple[Path, Path]:
    """Find (run directory, checkpoint) from a run directory, its `checkpoints` or `best` folder, or a checkpoint there.

    A run directory, or its `checkpoints`, stands for the newest checkpoint. Raises InputError if there is no run, or if
    it has no checkpoint yet.
    """
    path = Path(path).expanduser()
    run = next((p for p in (path, *path.absolute().parents[:2]) if (p / "config.json").exists()), None)
    if run is None:
        hint = "does not exist" if not path.exists() else "has no config.json"
        raise InputError(f"{path} {hint}: name a run directory of maejax (such as runs/demo) or one of its checkpoints")
    folders = {folder.absolute(): folder for folder in (run / CHECKPOINTS, run / BEST)}
    if path.name.isdigit() and path.absolute().parent in folders:
        saved = saved_steps(path.parent)
        if int(path.name) not in saved:
            raise InputError(
                f"there is no checkpoint {mirror.shown(path)}; {mirror.shown(path.parent)} has {saved or 'none'}"
            )
        return run, path
    folder = folders.get(path.absolute(), run / CHECKPOINTS)
    steps = saved_steps(folder)
    if not steps:
        raise InputError(f"{mirror.shown(run)} has no checkpoint yet")
    return run, folder / str(steps[-1])


def read(path: str | Path, *, raw: bool = False, code: CustomCode = NO_CODE) -> Weights:
    """Read the weights of a run directory, or of one of its checkpoints: their average if it keeps one, unless `raw`.

    `code` is that of the user in the model. Raises InputError if there is no such checkpoint, or if its arrays are not
    those of the model in config.json.
    """
    run, checkpoint = locate(path)
    meta = read_config(run)
    assert meta is not None  # locate found it
    config = from_json(meta["model"])
    arrays = {name: np.asarray(array) for name, array in read_model_arrays(checkpoint, raw=raw).items()}
    classes = tuple(meta["classes"]) if config.kind == "classifier" else ()
    ratio = meta["flags"].get("test_crop_ratio", 0.0)
    writer = f"maejax {meta['maejax']}, step {checkpoint.name}"
    weights = code.fill(Weights(arrays, config, "maejax", writer, (), classes, ratio))
    check(blank_arrays(weights.config), weights.arrays, mirror.shown(checkpoint))
    return weights
