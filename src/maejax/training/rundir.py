"""A run directory that explains itself: what config.json holds, and whether a run may continue there."""

import json
from pathlib import Path
from typing import Any, Literal

from maejax.errors import InputError
from maejax.storage import mirror
from maejax.training.checkpoint import saved_steps


def config_path(directory: Path) -> Path:
    """Where a run keeps its configuration."""
    return directory / "config.json"


def checkpoints_path(directory: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return directory / "checkpoints"


def best_path(directory: Path) -> Path:
    """Where a run keeps the checkpoint with the best validation loss."""
    return directory / "best"


def open_run(
    directory: Path,
    config: dict[str, Any],
    *,
    differences: list[str],
    resume: Literal["auto", "never", "must"],
    first: bool = True,
) -> int:
    """Decide where a run starts, write config.json, and return the step to start from.

    Args:
        directory: of the run; made where it is missing.
        config: what config.json is to hold.
        differences: flags that differ from the run that is there and may not change within a run.
        resume: "auto" continues where there is a checkpoint, "never" refuses to, "must" refuses to start anew.
        first: whether this is the first of the run's processes, which alone writes.

    Raises:
        InputError: the run that is there is another one, or `resume` forbids what would happen.

    """
    steps, name = saved_steps(checkpoints_path(directory)), mirror.shown(directory)
    if steps and resume == "never":
        raise InputError(f"{name} has checkpoints up to step {steps[-1]}; choose another --name, or --resume auto")
    if not steps and resume == "must":
        raise InputError(f"{name} has no checkpoint to resume from; check --output-dir and --name, or --resume auto")
    if steps and differences:
        raise InputError(
            f"{name} is a run of another configuration (checkpoint {steps[-1]}): {'; '.join(differences)}. "
            "Choose another --name, or give the old flags again"
        )
    if first:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_json(config_path(directory), config)
            mirror.publish(directory)
        except OSError as error:
            raise InputError(f"{name} cannot be written ({error.strerror}); choose another --output-dir") from None
    return steps[-1] if steps else 0


def read_config(directory: Path) -> dict[str, Any] | None:
    """Read config.json of a run; None where there is none."""
    path = config_path(directory)
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that readers see the old one or the new one, never half of it."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(value, indent=2) + "\n")
    new.replace(path)
