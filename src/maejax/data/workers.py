"""Threads and processes that fill the rows of batches.

Decoding and resizing release the GIL, so up to `THREADS` cores are threads of this process. What holds the GIL feeds no
more (docs/notes/loader.md); beyond that there are processes, each with threads, that write rows into memory which
all share. That memory has no name in any file system: nothing is left of it, however a run ends.
"""

import collections
import contextlib
import math
import mmap
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from multiprocessing.connection import Connection, Pipe
from typing import NamedTuple, Protocol

import numpy as np

from maejax.data.fill import Fault, Filling, Row, fill
from maejax.errors import Failed

THREADS = 16  # of one process
HELD = 4  # batches that the caller may hold without a copy: one in use, two given to the device, one on the way out

_PAGE = 4096  # slots begin at a page: JAX on CPU takes over memory that is aligned to 64 bytes, and copies other
_PIECES = 4  # for each thread and batch: one per image would cost tiny images more than their decoding

# A new interpreter runs no part of the caller's main module, and so never JAX.
_PROCESS = """
import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
from maejax.data.workers import serve
serve(connection, int(sys.argv[2]))
"""

Shape = tuple[int, int, int, int]  # B, H, W, C


class Workers(Protocol):
    """What fills batches of one shape."""

    def start(self, rows: Sequence[Row]) -> tuple[np.ndarray, list[Future[list[Fault]]]]:
        """Begin to fill `rows` of a new batch, uint8 [B, H, W, C]; other rows are zeros. It is full when all are done.

        Each future gives the rows that could not be filled, or raises what went wrong.
        """
        ...

    def keep(self, images: np.ndarray) -> np.ndarray:
        """Return the full batch for the caller to keep as long as it likes."""
        ...

    def close(self) -> None:
        """End everything, done or not."""
        ...


def open_workers(cores: int, processes: int | None, shape: Shape, filling: Filling, ahead: int) -> Workers:
    """Start workers for `cores` cores, in `processes` processes (None: as many as it takes; 0: threads of this one).

    `ahead` is the number of batches that are filled while another one is. 0 cores are the calling thread.
    """
    count = _processes(cores, processes)
    slots = Slots(shape, ahead + 1 + HELD)
    if not cores:
        return Caller(slots, filling)
    return Processes(cores, count, slots, filling) if count else Threads(cores, slots, filling)


def describe_workers(cores: int, processes: int | None, shape: Shape, ahead: int) -> str:
    """Say in a sentence what `open_workers` starts, and the memory that its batches take at most on this host."""
    count, megabytes = _processes(cores, processes), math.prod(shape) / 1e6
    threads = " + ".join(map(str, _shares(cores, max(count, 1))))
    who = f"{count} loader processes of {threads} threads" if count else f"{threads} loader threads"
    slots = ahead + 1 + HELD
    return f"{who}; {slots} batches of {megabytes:,.1f} MB, {slots * megabytes:,.0f} MB in all"


