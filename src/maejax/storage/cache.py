"""The folder of this machine for copies that may be deleted between runs."""

import hashlib
import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/maejax, or ~/.cache/maejax: for fetched weights, mirrors of runs, copies of parquet."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path("~/.cache").expanduser().absolute()) / "maejax"


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
