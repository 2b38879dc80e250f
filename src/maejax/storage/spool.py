"""Fetching a shard in the background into a local file that grows, which readers follow as if it were whole."""

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from maejax.errors import FetchError, InputError, Stopped
from maejax.storage.bucket import read_bucket
from maejax.storage.http import read_web
from maejax.storage.pipe import read_pipe
from maejax.storage.redact import redact
from maejax.storage.retry import Patience

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

RESERVE = 1 << 30  # bytes of the disk that stay free
_LOOK = 64 << 20  # bytes between looks at the disk


class Spool:
    """The bytes of one shard, unpacked, in the local file `path`, which a thread of its own writes.

    Readers call `wait` before they read. The file lies in `folder` and its name begins with `stem`; with `keep` it
    stays there when it is whole, and the next spool of that stem finds it; else `close` removes it. `done` tells that
    no more bytes will come.
    """

    def __init__(
        self, address: str, folder: Path, stem: str, *, keep: bool, patience: Patience, reserve: int = RESERVE
    ):
        self.address = address
        self._folder = folder
        self._stem = stem
        self._keep = keep
        self._patience = patience
        self._reserve = reserve
        self._size = 0
        self._error: Exception | None = None
        self._news = threading.Condition()
        self._stop = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        kept = kept_file(folder, self._stem) if keep else None
        self.done = self._kept = kept is not None
        if kept is not None:
            self.path, self._size = kept, kept.stat().st_size
            return
        handle, name = tempfile.mkstemp(prefix=f"{self._stem}.", suffix=".part", dir=folder)
        self.path = Path(name)
        threading.Thread(target=self._run, args=(handle,), name="maejax-fetch", daemon=True).start()

    def wait(self, size: int) -> int:
        """Wait until `size` bytes are there or no more will come, and return how many there are.

        Raises FetchError, and InputError where the disk is full, once the bytes before the failure are used up.
        """
        with self._news:
            self._news.wait_for(lambda: self._size >= size or self.done)
            if self._size < size and self._error is not None:
                raise self._error
            return self._size

    def close(self) -> None:
        """Stop fetching, and remove the file unless it is kept; commands are killed with all they started."""
        self._stop.set()
        with self._news:
            if self._kept:
                return
            if self.done and self._keep and self._error is None and not self._whole().exists():
                self.path.replace(self._whole())
            self.path.unlink(missing_ok=True)

    def _whole(self) -> Path:
        return self._folder / f"{self._stem}.{self._size}.tar"

    def _run(self, handle: int) -> None:
        error: Exception | None = None
        try:
            with (
                os.fdopen(handle, "wb", buffering=0) as file,
                contextlib.closing(read_address(self.address, self._patience, self._stop)) as packed,
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
                    with self._news:
                        self._size += len(chunk)
                        self._news.notify_all()
        except (FetchError, InputError, Stopped) as caught:
            error = caught
        except OSError as caught:
            error = InputError(f"{self._folder}: cannot be written: {caught.strerror or caught}; free space there")
        except Exception as caught:
            error = FetchError(f"cannot be fetched: {redact(str(caught)) or type(caught).__name__}")
        with self._news:
            if isinstance(error, Stopped) or (error is not None and self._stop.is_set()):
                self.path.unlink(missing_ok=True)
                error = FetchError("closed while it was fetched")
            elif error is None and self._keep:
                # Readers hold the name of the growing file, so that name stays until this spool is closed.
                with contextlib.suppress(OSError):  # a file system without links: then at `close`
                    os.link(self.path, self._whole())
            elif self._stop.is_set():
                self.path.unlink(missing_ok=True)
            self._error, self.done = error, True
            self._news.notify_all()

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < self._reserve:
            raise InputError(
                f"{self._folder}: only {free / 1e9:.1f} GB are free there, and {self._reserve / 1e9:.1f} GB must stay; "
                "free some, or give --cache-dir on a larger disk"
            )


def read_address(address: str, patience: Patience, stop: threading.Event) -> Generator[bytes, None, None]:
    """Yield the bytes of a shard by its address: `pipe:` command, http(s), hf://, another fsspec address, local file.

    Raises FetchError.
    """
    if address.startswith("pipe:"):
        return read_pipe(address.removeprefix("pipe:"), patience, stop)
    if address.startswith(("http://", "https://", "hf://")):
        return read_web(address, patience, stop)
    if "://" in address:
        return read_bucket(address, patience, stop)
    return _read_file(Path(address))


def _read_file(path: Path) -> Generator[bytes, None, None]:
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(1 << 20):
                yield chunk
    except OSError as error:
        raise FetchError(error.strerror or str(error)) from None


def unpack(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Unpack gzip and zstd, told by their first bytes, of one or several parts; other bytes pass as they are.

    Raises FetchError for damage, for an early end, and for a web page in place of a file.
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 512:
            break
    rest = itertools.chain([head] if head else [], chunks)
    if head.startswith(b"\x1f\x8b"):
        return _inflate(rest, "gzip", lambda: _Gzip(), zlib.error)
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return _inflate(rest, "zstd", zstd.ZstdDecompressor, zstd.ZstdError)
    start = head.lstrip()[:512].lower()
    if start.startswith(b"<") and (b"<html" in start or b"<!doctype" in start or b"<?xml" in start):
        raise FetchError(f"is a web page, not a tar (starts with {head.lstrip()[:40]!r}); the address may need a login")
    return rest


class _Gzip:
    """zlib's decompressor with the interface of zstd's."""

    def __init__(self):
        self._inner = zlib.decompressobj(31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data


def _inflate(chunks: Iterator[bytes], kind: str, start: Callable, failure: type[Exception]) -> Iterator[bytes]:
    worker = start()
    begun = False  # within a part
    for chunk in chunks:
        while chunk or not worker.needs_input:
            try:
                data = worker.decompress(chunk, 1 << 20)
            except failure as error:
                raise FetchError(f"the {kind} data are damaged: {error}") from None
            begun, chunk = True, b""
            if data:
                yield data
            if worker.eof:
                chunk, worker, begun = worker.unused_data.lstrip(b"\0"), start(), False  # tar pads with zeros
    if begun:
        raise FetchError(f"the {kind} data end early")


def stem_of(address: str, *, with_secrets: bool = False) -> str:
    """Name the file that keeps a shard: what a reader recognises, and a hash of the address.

    Of what `redact` leaves of it, unless `with_secrets`: so the shard is found again when its address is signed anew.
    """
    identity = address if with_secrets else redact(address)
    name = re.sub(r"[^\w.-]+", "_", re.split(r"[?#\s]", redact(address).rpartition("/")[2])[0])[:60].strip("._")
    name = re.sub(r"\.(tgz|tar(\.\w+)?)$", "", name, flags=re.IGNORECASE)
    return f"{name or 'shard'}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def kept_file(folder: Path, stem: str) -> Path | None:
    """Find the whole file of a stem; its name says how long it must be."""
    for path in folder.glob(f"{stem}.*.tar"):
        size = path.name.removeprefix(f"{stem}.").removesuffix(".tar")
        if size.isdecimal() and path.stat().st_size == int(size):
            return path
    return None


def remove_leftovers(folder: Path) -> None:
    """Remove the half files of processes that were killed: those that nobody has written to for a day."""
    for path in folder.glob("*.part"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 86400:
                path.unlink()
