"""Weights at an address: fetched once to a path on this host."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import jax

from maejax.errors import FetchError, WeightsError
from maejax.storage import mirror
from maejax.storage.atomic import write_atomically
from maejax.storage.cache import cache_folder
from maejax.storage.read import read_address
from maejax.storage.redact import redact
from maejax.storage.retry import RetryPolicy
from maejax.storage.spool import stem_of

FILES = (".safetensors", ".msgpack", ".pth", ".pt", ".bin")  # anything else in a bucket is a run, a folder


class Fetched(NamedTuple):
    """A file of weights on this host: where it is, its bytes, and their SHA-256."""

    path: Path
    size: int
    sha256: str

    def describe(self, address: str) -> str:
        """Describe the file in a line."""
        return f"{redact(address)}: {self.size:,} bytes, sha256 {self.sha256}"


def fetch_weights(address: str, cache_dir: str = "") -> Fetched:
    """Fetch a file of weights once, from http(s)://, hf://OWNER/NAME/FILE, gs://, s3:// or any address of fsspec.

    `cache_dir` keeps it; empty: `weights` in the cache folder, ~/.cache/maejax or $XDG_CACHE_HOME/maejax. Raises
    WeightsError if it cannot be had.
    """
    folder = Path(cache_dir).expanduser() if cache_dir else cache_folder() / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    shown = redact(address)
    name = shown.split("?")[0].rpartition("/")[2]
    path = folder / f"{stem_of(address).rpartition('.')[2]}-{name}"
    if not path.exists():
        try:
            with write_atomically(path) as part, part.open("wb") as file:
                for chunk in read_address(address, RetryPolicy()):
                    file.write(chunk)
        except FetchError as error:
            raise WeightsError(f"{shown}: {error}") from None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Fetched(path, path.stat().st_size, digest)


def local(path: str, cache_dir: str = "") -> tuple[Path, str]:
    """Return a path on this host for a path or address, and a line on the file that was fetched, empty if none was.

    Raises InputError if nothing lies there or it cannot be had, and Failed if a bucket with a run does not answer.
    """
    if "://" not in str(path):
        return Path(path).expanduser(), ""
    if not str(path).startswith(("http://", "https://", "hf://")) and not str(path).split("#")[0].endswith(FILES):
        return mirror.read_folder(str(path), jax.process_index()), ""
    fetched = fetch_weights(str(path), cache_dir)
    if not (fetched.path.name.endswith("model.safetensors") and str(path).startswith("hf://")):
        return fetched.path, fetched.describe(str(path))
    config = fetch_weights(f"{str(path).rpartition('/')[0]}/config.json", cache_dir)
    folder = fetched.path.with_name(fetched.path.name.removesuffix(".safetensors"))
    folder.mkdir(exist_ok=True)
    files = {"model.safetensors": fetched.path, "config.json": config.path}
    name = "preprocessor_config.json"
    try:
        files[name] = fetch_weights(f"{str(path).rpartition('/')[0]}/{name}", cache_dir).path
    except WeightsError as error:
        if "HTTP 404" not in str(error):  # many models have none
            raise
    for name, source in files.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(source.absolute())
    return folder, fetched.describe(str(path))
