"""Threads and processes that fill the rows of batches.

Decoding and resizing release the GIL, so up to `THREADS` cores are threads of this process; more would wait for the GIL
(docs/notes/loader.md). Beyond that there are processes, each with threads, and they write rows into shared memory.
Small images wait for the GIL from the second thread on: in training up to `THREADS` cores are processes. Shared memory
has no name in any file system: nothing is left of it, however a run ends.
"""

import collections
import math
import mmap
import os
import pickle
import sys
import tempfile
import weakref
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from maejax.data.fill import Fault, FillConfig, FillThreads, RowSpec, split_rows
from maejax.data.loader_process import FillWork, LoaderProcess, Shape

THREADS = 16  # of one process
SMALL = 64 * 64  # pixels of an image of which two threads fill fewer than one
HELD = 4  # batches that the caller may hold without a copy: one in use, two given to the device, one on the way out

_PAGE = 4096  # slots begin at a page: JAX on CPU takes over memory that is aligned to 64 bytes, and copies other


class _Slots:
    """Memory without a name for a fixed number of batches, each free again when no array uses it any more."""

    def __init__(self, shape: Shape, dtype: np.dtype, count: int):
        self.shape, self.dtype = shape, dtype
        self.stride = -(-math.prod(shape) * dtype.itemsize // _PAGE) * _PAGE
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("maejax-data")
        else:
            with tempfile.TemporaryFile() as file:  # has lost its name already
                self.descriptor = os.dup(file.fileno())
        os.truncate(self.descriptor, count * self.stride)  # once: the system clears new memory page by page
        self._memory = mmap.mmap(self.descriptor, count * self.stride)
        self.free = collections.deque(range(count))

    def take(self, rows: Sequence[RowSpec]) -> tuple[int, np.ndarray]:
        """Return a free slot, its number and its array [B, H, W, C]; all but `rows` are zeros."""
        slot = self.free.pop()  # the one last used: the others may never take any memory
        images = np.ndarray(self.shape, self.dtype, self._memory, slot * self.stride)
        # Views, and JAX arrays that alias the memory, keep this very array alive.
        weakref.finalize(images, self.free.append, slot).atexit = False
        if len(rows) < len(images):
            images[np.setdiff1d(np.arange(len(images)), [spec.row for spec in rows])] = 0
        return slot, images


class Workers:
    """Fills batches of one shape, by threads of this process or by processes with threads; 0 cores: by the caller.

    `ahead` is the number of batches that are filled while another one is. `count` processes, or none, have an equal
    share of every batch, and end with this process, however it ends.
    """

    def __init__(self, cores: int, count: int, shape: Shape, config: FillConfig, ahead: int):
        if count:
            pickle.dumps(config)  # an object that cannot be sent raises here, before anything is started
        self._slots = _Slots(shape, config.form.dtype, ahead + 1 + HELD)
        self._threads = FillThreads(0 if count else cores, config)
        self._processes = [
            LoaderProcess(i, FillWork(shape, self._slots.stride, config, threads), self._slots.descriptor)
            for i, threads in enumerate(_shares(cores, count))
        ]

    def start(self, rows: Sequence[RowSpec]) -> tuple[np.ndarray, list[Future[list[Fault]]]]:
        """Start to fill `rows` of a new batch [B, H, W, C]; other rows are zeros. It is full when all are done.

        Each future returns the rows that could not be filled, or raises the error.
        """
        slot, images = self._slots.take(rows)
        if not self._processes:
            return images, self._threads.submit(images, rows)
        shares = zip(self._processes, split_rows(rows, len(self._processes)), strict=False)
        return images, [process.submit(slot, share) for process, share in shares]

    def keep(self, images: np.ndarray) -> np.ndarray:
        """Return the full batch for the caller to keep; a copy if it keeps so many that no slot would be left."""
        return images if self._slots.free else images.copy()

    def close(self) -> None:
        """Drop the work that has not started, and release the memory; batches that were handed out stay."""
        if self._processes and sys.is_finalizing():  # no thread can be joined any more; they end with this process
            return
        for process in self._processes:
            process.stop()
        for process in self._processes:
            process.join()
        self._threads.close()
        os.close(self._slots.descriptor)  # arrays that were handed out keep the memory


def describe_workers(cores: int, count: int, shape: Shape, dtype: np.dtype, ahead: int) -> str:
    """Describe workers in a sentence, with the memory of their batches on this host."""
    megabytes = math.prod(shape) * dtype.itemsize / 1e6
    threads = " + ".join(map(str, _shares(cores, max(count, 1))))
    who = f"{count} loader processes of {threads} threads" if count else f"{threads} loader threads"
    slots = ahead + 1 + HELD
    kind = "" if dtype == np.uint8 else f" ({dtype})"
    return f"{who}; {slots} batches of {megabytes:,.1f} MB{kind}, {slots * megabytes:,.0f} MB in all"


def loader_processes(cores: int, size: tuple[int, int], endless: bool) -> int:
    """Return the number of processes for so many cores; 0 are threads of this one.

    Images are of `size`, [H, W]. A single pass is over before processes for small ones would pay.
    """
    if sys.platform == "win32":  # it hands no file descriptors to a new process
        return 0
    few = min(cores, THREADS) if cores > 1 and endless and math.prod(size) <= SMALL else 0
    return max(few, -(-cores // THREADS) if cores > THREADS else 0)


def _shares(n: int, parts: int) -> list[int]:
    return [n // parts + (i < n % parts) for i in range(parts)]
