"""Checkpoints of a run in a bucket: the first process saves them into a folder of its own, then copies them."""

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
from maejax.training.checkpoint import Checkpoints, Parts, save_alone
from maejax.training.mesh import fetch_on_first

UNUSED = 1 << 62  # bytes free on the disk of a process that writes nothing

_log = logging.getLogger("maejax.training")


def open_checkpoints(directory: Path, keep: int = 3) -> Checkpoints:
    """Open the checkpoints of a run, in a bucket or on a disk; raises Failed if the bucket does not answer."""
    kind = CopiedCheckpoints if mirror.address_of(directory.absolute()) else Checkpoints
    return kind(directory, keep)


class CopiedCheckpoints(Checkpoints):
    """Checkpoints of a directory that mirrors one in a bucket; a step counts as saved if the bucket has it.

    They are copied in the background, after the other files of the run. So a bucket that has the checkpoint of a step
    has all that was logged up to it. A save that could not be copied has failed, in all processes.
    """

    def __init__(self, directory: Path, keep: int = 3):
        super().__init__(directory, keep)
        self._copying = ThreadPoolExecutor(1, "maejax-copy")
        self._steps = mirror.saved_steps(self.directory)
        if jax.process_index() == 0:
            mirror.prune(self.directory, len(self._steps))  # parts of interrupted saves

    @property
    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, oldest first."""
        return self._steps

    def _start(self, path: Path, parts: Parts, metadata: dict[str, Any]) -> Future[None]:
        alone = jax.process_count() == 1
        if not alone:
            parts = fetch_on_first(parts, parts["step"]["step"].sharding.mesh)
        if jax.process_index() > 0:
            return self._copying.submit(lambda: None)
        for old in self.directory.glob("*"):  # in the bucket, or of saves that failed
            shutil.rmtree(old, ignore_errors=True)
        save = super()._start(path, parts, metadata).result if alone else partial(save_alone, path, parts, metadata)
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

    def _finish(self, saving: Future[None]) -> None:
        failure = saving.exception()  # whatever Orbax, TensorStore or the bucket raise
        if not all_processes(failure is None):
            raise failure or Failed("the first process, which alone writes, could not")

    def _keep_newest(self, step: int) -> None:
        self._steps = sorted({*self._steps, step})[-self.keep :]

    def _set_aside(self, steps: list[int]) -> None:
        super()._set_aside(steps)
        self._steps = [step for step in self._steps if step not in steps]

    def _rename(self, path: Path, name: str) -> None:
        mirror.set_aside(path, name)
