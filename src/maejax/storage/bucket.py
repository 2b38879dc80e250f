"""Files in buckets and in every other file system of fsspec."""

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

import fsspec

from maejax.errors import FetchError, Stopped, install
from maejax.storage.redact import redact
from maejax.storage.retry import Retry, RetryPolicy

CHUNK = 1 << 20
TRIAL_SECONDS = 60.0
_VERSIONS = ("etag", "ETag", "md5Hash", "generation", "mtime", "LastModified", "created")  # of the file systems
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}


def read_bucket(address: str, policy: RetryPolicy, stop: threading.Event) -> Generator[bytes, None, None]:
    """Yield the bytes of a file by its fsspec address (gs://, s3://, memory://, ...).

    After a failure, reading continues at the byte reached. Raises FetchError for a file that is missing or forbidden,
    for one that changed in between, and when the policy's time is up.
    """
    system, path = open_system(address)
    retry = Retry(policy, stop)
    done, version = 0, None
    while True:
        with retried(retry):
            system.invalidate_cache()  # its listings may be old
            info = within(policy.stall, stop, system.info, path)
            if version not in (None, version_of(info)):
                raise FetchError("the file changed while it was read; start again")
            version = version_of(info)
            file = within(policy.stall, stop, system.open, path, "rb", block_size=4 * CHUNK, cache_type="readahead")
            file.seek(done)
            while chunk := within(policy.stall, stop, file.read, CHUNK):
                done += len(chunk)
                retry.progress()
                yield chunk
            file.close()  # not after a failure: closing a stalled file would stall too
            if info.get("size") is None or done >= info["size"]:
                return
            retry.wait(f"ended at byte {done} of {info['size']}")


def identify_in_bucket(address: str, policy: RetryPolicy) -> str:
    """Return checksum or date, and size, of the file at an address of fsspec; raises FetchError."""
    system, path = open_system(address)
    stop = threading.Event()
    retry = Retry(policy, stop)
    while True:
        with retried(retry):
            system.invalidate_cache()
            return version_of(within(policy.stall, stop, system.info, path))


def version_of(info: dict[str, Any]) -> str:
    """Return checksum or date, and size, from what a file system says of a file."""
    return f"{next((info[key] for key in _VERSIONS if info.get(key)), '')} {info.get('size')}"


@contextmanager
def retried(retry: Retry) -> Iterator[None]:
    """Pause after an error that may pass; raises FetchError for one that will not."""
    try:
        yield
    except (FetchError, Stopped):
        raise
    except FileNotFoundError:
        raise FetchError("not found; correct the address") from None
    except PermissionError as error:
        raise FetchError(f"access denied: {shorten(error)}; log in, or ask for access") from None
    except Exception as error:  # every file system raises its own
        retry.wait(shorten(error))


def within(seconds: float, stop: threading.Event, function: Callable, *arguments: Any, **named: Any) -> Any:
    """Call a function with a timeout, which few file systems have themselves.

    Raises TimeoutError after `seconds`, Stopped soon after `stop` is set, and what the function raises. A call that
    ran out of time goes on in its daemon thread.
    """
    answer: Future = Future()

    def call() -> None:
        try:
            answer.set_result(function(*arguments, **named))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    deadline = time.monotonic() + seconds
    while not wait([answer], timeout=max(0.0, min(0.2, deadline - time.monotonic()))).done:
        if stop.is_set():
            raise Stopped
        if time.monotonic() >= deadline:
            raise TimeoutError(f"nothing came for {seconds:g} s")
    return answer.result()


def try_bucket(address: str) -> float:
    """Write, read and delete a small file in a folder of a bucket; return the seconds it took. Raises FetchError."""
    system, path = open_system(address)
    file, text = f"{path.rstrip('/')}/.maejax-{uuid.uuid4().hex}", b"written by maejax as a trial; can be deleted\n"
    begun, found = time.monotonic(), {}
    trials = (("written", system.pipe_file, text), ("read", system.cat_file), ("deleted", system.rm_file))
    for doing, function, *content in trials:
        try:
            found[doing] = within(TRIAL_SECONDS, threading.Event(), function, file, *content)
        except Exception as error:  # every file system raises its own
            raise FetchError(f"cannot be {doing}: {shorten(error)}") from None
        if found.get("read", text) != text:
            raise FetchError("a file reads otherwise than it was written")
    return time.monotonic() - begun


def list_bucket(pattern: str) -> list[str]:
    """List the files that match a pattern, as addresses, sorted. Raises FetchError."""
    system, path = open_system(pattern)
    scheme = pattern.partition("://")[0]
    try:
        found = system.glob(path)
    except Exception as error:
        raise FetchError(f"cannot be listed: {shorten(error)}") from None
    return sorted(f"{scheme}://{str(name).lstrip('/')}" for name in found)


def open_system(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of an address and the path in it; raises FetchError if scheme or package is missing."""
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs what it raises, with a trace
    scheme = address.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError:
        extra = _EXTRAS.get(scheme)
        what = install(extra) if extra else f"install what fsspec needs for {scheme}://"
        raise FetchError(f"{scheme}:// needs a package that is not installed; {what}") from None
    except ValueError:
        raise FetchError(f"{scheme}:// is no kind of address known here") from None


def shorten(error: Exception) -> str:
    """Return the first line of an error, without secrets."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return redact(re.sub(r"\s+", " ", first)[:300])
