"""A run directory: its config.json, and whether a run may start or resume there."""

import json
from pathlib import Path
from typing import Any, Literal

from maejax.errors import InputError
from maejax.storage import mirror
from maejax.storage.atomic import write_atomically
from maejax.training.checkpoint import saved_steps

Resume = Literal["auto", "never", "must"]
# In the directory of a run; BEST holds the checkpoint with the best validation.
CONFIG, CHECKPOINTS, BEST = "config.json", "checkpoints", "best"


def open_run(
    directory: Path, config: dict[str, Any], *, differences: list[str], resume: Resume, first: bool = True
) -> int:
    """Write config.json of a run, and return the step to start from. The directory is made if it is missing.

    `differences` are the flags that differ from the run in the directory and may not change within a run. `resume`:
    "auto" resumes if there is a checkpoint, "never" refuses to, "must" refuses to start anew. Of several processes the
    `first` alone writes. Raises InputError if the directory holds another run, or `resume` refuses.
    """
    steps, name = saved_steps(directory / CHECKPOINTS), mirror.shown(directory)
    if steps and resume == "never":
        raise InputError(f"{name} has checkpoints up to step {steps[-1]}; choose another --name, or --resume auto")
    if not steps and resume == "must":
        raise InputError(f"{name} has no checkpoint to resume from; check --output-dir and --name, or --resume auto")
    if steps and differences:
        found = f"{name} is a run of another configuration (checkpoint {steps[-1]}): {'; '.join(differences)}"
        raise InputError(f"{found}. Choose another --name, or give the old flags again")
    if first:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_json(directory / CONFIG, config)
            mirror.publish(directory)
        except OSError as error:
            raise InputError(f"{name} cannot be written ({error.strerror}); choose another --output-dir") from None
    return steps[-1] if steps else 0


def read_config(directory: Path) -> dict[str, Any] | None:
    """Read config.json of a run; return None if there is none."""
    path = directory / CONFIG
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    with write_atomically(path) as new:
        new.write_text(json.dumps(value, indent=2) + "\n")
