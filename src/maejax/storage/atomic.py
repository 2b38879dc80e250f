"""Files that are written whole or not at all."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; when the block ends, rename it to `path`.

    If the block raises, the temporary file is removed and `path` keeps its old content. Readers see the old file or
    the new one, never a part. Its name ends in `.part` and is unique to this thread.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write text, as UTF-8, or bytes to a file by `write_atomically`."""
    with write_atomically(path) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)
