"""Locks between processes, on a file: the system drops them when a process ends, however it ends."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from maejax.errors import Failed


@contextmanager
def held(path: Path, what: str, remedy: str) -> Iterator[None]:
    """Hold what is made at a path, named `what` in messages, for this process alone.

    The lock is a hidden file beside the path, and is removed at the end. Raises Failed, with the name of the holder and
    the remedy, if another process has it, and OSError if the file cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    made = not lock.parent.exists()
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _lock(lock, what, remedy) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            if made and not any(lock.parent.iterdir()):
                lock.parent.rmdir()  # nothing was made


def _lock(path: Path, what: str, remedy: str) -> TextIO:
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read().strip() or "another process"
            raise Failed(f"{what} is held by {holder}; {remedy}") from None
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()  # its holder ended between the two calls, and removed it
