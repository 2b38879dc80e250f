"""Weights at an address: fetched once to a path on this host."""

import hashlib
import os
import threading
from pathlib import Path
from typing import NamedTuple

from maejax.errors import FetchError, WeightsError
from maejax.storage import mirror
from maejax.storage.redact import redact
from maejax.storage.retry import Patience
from maejax.storage.spool import read_address, stem_of

CACHE = "~/.cache/maejax/weights"
FILES = (".safetensors", ".msgpack", ".pth", ".pt", ".bin")  # anything else in a bucket is a run, a folder


class Fetched(NamedTuple):
    """A file of weights on this host: where it is, its bytes, and their SHA-256."""

    path: Path
    size: int
    sha256: str

    def told(self, address: str) -> str:
        """Describe the file in a line."""
        return f"{redact(address)}: {self.size:,} bytes, sha256 {self.sha256}"


def fetch_weights(address: str, cache_dir: str = "") -> Fetched:
    """Fetch a file of weights once, from http(s)://, hf://OWNER/NAME/FILE, gs://, s3:// or any address of fsspec.

    `cache_dir` keeps it; empty: ~/.cache/maejax/weights. Raises WeightsError if it cannot be had.
    """
    folder = Path(cache_dir or CACHE).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    shown = redact(address)
    name = shown.split("?")[0].rpartition("/")[2]
    path = folder / f"{stem_of(address).rpartition('.')[2]}-{name}"
    if not path.exists():
        part = path.with_name(path.name + f".{threading.get_ident()}.part")
        try:
            with part.open("wb") as file:
                for chunk in read_address(web_address(address), Patience(), threading.Event()):
                    file.write(chunk)
            part.replace(path)
        except FetchError as error:
            raise WeightsError(f"{shown}: {error}") from None
        finally:
            part.unlink(missing_ok=True)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Fetched(path, path.stat().st_size, digest)


def web_address(address: str) -> str:
    """Return the http address of hf://OWNER/NAME[@REVISION]/FILE, a model's file; others stay as they are."""
    if not address.startswith("hf://") or address.startswith("hf://datasets/"):
        return address
    parts = address.removeprefix("hf://").removeprefix("models/").split("/", 2)
    if len(parts) < 3:
        raise WeightsError(f"{address} is no address of a file; write hf://OWNER/NAME/FILE")
    name, _, revision = parts[1].partition("@")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{endpoint}/{parts[0]}/{name}/resolve/{revision or 'main'}/{parts[2]}"


def local(path: str, cache_dir: str = "") -> tuple[Path, str]:
    """Return a path on this host for a path or address, and a line on the file that was fetched, empty if none was.

    Raises InputError if nothing lies there or it cannot be had, and Failed if a bucket with a run does not answer.
    """
    if "://" not in str(path):
        return Path(path).expanduser(), ""
    if not str(path).startswith(("http://", "https://", "hf://")) and not str(path).split("#")[0].endswith(FILES):
        return mirror.read_folder(str(path)), ""
    fetched = fetch_weights(str(path), cache_dir)
    if not (fetched.path.name.endswith("model.safetensors") and str(path).startswith("hf://")):
        return fetched.path, fetched.told(str(path))
    config = fetch_weights(f"{str(path).rpartition('/')[0]}/config.json", cache_dir)
    folder = fetched.path.with_name(fetched.path.name.removesuffix(".safetensors"))
    folder.mkdir(exist_ok=True)
    for source, name in ((fetched.path, "model.safetensors"), (config.path, "config.json")):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(source.absolute())
    return folder, fetched.told(str(path))
