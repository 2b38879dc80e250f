"""A run directory that explains itself: what config.json holds, and whether a run may continue there."""

import json
from pathlib import Path
from typing import Any, Literal

from maejax.training.checkpoint import saved_steps
from maejax.training.errors import RunError


def config_path(directory: Path) -> Path:
    """Where a run keeps its configuration."""
    return directory / "config.json"


def checkpoints_path(directory: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return directory / "checkpoints"


def open_run(
    directory: Path,
    config: dict[str, Any],
    *,
    differences: list[str],
    resume: Literal["auto", "never", "must"],
) -> int:
    """Decide where a run starts, write config.json, and return the step to start from.

    Args:
        directory: of the run; made where it is missing.
        config: what config.json is to hold.
        differences: flags that differ from the run that is there and may not change within a run.
        resume: "auto" continues where there is a checkpoint, "never" refuses to, "must" refuses to start anew.

    Raises:
        RunError: the run that is there is another one, or `resume` forbids what would happen.

    """
    steps = saved_steps(checkpoints_path(directory))
    if steps and resume == "never":
        raise RunError(f"{directory} has checkpoints up to step {steps[-1]}; choose another --name, or --resume auto")
    if not steps and resume == "must":
        raise RunError(f"{directory} has no checkpoint to resume from; check --output-dir and --name, or --resume auto")
    if steps and differences:
        raise RunError(
            f"{directory} is a run of another configuration (checkpoint {steps[-1]}): {'; '.join(differences)}. "
            "Choose another --name, or give the old flags again"
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_json(config_path(directory), config)
    return steps[-1] if steps else 0


def read_config(directory: Path) -> dict[str, Any] | None:
    """Read config.json of a run; None where there is none."""
    path = config_path(directory)
    return json.loads(path.read_text()) if path.exists() else None


def save_position(directory: Path, step: int, process: int, position: dict[str, Any]) -> None:
    """Keep where the data of a process stand at a step; those of steps that have no checkpoint any more are removed."""
    folder = directory / "positions"
    folder.mkdir(parents=True, exist_ok=True)
    saved = saved_steps(checkpoints_path(directory))
    for path in folder.glob(f"*-{process}.json"):
        of = int(path.name.partition("-")[0])
        if saved and of < saved[-1] and of not in saved:  # later ones are still being saved
            path.unlink(missing_ok=True)
    write_json(folder / f"{step}-{process}.json", position)


def read_positions(directory: Path, step: int) -> list[dict[str, Any]]:
    """Read where the data of all processes stood at a step; empty where that was not kept."""
    return [json.loads(path.read_text()) for path in sorted((directory / "positions").glob(f"{step}-*.json"))]


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that readers see the old one or the new one, never half of it."""
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(value, indent=2) + "\n")
    new.replace(path)
