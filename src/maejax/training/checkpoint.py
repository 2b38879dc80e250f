"""Checkpoints of a run: step, model and optimizer, saved in the background, atomically, by Orbax."""
# Orbax names its types by private protocols that pyright cannot match with pathlib's.
# pyright: reportArgumentType=false

import logging
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import Checkpointer, CompositeCheckpointHandler, CompositeOptions, PyTreeCheckpointHandler, args
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint.options import MultiprocessingOptions

from maejax.distributed.processes import all_processes, first_line
from maejax.errors import Failed, InputError
from maejax.models.trees import mismatches, named_arrays, with_arrays
from maejax.storage import mirror
from maejax.training.mesh import gather
from maejax.training.state import TrainState

_log = logging.getLogger("maejax.training")

PATIENCE = 300  # seconds that processes wait for each other in a save; one of them may have failed
TRIES = 40  # to remove the files of a save that failed
SLICE = 1 << 20  # bytes: to write smaller parts of an array side by side takes longer than to write it
COMPRESSED = 0.9  # a checkpoint takes at least this part of the state's bytes

Parts = dict[str, dict[str, Any]]  # arrays by name, by part


class Restored(NamedTuple):
    """The content of a checkpoint: the state, its step, and the `data` saved with it."""

    state: TrainState
    step: int
    data: Any


class Checkpoints:
    """The checkpoints of a run, `<directory>/<step>/`, of which the newest `keep` stay.

    Each has three parts, `step`, `model` and `opt_state`. Each part is a dictionary of arrays by name that can be read
    alone, without this package's classes. The task's `data` and a sum over the bits of every array are saved with them;
    the sums reveal a damaged file. All processes call every method together.

    A save that fails (a full disk, say) is logged as an error; `failed` is the reason until one succeeds. Use as a
    context manager: leaving it waits for the last save, and raises Failed if that one failed.
    """

    def __init__(self, directory: Path, keep: int = 3):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every step of every save
        self.directory, self.keep = directory.absolute(), keep
        self.failed: str | None = None
        self._saving: tuple[int, Any] | None = None  # a step, and a future of its save
        self._tidy()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None and jax.process_count() > 1:
            return  # the others may be gone, and waiting for them takes minutes
        self.wait()
        if kind is None and self.failed:
            raise Failed(f"the last save failed, so the newest steps are lost: {self.failed}")

    @property
    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, oldest first."""
        return saved_steps(self.directory)

    @property
    def latest(self) -> int | None:
        """The newest step with a complete checkpoint, None if there is none."""
        return self.steps[-1] if self.steps else None

    def save(self, state: TrainState, step: int, data: Any = None) -> None:
        """Copy a state and save it in the background, if it is not saved; `data` is JSON, the same in all processes."""
        self.wait()
        if step in self.steps:
            return
        parts = parts_of(state)
        if full := self._full_disks(parts):
            self._note_failure(step, OSError(f"no room on the disk of {', '.join(full)}"))
            return
        metadata = {"data": data, "sums": sums_of(parts)}
        try:
            self._saving = step, self._start(self.directory / str(step), parts, metadata)
        except (OSError, ValueError, RuntimeError) as error:
            self._note_failure(step, error)

    def _start(self, path: Path, parts: Parts, metadata: dict[str, Any]) -> Any:
        patient = ocp.options.AsyncOptions(timeout_secs=PATIENCE)
        sliced = ocp.options.ArrayOptions.Saving(min_slice_bytes_for_replica_parallel=SLICE)
        arrays = ocp.options.ArrayOptions(saving=sliced)
        with ocp.Context(async_options=patient, array_options=arrays):
            return ocp.save_checkpointables_async(path, parts, custom_metadata=metadata)

    def wait(self) -> None:
        """Wait for the save in the background, note whether it failed, and delete old checkpoints."""
        if self._saving is None:
            return
        (step, saving), self._saving = self._saving, None
        try:
            self._finish(saving)
        except Exception as error:  # whatever Orbax, TensorStore or the file system raise
            self._note_failure(step, error)
            return
        self.failed = None
        self._keep_newest(step)

    def _finish(self, saving: Any) -> None:
        saving.result()

    def _keep_newest(self, step: int) -> None:
        """Delete old checkpoints now that a step is saved."""
        if jax.process_index() == 0:
            for path in [self.directory / str(old) for old in self.steps[: -self.keep]]:
                hidden = path.with_name(f"{path.name}.deleting")  # a part must not look like a checkpoint
                path.rename(hidden)
                shutil.rmtree(hidden, ignore_errors=True)

    def restore(self, like: TrainState, step: int | None = None) -> Restored:
        """Read a state, by default the newest that can be read, with the shardings of `like`, which may be abstract.

        If the newest is damaged, an error is logged, the one before is read, and the damaged one is renamed. Raises
        InputError if none can be read, or the checkpoint is of another model or optimizer: the message lists the
        differences. Raises Failed if a bucket does not answer.
        """
        damaged = []
        for candidate in reversed(self.steps) if step is None else [step]:
            restored, reason = None, "another process cannot read it"
            try:
                restored = self._read(like, candidate)
            except (InputError, Failed):
                raise
            except Exception as error:  # whatever Orbax, TensorStore or the file system raise
                reason = first_line(error)
            if all_processes(restored is not None) and restored is not None:
                self._set_aside(damaged)
                return restored
            damaged.append(candidate)
            _log.error("checkpoint %s is damaged: %s", mirror.shown(self.directory / str(candidate)), reason)
        where, tried = mirror.shown(self.directory), ", ".join(map(str, damaged)) or "none"
        remedy = "restore the folder from a copy, or start anew under another --name"
        raise InputError(f"no checkpoint in {where} can be read (tried {tried}); {remedy}")

    def _read(self, like: TrainState, step: int) -> Restored:
        path = mirror.bring(self.directory / str(step))
        metadata = ocp.checkpointables_metadata(path)
        for part in ("model", "opt_state"):
            if wrong := mismatches(named_arrays(getattr(like, part)), metadata.metadata[part]):
                where = f"checkpoint {mirror.shown(path)}, {part}"
                raise InputError(f"{where}: the weights do not fit the model: {'; '.join(wrong)}")
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), parts_of(like))
        parts = ocp.load_checkpointables(path, abstract)
        saved: dict[str, Any] = metadata.custom_metadata  # type: ignore[assignment]
        wrong = [name for name, value in sums_of(parts).items() if saved["sums"].get(name) != value]
        if wrong:
            raise ValueError(f"{len(wrong)} arrays are not what was saved, the first: {wrong[0]}")
        rebuilt = {part: with_arrays(getattr(like, part), parts[part]) for part in ("model", "opt_state")}
        return Restored(TrainState(step=parts["step"]["step"], **rebuilt), step, saved["data"])

    def _full_disks(self, parts: Parts) -> list[str]:
        """Name the processes without room for a state: one that fails in a save makes the others wait."""
        if jax.process_count() == 1:
            return []
        least = COMPRESSED * sum(array.nbytes for part in parts.values() for array in part.values())
        room = gather(self._room(), parts["step"]["step"].sharding.mesh)
        return [f"process {i} ({free >> 20} MiB free)" for i, free in enumerate(room) if free < least]

    def _room(self) -> int:
        existing = next(path for path in (self.directory, *self.directory.parents) if path.is_dir())
        return shutil.disk_usage(existing).free

    def _note_failure(self, step: int, error: Exception) -> None:
        self.failed = f"checkpoint {step} in {mirror.shown(self.directory)} was not saved: {first_line(error)}"
        _log.error("%s; training goes on and will try again", self.failed)
        self._tidy()

    def _set_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                self._rename(self.directory / str(step), f"{step}.damaged")
        if steps:
            all_processes(True)  # a barrier: no process may look before

    def _rename(self, path: Path, name: str) -> None:
        shutil.rmtree(path.with_name(name), ignore_errors=True)
        path.rename(path.with_name(name))

    def _tidy(self) -> None:
        if jax.process_index() == 0 and self.directory.is_dir():
            left = *self.directory.glob("*.orbax-checkpoint-tmp"), *self.directory.glob("*.deleting")
            for path in left:  # by interrupted saves and deletions
                for _ in range(TRIES):  # a thread of a save that failed may still be writing there
                    shutil.rmtree(path, ignore_errors=True)
                    if not path.exists():
                        break
                    time.sleep(0.05)


def parts_of(state: TrainState) -> Parts:
    """Split a state into the parts of a checkpoint."""
    model, opt_state = named_arrays(state.model), named_arrays(state.opt_state)
    return {"step": {"step": state.step}, "model": model, "opt_state": opt_state}


def save_alone(path: Path, parts: Parts, metadata: dict[str, Any]) -> None:
    """Save a checkpoint from the first process alone, which needs Orbax's older interface; the files are the same."""
    alone = MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="alone")
    handlers = {name: PyTreeCheckpointHandler(multiprocessing_options=alone) for name in parts}
    options = CompositeOptions(multiprocessing_options=alone)
    handler = CompositeCheckpointHandler(composite_options=options, **handlers)
    with Checkpointer(handler, multiprocessing_options=alone) as writer:
        saved = args.Composite(**{name: args.PyTreeSave(part) for name, part in parts.items()})
        writer.save(path, saved, custom_metadata=metadata)


