"""Locks between processes, on a file: the system drops them when a process ends, however it ends."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from maejax.errors import Failed

SILENT = 3.0  # seconds of waiting without a word

_log = logging.getLogger("maejax.storage")


@contextmanager
def held(path: Path, what: str, remedy: str = "") -> Iterator[None]:
    """Hold what is made at a path, named `what` in messages, for this process alone.

    The lock is a hidden file beside the path, and is removed at the end. If another process has it, raises Failed with
    the name of the holder and the remedy; without a remedy, says so and waits for it. Raises OSError if the file cannot
    be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    made = not lock.parent.exists()
    with _lock(lock, what, remedy) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            if made and not any(lock.parent.iterdir()):
                with suppress(OSError):  # another process has just begun there
                    lock.parent.rmdir()  # nothing was made


def _wait(file: TextIO, what: str, holder: str) -> None:
    """Wait for a lock; says so once it takes long."""
    begun = time.monotonic()
    while time.monotonic() - begun < SILENT:
        with suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.05)
    _log.warning("waiting for %s, which has %s", holder, what)
    return fcntl.flock(file, fcntl.LOCK_EX)


def _lock(path: Path, what: str, remedy: str) -> TextIO:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            if remedy:
                file.close()
                raise Failed(f"{what} is held by {holder}; {remedy}") from None
            _wait(file, what, holder)
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()  # its holder ended between the two calls, and removed it
