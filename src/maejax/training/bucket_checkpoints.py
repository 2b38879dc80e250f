"""The checkpoints of a run in a bucket: saved by the first process into a folder of its own, then copied."""

import logging
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax

from maejax.distributed.processes import all_processes
from maejax.errors import Failed
from maejax.storage import mirror
from maejax.training.checkpoint import Checkpoints, Saving, save_alone
from maejax.training.mesh import take_whole

UNUSED = 1 << 62  # bytes free on a disk that nothing is written to

_log = logging.getLogger("maejax.training")


def open_checkpoints(directory: Path, keep: int = 3) -> Checkpoints:
    """Open the checkpoints of a run, wherever its directory stands for.

    Raises:
        Failed: the bucket does not answer.

    """
    kind = CopiedCheckpoints if mirror.address_of(directory.absolute()) else Checkpoints
    return kind(directory, keep)


class CopiedCheckpoints(Checkpoints):
    """Checkpoints of a directory that stands for one in a bucket, which alone says what is saved.

    The copy is made in the background, after what else the run wrote: so all that was logged up to a step is in the
    bucket where its checkpoint is. A save that could not be copied has failed, in all processes.
    """

    def __init__(self, directory: Path, keep: int = 3):
        super().__init__(directory, keep)
        self._copying = ThreadPoolExecutor(1, "maejax-copy")
        self._steps = mirror.saved_steps(self.directory)
        if jax.process_index() == 0:
            mirror.prune(self.directory, len(self._steps))  # halves of saves that were cut off

    @property
    def steps(self) -> list[int]:
        """The steps that were saved whole, oldest first."""
        return self._steps

    def _begin(self, path: Path, parts: dict[str, dict[str, Any]], beside: dict[str, Any]) -> Saving:
        alone = jax.process_count() == 1
        if not alone:
            parts = take_whole(parts, parts["step"]["step"].sharding.mesh)
        if jax.process_index() > 0:
            nothing: Future[None] = Future()
            nothing.set_result(None)
            return nothing
        for old in self.directory.glob("*"):  # in the bucket, or of saves that failed
            shutil.rmtree(old, ignore_errors=True)
        save = super()._begin(path, parts, beside).result if alone else partial(save_alone, path, parts, beside)
        return self._copying.submit(self._copy, save, path)

    def _room(self) -> int:
        return super()._room() if jax.process_index() == 0 else UNUSED

    def _copy(self, save: Callable[[], None], path: Path) -> None:
        save()
        mirror.publish(self.directory.parent)
        mirror.send(path)
        try:
            mirror.prune(self.directory, self.keep)
        except Failed as error:
            _log.error("old checkpoints are left: %s", error)

    def _finish(self, saving: Saving) -> None:
        failure = None
        try:
            saving.result()
        except Exception as error:  # whatever Orbax, TensorStore or the bucket make of it
            failure = error
        if not all_processes(failure is None):
            raise failure or Failed("the first process, which alone writes, could not")

    def _keep_newest(self, step: int) -> None:
        self._steps = sorted({*self._steps, step})[-self.keep :]

    def _set_aside(self, steps: list[int]) -> None:
        super()._set_aside(steps)
        self._steps = [step for step in self._steps if step not in steps]

    def _rename(self, path: Path, name: str) -> None:
        mirror.set_aside(path, name)
