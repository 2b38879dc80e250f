"""Weights at an address: fetched to a path on this host, and again when they change there or are damaged here."""

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import jax

from maejax.errors import Failed, FetchError, WeightsError
from maejax.storage import mirror
from maejax.storage.atomic import write_atomically, write_whole
from maejax.storage.cache import cache_folder, hash_file
from maejax.storage.http import list_hf
from maejax.storage.lock import held
from maejax.storage.read import identify, read_address
from maejax.storage.redact import redact
from maejax.storage.retry import RetryPolicy
from maejax.weights.containers import FILES as MODEL_FILES
from maejax.weights.containers import TIMM_FILE, weight_map

FILES = (".safetensors", ".msgpack", ".pth", ".pt", ".bin", ".index.json")  # else, in a bucket, it is a run
PIN = "#sha256="
REPOSITORY = re.compile(r"hf://(?!datasets/)(?:models/)?[^/@]+/([^/@]+)(?:@[^/]+)?/?")
ASKING = RetryPolicy(connect=5, stall=5, total=5)  # whether a file that is here has changed


class Fetched(NamedTuple):
    """A file of weights on this host: its bytes, their SHA-256, and the `identity` that its address gave it."""

    path: Path
    size: int
    sha256: str
    identity: str = ""
    notice: str = ""

    def describe(self, address: str) -> str:
        """Describe the file in a line."""
        return f"{redact(address)}: {self.size:,} bytes, sha256 {self.sha256}{self.notice}"


def fetch_weights(address: str, cache_dir: str = "") -> Fetched:
    """Fetch a file of weights once, from http(s)://, hf://OWNER/NAME/FILE, gs://, s3:// or any address of fsspec.

    `cache_dir` keeps it; empty: `weights` in the cache folder, ~/.cache/maejax or $XDG_CACHE_HOME/maejax. It is fetched
    again if it was damaged since or if the server names another version. `#sha256=HEX` after the address pins the
    content. Raises WeightsError if it cannot be had, and Failed if it cannot be kept.
    """
    address, pin = split_pin(address)
    path = place_of(address, place_for(cache_dir))
    try:
        with held(path, redact(address)):
            return fetch_alone(address, path, pin)
    except FetchError as error:
        raise WeightsError(f"{redact(address)}: {error}") from None
    except OSError as error:
        raise Failed(f"{path} cannot be kept: {error.strerror or error}; free space, or set XDG_CACHE_HOME") from None


def fetch_alone(address: str, path: Path, pin: str) -> Fetched:
    """Fetch a file to a path that no other process uses, unless a good copy is there; raises FetchError."""
    kept, identity, notice = read_kept(path), "", ""
    if kept is not None and (pin == kept.sha256 or re.match(r"hf://[^@]+@[0-9a-f]{40}/", address)):
        return kept
    try:
        identity = identify(address, RetryPolicy() if kept is None else ASKING)
    except FetchError as error:
        if kept is None:
            raise
        identity, notice = kept.identity, f"; a copy from before, since there is now: {error}"
    if kept is None or identity != kept.identity or pin:
        with write_atomically(path) as part, part.open("wb") as file:
            for chunk in read_address(address, RetryPolicy()):
                file.write(chunk)
            file.flush()
            digest = hash_file(part)
            if pin and pin != digest:
                raise FetchError(f"its SHA-256 is {digest}, not the one after {PIN}; correct the pin or the address")
            kept = Fetched(path, part.stat().st_size, digest, identity)
            write_whole(record_of(path), json.dumps({"sha256": digest, "identity": identity}))
    return kept._replace(notice=notice)


def split_pin(address: str) -> tuple[str, str]:
    """Split the SHA-256 after `#sha256=` off an address, "" without one; raises WeightsError if it is none."""
    address, mark, pin = address.partition(PIN)
    if mark and not re.fullmatch("[0-9a-f]{64}", pin := pin.lower()):
        raise WeightsError(f"{redact(address)}{PIN}: give the 64 hexadecimal digits that sha256sum prints")
    return address, pin