def sums_of(parts: Parts) -> dict[str, int]:
    """Sum the bits of every array, as 32-bit words modulo 2^32: the same for every sharding."""
    arrays = {f"{part}/{name}": array for part, named in parts.items() for name, array in named.items()}
    return dict(zip(arrays, jax.device_get(_sums(tuple(arrays.values()))).tolist(), strict=True))


@jax.jit
def _sums(arrays):
    return jnp.stack([jnp.sum(jax.lax.bitcast_convert_type(array, jnp.uint32)) for array in arrays])


def saved_steps(directory: Path) -> list[int]:
    """List the steps saved in a `checkpoints` folder, oldest first, without unfinished saves."""
    if mirror.address_of(directory):
        return mirror.saved_steps(directory)
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit() and path.is_dir())


def read_model_arrays(checkpoint: Path, *, raw: bool = False) -> dict[str, jax.Array]:
    """Read the model of one checkpoint, `.../checkpoints/<step>`, as arrays by name on one device.

    Where the run keeps an average of the weights (--ema), these are the averaged ones unless `raw`.
    """
    checkpoint, here = mirror.bring(checkpoint.absolute()), SingleDeviceSharding(jax.local_devices()[0])
    saved, average = ocp.checkpointables_metadata(checkpoint).metadata, "average."
    wanted = {"model": saved["model"]}
    if not raw:
        wanted["opt_state"] = {name: a for name, a in saved["opt_state"].items() if name.startswith(average)}
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), wanted)
    partly = ocp.Context()
    partly.pytree.loading.partial_load = True
    with partly:
        found = ocp.load_checkpointables(checkpoint, {name: tree for name, tree in shapes.items() if tree})
    averaged = {name.removeprefix(average): array for name, array in found.get("opt_state", {}).items()}
    return found["model"] | averaged