def _processes(cores: int, processes: int | None) -> int:
    if processes is None:
        processes = -(-cores // THREADS) if cores > THREADS else 0
    # Windows hands no file descriptors to a new process.
    return 0 if sys.platform == "win32" else min(processes, cores)


def _shares(n: int, parts: int) -> list[int]:
    return [n // parts + (i < n % parts) for i in range(parts)]


def _cut(rows: Sequence[Row], parts: int) -> list[Sequence[Row]]:
    cuts = np.linspace(0, len(rows), parts + 1).astype(int).tolist()
    return [rows[a:b] for a, b in pairwise(cuts) if b > a]


def _keep_freed_memory() -> None:
    # glibc gives the pixels of an image back to the system and faults them in again for the next, a hundred pages an
    # image, until a block larger than these was freed: mallopt(3), M_MMAP_THRESHOLD, which goes up to 32 MiB.
    bytearray(31 << 20)


class Caller:
    """The calling thread; `Workers`."""

    def __init__(self, slots: "Slots", filling: Filling):
        self._slots = slots
        self._filling = filling

    def start(self, rows: Sequence[Row]) -> tuple[np.ndarray, list[Future[list[Fault]]]]:
        """Fill a batch in a slot that nobody holds."""
        _, images = self._slots.take(rows)
        done: Future[list[Fault]] = Future()
        done.set_result(fill(images, rows, self._filling))
        return images, [done]

    def keep(self, images: np.ndarray) -> np.ndarray:
        """Return the batch, or a copy where the caller holds so many that no slot would be left."""
        return images if self._slots.free else images.copy()

    def close(self) -> None:
        """Give up the memory."""
        self._slots.close()


class Threads:
    """Threads of this process; `Workers`."""

    def __init__(self, threads: int, slots: "Slots", filling: Filling):
        self._slots = slots
        self._filling = filling
        self._pieces = _PIECES * threads
        _keep_freed_memory()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="maejax-data")

    def start(self, rows: Sequence[Row]) -> tuple[np.ndarray, list[Future[list[Fault]]]]:
        """Begin to fill a batch in a slot that nobody holds."""
        _, images = self._slots.take(rows)
        return images, [self._executor.submit(fill, images, piece, self._filling) for piece in _cut(rows, self._pieces)]

    def keep(self, images: np.ndarray) -> np.ndarray:
        """Return the batch, or a copy where the caller holds so many that no slot would be left."""
        return images if self._slots.free else images.copy()

    def close(self) -> None:
        """Drop what has not begun and wait for the rest."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._slots.close()


class Processes:
    """Processes with threads; `Workers`.

    Each has an equal share of every batch. They end with this process, also when that is killed. One that dies is
    started anew and repeats what it had not finished; when it dies again, what it had to do raises Failed.
    """

    def __init__(self, cores: int, count: int, slots: "Slots", filling: Filling):
        pickle.dumps(filling)  # what cannot be sent raises here, before anything is started
        self._slots = slots
        first = _Work(slots.shape, slots.stride, filling)
        self.workers = [
            _Worker(i, first._replace(threads=threads), self._slots.descriptor)
            for i, threads in enumerate(_shares(cores, count))
        ]

    def start(self, rows: Sequence[Row]) -> tuple[np.ndarray, list[Future[list[Fault]]]]:
        """Begin to fill a batch in a slot that nobody holds."""
        slot, images = self._slots.take(rows)
        shares = _cut(rows, len(self.workers))
        return images, [worker.submit(slot, share) for worker, share in zip(self.workers, shares, strict=False)]

    def keep(self, images: np.ndarray) -> np.ndarray:
        """Return the batch, or a copy where the caller holds so many that no slot would be left."""
        return images if self._slots.free else images.copy()

    def close(self) -> None:
        """End the processes; batches that were handed out stay as they are."""
        if sys.is_finalizing():  # no thread can be joined any more; the processes end with this one
            return
        for worker in self.workers:
            worker.stop()
        for worker in self.workers:
            worker.join()
        self._slots.close()


class Slots:
    """Memory without a name for a fixed number of batches, each free again when no array uses it any more.

    New memory for every batch would cost more than writing it: the system clears it page by page.
    """

    def __init__(self, shape: Shape, count: int):
        self.shape = shape
        self.stride = -(-math.prod(shape) // _PAGE) * _PAGE
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("maejax-data")
        else:
            with tempfile.TemporaryFile() as file:  # has lost its name already
                self.descriptor = os.dup(file.fileno())
        os.truncate(self.descriptor, count * self.stride)
        self._memory = mmap.mmap(self.descriptor, count * self.stride)
        self.free = collections.deque(range(count))

    def take(self, rows: Sequence[Row]) -> tuple[int, np.ndarray]:
        """Return a free slot, its number and its array, uint8 [B, H, W, C]; all but `rows` are zeros."""
        slot = self.free.pop()  # the one last used: the others may never take any memory
        images = np.ndarray(self.shape, np.uint8, self._memory, slot * self.stride)
        # Views, and JAX arrays that alias the memory, keep this very array alive.
        weakref.finalize(images, self.free.append, slot).atexit = False
        if len(rows) < len(images):
            images[np.setdiff1d(np.arange(len(images)), [row.row for row in rows])] = 0
        return slot, images

    def close(self) -> None:
        """Give up the memory; arrays that were handed out keep it."""
        os.close(self.descriptor)


class _Work(NamedTuple):
    """What a process is told once."""

    shape: Shape
    stride: int
    filling: Filling
    threads: int = 0


class _Task(NamedTuple):
    slot: int
    rows: Sequence[Row]


class _Worker:
    """A process, seen from here: tasks go out in the caller's thread, answers come back, in order, in another."""

    def __init__(self, number: int, work: _Work, descriptor: int):
        self._number = number
        self._work = work
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._open: collections.deque[tuple[_Task, Future[list[Fault]]]] = collections.deque()
        self._died: Failed | None = None
        self._stopping = False
        self._launch()
        self._thread = threading.Thread(target=self._receive, daemon=True, name=f"maejax-data-process-{number}")
        self._thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _launch(self) -> None:
        self._connection, theirs = Pipe()
        descriptors = theirs.fileno(), self._descriptor
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROCESS, *map(str, descriptors)],
            pass_fds=descriptors,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which ends the others
        )
        theirs.close()
        self._send(sys.path)
        self._send(self._work)

    def _send(self, message: object) -> None:
        with contextlib.suppress(OSError):  # it died: the receiving thread sees it too, and sees to it
            self._connection.send(message)

    def submit(self, slot: int, rows: Sequence[Row]) -> Future[list[Fault]]:
        future: Future[list[Fault]] = Future()
        with self._lock:
            if self._died:
                future.set_exception(self._died)
            else:
                self._open.append((_Task(slot, rows), future))
                self._send(self._open[-1][0])
        return future

    def _receive(self) -> None:
        restarted = False
        while True:
            try:
                answer = self._connection.recv()
            except (EOFError, OSError):
                status = self._process.wait()
                with self._lock:
                    if self._stopping:
                        return
                    if restarted or not self._relaunch():
                        self._give_up(status)
                        return
                restarted = True
                continue
            with self._lock:
                _, future = self._open.popleft()
            if isinstance(answer, BaseException):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _relaunch(self) -> bool:
        self._connection.close()
        try:
            self._launch()
        except OSError:  # the host has no memory left, or no room for a process
            return False
        for task, _ in self._open:
            self._send(task)
        return True

    def _give_up(self, status: int) -> None:
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"with exit code {status}"
        self._died = Failed(
            f"loader process {self._number} (pid {self.pid}) died, {how}, and could not be replaced, or its "
            "replacement died too; if the host ran out of memory, lower --train-loader-workers or the batch size"
        )
        for _, future in self._open:
            future.set_exception(self._died)
        self._open.clear()

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
            self._send(None)

    def join(self) -> None:
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # in a read that never returns
            self._process.kill()
            self._process.wait()
        self._thread.join()
        self._connection.close()


