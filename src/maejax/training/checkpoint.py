"""Checkpoints of a run: step, model and optimizer, saved in the background, atomically, by Orbax."""
# Orbax names its types by private protocols that pyright cannot match with pathlib's.
# pyright: reportArgumentType=false

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from maejax.models.arrays import check_arrays, named_arrays, with_arrays
from maejax.training.errors import RunError
from maejax.training.state import TrainState


class Checkpoints:
    """The checkpoints of a run, `<directory>/<step>/`, of which the newest `keep` stay.

    Each holds three parts that can be read alone, `step`, `model` and `opt_state`, each a flat dictionary of arrays by
    name: readable without this package's classes. Use as a context manager; leaving it waits for the last save.
    `before` is called with the step before each save, to keep what belongs to it elsewhere.
    """

    def __init__(self, directory: Path, keep: int = 3, before: Callable[[int], None] | None = None):
        self._before = before
        logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax logs every step of every save
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(), preservation_policy=ocp.training.preservation_policies.LatestN(keep)
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._checkpointer.close()

    @property
    def latest(self) -> int | None:
        """The newest step that was saved whole, None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, state: TrainState, step: int) -> None:
        """Save a state in the background; the arrays are copied before this returns. Saved steps are not rewritten."""
        if step != self.latest:
            if self._before is not None:
                self._before(step)
            self._checkpointer.save_checkpointables_async(step, parts_of(state), force=True)

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """Read a state, by default the newest, laid out as `like`, which may be abstract.

        Raises:
            RunError: the checkpoint is of another model or optimizer; the message lists what differs.

        """
        step = self.latest if step is None else step
        saved = self._checkpointer.checkpointables_metadata(step).metadata
        for part in ("model", "opt_state"):
            try:
                check_arrays(getattr(like, part), saved[part])
            except ValueError as error:
                raise RunError(f"checkpoint {step} in {self._checkpointer.directory}, {part}: {error}") from None
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), parts_of(like))
        arrays = self._checkpointer.load_checkpointables(step, abstract)
        rebuilt = {part: with_arrays(getattr(like, part), arrays[part]) for part in ("model", "opt_state")}
        return TrainState(step=arrays["step"]["step"], **rebuilt)


def parts_of(state: TrainState) -> dict[str, dict[str, Any]]:
    """Split a state into the parts of a checkpoint."""
    return {
        "step": {"step": state.step},
        "model": named_arrays(state.model),
        "opt_state": named_arrays(state.opt_state),
    }


def saved_steps(directory: Path) -> list[int]:
    """List the steps saved in a `checkpoints` folder, oldest first; unfinished saves do not count."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit() and path.is_dir())


def read_model_arrays(checkpoint: Path) -> dict[str, jax.Array]:
    """Read the model of one checkpoint, `.../checkpoints/<step>`, as arrays by name on one device."""
    saved = ocp.checkpointables_metadata(checkpoint.absolute()).metadata["model"]
    here = SingleDeviceSharding(jax.local_devices()[0])
    wanted = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here) for name, a in saved.items()}
    return ocp.load_checkpointables(checkpoint.absolute(), {"model": wanted})["model"]
