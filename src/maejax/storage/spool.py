"""A shard fetched in the background into a local file that grows while it is read."""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path

from maejax.errors import FetchError, InputError, Stopped
from maejax.storage.read import read_address
from maejax.storage.redact import redact
from maejax.storage.retry import RetryPolicy
from maejax.storage.unpack import unpack

RESERVE = 1 << 30  # bytes that stay free on the disk
_LOOK = 64 << 20  # bytes between two checks of the disk


class Spool:
    """The decompressed bytes of one shard in the local file `path`, written by a background thread.

    Readers call `wait` before they read. The file lies in `folder` and its name begins with `stem`. With `keep`, the
    complete file stays there and the next spool of that stem uses it; otherwise `close` removes it. `done` is True
    when no more bytes will come.
    """

    def __init__(
        self, address: str, folder: Path, stem: str, *, keep: bool, policy: RetryPolicy, reserve: int = RESERVE
    ):
        self._folder, self._stem, self._keep, self._reserve = folder, stem, keep, reserve
        self._size = 0
        self._error: Exception | None = None
        self._changed, self._stop = threading.Condition(), threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        kept = kept_file(folder, stem) if keep else None
        self.done = self._kept = kept is not None
        if kept is not None:
            self.path, self._size = kept, kept.stat().st_size
            return
        handle, name = tempfile.mkstemp(prefix=f"{stem}.", suffix=".part", dir=folder)
        self.path = Path(name)
        threading.Thread(target=self._run, args=(handle, address, policy), name="maejax-fetch", daemon=True).start()

    def wait(self, size: int) -> int:
        """Wait until `size` bytes are there or no more will come; return the number of bytes there.

        Bytes from before a failure are still served; beyond them, raises FetchError, or InputError for a full disk.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._size >= size or self.done)
            if self._size < size and self._error is not None:
                raise self._error
            return self._size

    def close(self) -> None:
        """Stop fetching, kill a command with all its children, and remove the file unless it is kept."""
        self._stop.set()
        with self._changed:
            if not self._kept:
                if self.done and self._keep and self._error is None and not self._final().exists():
                    self.path.replace(self._final())
                self.path.unlink(missing_ok=True)

    def _final(self) -> Path:
        return self._folder / f"{self._stem}.{self._size}.tar"

    def _run(self, handle: int, address: str, policy: RetryPolicy) -> None:
        error: Exception | None = None
        try:
            with (
                os.fdopen(handle, "wb", buffering=0) as file,
                contextlib.closing(read_address(address, policy, self._stop)) as packed,
            ):
                looked = -_LOOK
                for chunk in unpack(packed):
                    if self._stop.is_set():
                        raise Stopped
                    if self._size - looked >= _LOOK:
                        looked = self._size
                        self._check_disk()
                    view = memoryview(chunk)
                    while view:
                        view = view[file.write(view) :]
                    with self._changed:
                        self._size += len(chunk)
                        self._changed.notify_all()
        except (FetchError, InputError, Stopped) as caught:
            error = caught
        except OSError as caught:
            error = InputError(f"{self._folder}: cannot be written: {caught.strerror or caught}; free space there")
        except Exception as caught:
            error = FetchError(f"cannot be fetched: {redact(str(caught)) or type(caught).__name__}")
        with self._changed:
            if error is None and self._keep:
                # Readers hold the name of the growing file, so that name stays until this spool is closed.
                with contextlib.suppress(OSError):  # a file system without links: then at `close`
                    os.link(self.path, self._final())
            elif self._stop.is_set():
                self.path.unlink(missing_ok=True)
                error = error and FetchError("closed while it was fetched")
            self._error, self.done = error, True
            self._changed.notify_all()

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < self._reserve:
            raise InputError(
                f"{self._folder}: only {free / 1e9:.1f} GB are free there, and {self._reserve / 1e9:.1f} GB must stay; "
                "free some, or give --cache-dir on a larger disk"
            )


def stem_of(address: str, *, with_secrets: bool = False) -> str:
    """Return a file name for a shard: a readable part of its address, and a hash of the address.

    The hash is that of the redacted address, so a newly signed address finds the same file; `with_secrets` hashes the
    whole address.
    """
    identity = address if with_secrets else redact(address)
    name = re.sub(r"[^\w.-]+", "_", re.split(r"[?#\s]", redact(address).rpartition("/")[2])[0])[:60].strip("._")
    name = re.sub(r"\.(tgz|tar(\.\w+)?)$", "", name, flags=re.IGNORECASE)
    return f"{name or 'shard'}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def kept_file(folder: Path, stem: str) -> Path | None:
    """Return the complete file of a stem, None if there is none. Its name holds the length that it must have."""
    for path in folder.glob(f"{stem}.*.tar"):
        size = path.name.removeprefix(f"{stem}.").removesuffix(".tar")
        if size.isdecimal() and path.stat().st_size == int(size):
            return path
    return None


def remove_leftovers(folder: Path) -> None:
    """Remove the partial files of killed processes: those not written to for a day."""
    for path in folder.glob("*.part"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 86400:
                path.unlink()
