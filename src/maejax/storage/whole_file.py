"""Writing a file so that readers see all of it or none of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which takes the name `path` when the block ends.

    If the block raises, the temporary file is removed and `path` stays as it was. `shared` is for files that several
    processes may write at once: the temporary name then holds the process id.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part" if shared else f"{path.name}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
