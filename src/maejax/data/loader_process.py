"""A process that fills rows of batches in shared memory, and the handle its parent has of it."""

import contextlib
import mmap
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple

import numpy as np

from maejax.data.fill import Fault, FillConfig, FillThreads, RowSpec, packed, unpacked
from maejax.errors import Failed

# A new interpreter runs no part of the caller's main module, and so never JAX.
_PROCESS = """
import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
from maejax.data.loader_process import serve
serve(connection, int(sys.argv[2]))
"""

Shape = tuple[int, int, int, int]  # B, H, W, C


class FillWork(NamedTuple):
    """The part of the work of a process that never changes; `stride` is the size of a slot in bytes."""

    shape: Shape
    stride: int
    config: FillConfig
    threads: int


class LoaderProcess:
    """A process, seen from its parent: tasks go out in the caller's thread, answers come back, in order, in another.

    A process that dies is started anew and repeats its unfinished tasks; if it dies again, they raise Failed.
    """

    def __init__(self, number: int, work: FillWork, descriptor: int):
        self._number, self._work, self._descriptor = number, work, descriptor
        self._lock = threading.Lock()
        self._open: deque[tuple[tuple[int, list[Any]], Future[list[Fault]]]] = deque()
        self._died: Failed | None = None
        self._stopping = False
        self._launch()
        self._thread = threading.Thread(target=self._receive, daemon=True, name=f"maejax-data-process-{number}")
        self._thread.start()

    def _launch(self) -> None:
        self._connection, theirs = Pipe()
        ours = theirs.fileno(), self._descriptor
        command = [sys.executable, "-c", _PROCESS, *map(str, ours)]
        # In a session of its own: Ctrl-C is for this process, which ends the others.
        self._process = subprocess.Popen(command, pass_fds=ours, stdin=subprocess.DEVNULL, start_new_session=True)
        theirs.close()
        self._send(sys.path)
        self._send(self._work)

    def _send(self, message: object) -> None:
        with contextlib.suppress(OSError):  # it died, as the receiving thread finds out too
            self._connection.send(message)

    def submit(self, slot: int, rows: Sequence[RowSpec]) -> Future[list[Fault]]:
        """Send `rows` to be filled in a slot; the future returns the faults or raises the error."""
        future: Future[list[Fault]] = Future()
        task = slot, packed(rows)
        with self._lock:
            if self._died:
                future.set_exception(self._died)
            else:
                self._open.append((task, future))
                self._send(task)
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
            f"loader process {self._number} (pid {self._process.pid}) died, {how}, and could not be replaced, or its "
            "replacement died too; if the host ran out of memory, lower --train-loader-workers or the batch size"
        )
        for _, future in self._open:
            future.set_exception(self._died)
        self._open.clear()

    def stop(self) -> None:
        """Ask the process to end."""
        with self._lock:
            self._stopping = True
            self._send(None)

    def join(self) -> None:
        """Wait until it has ended, up to 5 seconds, then kill it."""
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:  # in a read that never returns
            self._process.kill()
            self._process.wait()
        self._thread.join()
        self._connection.close()


def serve(connection: Connection, descriptor: int) -> None:
    """Fill rows for the process at the other end until it says stop, or is gone; the main function of a process."""
    work: FillWork = connection.recv()
    memory = mmap.mmap(descriptor, 0)
    threads = FillThreads(work.threads, work.config)
    answers: queue.SimpleQueue[list[Future[list[Fault]]]] = queue.SimpleQueue()
    threading.Thread(target=_answer, args=(connection, answers), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):
        while (task := connection.recv()) is not None:
            slot, columns = task
            answers.put(threads.submit(_batch(work, memory, slot), unpacked(columns)))
    os._exit(0)  # at once: threads may be in the middle of an image, or of a read that hangs


def _batch(work: FillWork, memory: mmap.mmap, slot: int) -> np.ndarray:
    return np.ndarray(work.shape, work.config.form.dtype, memory, slot * work.stride)


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
