"""Bytes that a shell command prints."""

import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import zlib
from collections.abc import Generator
from typing import IO

from maejax.errors import FetchError, Stopped
from maejax.storage.redact import redact
from maejax.storage.retry import Patience, Retry

CHUNK = 1 << 16
TRIES = 3
_POLL = 0.2  # seconds between looks at whether the reader is still there


def read_pipe(command: str, patience: Patience, stop: threading.Event) -> Generator[bytes, None, None]:
    """Yield what a bash command prints, while it runs.

    A command that fails (a pipe in it counts as a whole) or prints nothing for `patience.stall` seconds is started
    again, `TRIES` times in all, and what was read before is skipped. It runs in a process group of its own, which is
    killed when the reader closes. Raises FetchError with the last line of what it says, and where the second run
    prints other bytes than the first.
    """
    retry = Retry(patience, stop)
    done, checksum = 0, 0
    for trial in range(1, TRIES + 1):
        try:
            skip, seen = done, 0
            for chunk in _run(command, patience, stop):
                drop = min(skip, len(chunk))
                if drop:
                    seen = zlib.crc32(memoryview(chunk)[:drop], seen)
                    skip -= drop
                    if not skip and seen != checksum:
                        raise FetchError("the command prints other bytes when it is started again")
                if drop < len(chunk):
                    new = chunk[drop:]
                    checksum = zlib.crc32(new, checksum)
                    done += len(new)
                    retry.progress()
                    yield new
            if skip:
                raise FetchError("the command prints less when it is started again")
            return
        except _Failed as error:
            if trial == TRIES:
                raise FetchError(f"{error} ({TRIES} tries)") from None
            retry.wait(str(error))


class _Failed(Exception):
    """One run of the command went wrong."""


def _run(command: str, patience: Patience, stop: threading.Event) -> Generator[bytes, None, None]:
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            bufsize=0,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(process.stdout, selectors.EVENT_READ)
                silent = 0.0
                while True:
                    if stop.is_set():
                        raise Stopped
                    if not selector.select(_POLL):
                        silent += _POLL
                        if silent >= patience.stall:
                            raise _Failed(f"the command printed nothing for {patience.stall:g} s")
                        continue
                    silent = 0.0
                    chunk = os.read(process.stdout.fileno(), CHUNK)
                    if not chunk:
                        break
                    yield chunk
            code = process.wait()
            if code:
                raise _Failed(f"the command ended with exit code {code}{_last_line(said)}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.stdout.close()
            process.wait()


def _last_line(file: IO[bytes]) -> str:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 2000))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return f": {redact(lines[-1][:300])}" if lines else ""
