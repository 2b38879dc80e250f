"""The output of a shell command."""

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

from maejax.errors import Failed, FetchError, Stopped
from maejax.storage.redact import redact
from maejax.storage.retry import Retry, RetryPolicy

CHUNK = 1 << 16
TRIES = 3
_POLL = 0.2  # seconds between looks at whether the reader is still there


def read_pipe(command: str, policy: RetryPolicy, stop: threading.Event) -> Generator[bytes, None, None]:
    """Yield the standard output of a bash command while it runs.

    The command is started again, `TRIES` times in all, if it fails or is silent for `policy.stall` seconds; bytes read
    before are skipped. A failure anywhere in a pipeline counts. The command has its own process group, which is killed
    when the reader closes. Raises FetchError with the last line of its standard error, or if two runs differ.
    """
    retry, done, checksum = Retry(policy, stop), 0, 0
    for trial in range(1, TRIES + 1):
        try:
            skip, seen = done, 0
            for chunk in _run(command, policy, stop):
                new = chunk[skip:]
                if skip:
                    seen = zlib.crc32(chunk[:skip], seen)
                    skip -= len(chunk) - len(new)
                    if not skip and seen != checksum:
                        raise FetchError("the command prints other bytes when it is started again")
                if new:
                    checksum = zlib.crc32(new, checksum)
                    done += len(new)
                    retry.progress()
                    yield new
            if skip:
                raise FetchError("the command prints less when it is started again")
            return
        except Failed as error:
            if trial == TRIES:
                raise FetchError(f"{error} ({TRIES} tries)") from None
            retry.wait(str(error))


def _run(command: str, policy: RetryPolicy, stop: threading.Event) -> Generator[bytes, None, None]:
    """Yield the output of one run. Raises Failed if the command fails or stalls."""
    shell, pipe, null = ["bash", "-o", "pipefail", "-c", command], subprocess.PIPE, subprocess.DEVNULL
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(shell, 0, stdin=null, stdout=pipe, stderr=errors, start_new_session=True) as process,
        selectors.DefaultSelector() as selector,
    ):
        try:
            assert process.stdout is not None
            selector.register(process.stdout, selectors.EVENT_READ)
            silent = 0.0
            while True:
                if stop.is_set():
                    raise Stopped
                if not selector.select(_POLL):
                    silent += _POLL
                    if silent >= policy.stall:
                        raise Failed(f"the command printed nothing for {policy.stall:g} s")
                    continue
                silent = 0.0
                chunk = os.read(process.stdout.fileno(), CHUNK)
                if not chunk:
                    break
                yield chunk
            if code := process.wait():
                raise Failed(f"the command ended with exit code {code}{_last_line(errors)}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _last_line(file: IO[bytes]) -> str:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 2000))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return f": {redact(lines[-1][:300])}" if lines else ""
