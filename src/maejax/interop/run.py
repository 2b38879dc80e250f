"""Our own layout: a run directory, or one of its checkpoints."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maejax.models.arrays import with_arrays
from maejax.models.mae import MaskedAutoencoder
from maejax.training.checkpoint import read_model_arrays, saved_steps
from maejax.training.errors import RunError
from maejax.training.rundir import best_path, checkpoints_path, read_config


def initial_model(arguments: dict[str, Any], seed: int = 0) -> MaskedAutoencoder:
    """Build a freshly initialised model from the keyword arguments that config.json holds."""
    sized = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    return MaskedAutoencoder(**{**sized, "dtype": jnp.dtype(arguments["dtype"])}, rngs=nnx.Rngs(seed))


def abstract_model(arguments: dict[str, Any]) -> MaskedAutoencoder:
    """Build a model's shape alone: no memory, no time.

    Raises:
        ValueError: the arguments do not fit together.

    """
    return jax.eval_shape(lambda: initial_model(arguments))


def locate(path: str | Path) -> tuple[Path, Path]:
    """Find (run directory, checkpoint) from a run directory, its `checkpoints` or `best` folder, or a checkpoint there.

    A run directory, or its `checkpoints`, stands for the newest checkpoint.

    Raises:
        RunError: there is no run, or it has no checkpoint yet.

    """
    path = Path(path).expanduser()
    run = next((p for p in (path, *path.absolute().parents[:2]) if (p / "config.json").exists()), None)
    if run is None:
        hint = "does not exist" if not path.exists() else "has no config.json"
        raise RunError(f"{path} {hint}: name a run directory of maejax (such as runs/demo) or one of its checkpoints")
    folders = {folder.absolute(): folder for folder in (checkpoints_path(run), best_path(run))}
    if path.name.isdigit() and path.absolute().parent in folders:
        if not path.is_dir():
            raise RunError(f"there is no checkpoint {path}; {path.parent} has {saved_steps(path.parent) or 'none'}")
        return run, path
    folder = folders.get(path.absolute(), checkpoints_path(run))
    steps = saved_steps(folder)
    if not steps:
        raise RunError(f"{run} has no checkpoint yet")
    return run, folder / str(steps[-1])


def load_arrays(path: str | Path) -> dict[str, jax.Array]:
    """Read the model of a run as arrays by name, on one device.

    Raises:
        RunError: see `locate`.

    """
    return read_model_arrays(locate(path)[1])


def load(path: str | Path) -> MaskedAutoencoder:
    """Load the model of a run directory, or of one of its checkpoints: an nnx.Module, float32 parameters.

    Raises:
        RunError: there is no such run or checkpoint.
        ValueError: the arrays are not those of the model in config.json; the message lists what differs.

    """
    run, checkpoint = locate(path)
    config = read_config(run)
    assert config is not None  # locate found it
    return with_arrays(abstract_model(config["model"]), read_model_arrays(checkpoint))