def serve(connection: Connection, descriptor: int) -> None:
    """Fill rows for the process at the other end until it says stop, or is gone; the main function of a process."""
    work: _Work = connection.recv()
    memory = mmap.mmap(descriptor, 0)
    _keep_freed_memory()
    executor = ThreadPoolExecutor(work.threads)
    answers: queue.SimpleQueue[list[Future[list[Fault]]]] = queue.SimpleQueue()
    threading.Thread(target=_answer, args=(connection, answers), daemon=True).start()
    while True:
        try:
            task: _Task | None = connection.recv()
        except (EOFError, OSError):
            task = None
        if task is None:
            os._exit(0)  # at once: threads may be in the middle of an image, or of a read that hangs
        images = np.ndarray(work.shape, np.uint8, memory, task.slot * work.stride)
        pieces = _cut(task.rows, _PIECES * work.threads)
        answers.put([executor.submit(fill, images, piece, work.filling) for piece in pieces])


def _answer(connection: Connection, answers: queue.SimpleQueue[list[Future[list[Fault]]]]) -> None:
    while True:
        pieces = answers.get()
        answer: list[Fault] | BaseException
        try:
            answer = [fault for piece in pieces for fault in piece.result()]
        except BaseException as error:
            answer = error
        try:
            connection.send(answer)
        except OSError:  # the other process is gone, as the main thread finds out
            return
        except Exception:  # an error that cannot be pickled
            connection.send(RuntimeError(f"{type(answer).__name__} in a loader process: {answer}"))