def place_of(address: str, folder: Path) -> Path:
    """Return the file for an address: two addresses never share one, and files of one folder stay side by side."""
    bare, mark, query = address.partition("?")
    parent, _, name = bare.rpartition("/")
    name = quote(name, safe="")
    return (
        folder
        / hashlib.sha256(f"{parent}{mark}{query}".encode()).hexdigest()[:16]
        / ((name.strip(".") and name) or "_")
    )


def record_of(path: Path) -> Path:
    """Return the file that keeps what is known about a fetched file."""
    return path.with_name(f".{path.name}.fetched")


def read_kept(path: Path) -> Fetched | None:
    """Return the file that was fetched to a path, None if there is none, or if its bytes are others now."""
    try:
        record, digest = json.loads(record_of(path).read_text()), hash_file(path)
    except (FileNotFoundError, ValueError):
        return None
    return Fetched(path, path.stat().st_size, digest, record["identity"]) if digest == record["sha256"] else None


def place_for(cache_dir: str) -> Path:
    """Return the folder that keeps what is fetched."""
    return Path(cache_dir).expanduser() if cache_dir else cache_folder() / "weights"


def file_in_repository(address: str, folder: Path) -> str:
    """Return the address of the weights in a repository of the hub, hf://OWNER/NAME or hf://OWNER/NAME@REVISION.

    They are those that transformers or timm loads, else the only file of weights. Without an answer they are those that
    were fetched to `folder` before. Raises WeightsError if there are none, or several.
    """
    usual = [f"{address}/{name}" for name in (*MODEL_FILES, TIMM_FILE)]
    kept = [file for file in usual if place_of(file, folder).is_file()]
    try:
        listed = list_hf(f"{address}/*", ASKING if kept else RetryPolicy())
    except FetchError as error:
        if kept:
            return kept[0]
        raise WeightsError(f"{redact(address)}: {error}") from None
    names = [match[1] for file in listed if (match := re.fullmatch(r"hf://[^/]+/[^/]+/([^/]+)", file))]
    if found := next((file for file in usual if file.rpartition("/")[2] in names), None):
        return found
    if len(others := [name for name in names if name.endswith(FILES)]) == 1:
        return f"{address}/{others[0]}"
    said = f"several files of weights: name one, {address}/{others[0]}" if others else "no weights: correct the name"
    raise WeightsError(f"{address} holds {said}")


def named_in(path: str) -> str:
    """Return the name of the repository of the hub that an address names, empty for another path."""
    found = REPOSITORY.fullmatch(path.partition("#")[0])
    return found[1] if found else ""


def local(path: str, cache_dir: str = "") -> tuple[Path, str]:
    """Return a path on this host for a path or address, and a line on the file that was fetched, empty if none was.

    Raises InputError if nothing lies there or it cannot be had, and Failed if a bucket with a run does not answer.
    """
    if "://" not in str(path):
        return Path(path).expanduser(), ""
    address, pin = split_pin(str(path))
    if REPOSITORY.fullmatch(address):
        address = file_in_repository(address.rstrip("/"), place_for(cache_dir))
        path = address + (PIN + pin if pin else "")
    if not address.startswith(("http://", "https://", "hf://")) and not address.endswith(FILES):
        return mirror.read_folder(address, jax.process_index()), ""
    fetched, folder = fetch_weights(str(path), cache_dir), address.rpartition("/")[0]
    parts = sorted(set(weight_map(fetched.path).values())) if address.endswith(".index.json") else []
    for name in parts:
        fetch_weights(f"{folder}/{name}", cache_dir)
    said = fetched.describe(address) + (f"; and the {len(parts)} parts that it names" if parts else "")
    if not (address.startswith("hf://") and fetched.path.name.startswith(("model.", "pytorch_model."))):
        return fetched.path, said
    for name in ("config.json", "preprocessor_config.json"):
        try:
            fetch_weights(f"{folder}/{name}", cache_dir)
        except WeightsError as error:
            if "HTTP 404" not in str(error):  # many models have none of the second
                raise
    return fetched.path, said
