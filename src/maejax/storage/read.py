"""The bytes of a file by its address, of whatever kind: the entry to this room."""

import threading
from collections.abc import Generator
from pathlib import Path

from maejax.errors import FetchError
from maejax.storage.bucket import identify_in_bucket, read_bucket
from maejax.storage.http import identify_on_web, read_web
from maejax.storage.pipe import read_pipe
from maejax.storage.retry import RetryPolicy


def read_address(
    address: str, policy: RetryPolicy, stop: threading.Event | None = None
) -> Generator[bytes, None, None]:
    """Yield the bytes of a file by its address.

    The kinds of address are `pipe:COMMAND`, http(s)://, hf://, any other scheme of fsspec, and a local path. Raises
    FetchError if the file cannot be read, and Stopped soon after `stop` is set.
    """
    stop = stop or threading.Event()
    if address.startswith("pipe:"):
        return read_pipe(address.removeprefix("pipe:"), policy, stop)
    if address.startswith(("http://", "https://", "hf://")):
        return read_web(address, policy, stop)
    if "://" in address:
        return read_bucket(address, policy, stop)
    return _read_file(Path(address))


def identify(address: str, policy: RetryPolicy) -> str:
    """Return what the server calls this version of a file: its ETag or date, and its length.

    The text is another one once the file changes there. Raises FetchError if the server does not tell.
    """
    kind = identify_on_web if address.startswith(("http://", "https://", "hf://")) else identify_in_bucket
    return kind(address, policy)


def _read_file(path: Path) -> Generator[bytes, None, None]:
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(1 << 20):
                yield chunk
    except OSError as error:
        raise FetchError(error.strerror or str(error)) from None
