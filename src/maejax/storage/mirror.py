"""A local mirror of a run in a bucket, filled from the bucket and copied back to it.

A path under `cache_folder()` mirrors a bucket address; for other paths these functions act on the path itself or do
nothing. Orbax writes to disks and gs:// only, and no file in a bucket can grow: so a run is written locally, and every
complete file is copied. Functions that talk to the bucket raise Failed if it does not answer.
"""

import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maejax.errors import Failed, FetchError, InputError
from maejax.storage.atomic import write_atomically, write_whole
from maejax.storage.bucket import open_system, shorten, try_bucket, version_of, within
from maejax.storage.cache import cache_folder, hash_file
from maejax.storage.lock import held

MARKER = "commit_success.txt"  # Orbax's name for the last file of a checkpoint; without it the checkpoint is incomplete
RESUMED = (
    "config.json",
    "metrics.jsonl",
    "wandb-run.txt",
    "reconstructions.json",
)  # the files that a resumed run needs beside a checkpoint
CHECKPOINTS = ("checkpoints", "best")  # folders that `publish` leaves to `send`
ANSWER_SECONDS = 120.0  # timeout of a request to a bucket
LEAST_RATE = 1e6  # bytes/s; a slower copy counts as stalled

_log = logging.getLogger("maejax.training")
_sent: dict[Path, tuple[int, int]] = {}  # size and time of each file at its last copy to the bucket
_sending = threading.Lock()


def work_folder(address: str, process: int) -> Path:
    """Return the local folder in which process number `process` of a run writes the run at an address."""
    return _mirror("runs", address, process)


def read_folder(address: str, process: int) -> Path:
    """Return a local folder with the small files of the run at an address; raises InputError if it is none."""
    try:
        open_system(address)
    except FetchError as error:
        raise InputError(f"{address}: {error}") from None
    folder = _mirror("read", address, process)
    for run in (folder, *folder.parents[:2]):  # the address may name a run, its `checkpoints`, or one checkpoint
        if address_of(run) and exists(run / "config.json"):
            _fetch_small(run)
            folder.mkdir(parents=True, exist_ok=True)
            return folder
    raise InputError(f"{address} has no config.json: name a run directory of maejax, one of its checkpoints, or a file")


def _mirror(use: str, address: str, process: int) -> Path:
    # Processes on one host have different folders, and so have writers and readers.
    scheme, _, rest = address.partition("://")
    return cache_folder().joinpath(use, str(process), scheme, *filter(None, rest.split("/")))


def address_of(path: Path) -> str:
    """Return the bucket address that a local path mirrors, "" if it mirrors none."""
    if not path.is_relative_to(cache_folder()):
        return ""
    use, _, scheme, *rest = *path.relative_to(cache_folder()).parts, "", "", ""
    inside = "/".join(filter(None, rest))
    return f"{scheme}://{inside}" if use in ("runs", "read") and inside else ""


def shown(path: Path) -> str:
    """Return a path as a user knows it: its bucket address if it mirrors one."""
    return address_of(path) or str(path)


def check(output_dir: str) -> None:
    """Check that a run may write, read and delete at --output-dir, if an address; raises InputError if not."""
    if "://" not in output_dir:
        return
    if output_dir.startswith("file://"):
        raise InputError(f"--output-dir {output_dir}: write the folder as it is, without file://")
    remedy = ""
    try:
        open_system(output_dir)
        remedy = "; see that the bucket is there, and that this host is logged in and may write, read and delete in it"
        try_bucket(output_dir)
    except FetchError as error:
        raise InputError(f"--output-dir {output_dir}: {error}{remedy}") from None


def refresh(folder: Path) -> None:
    """Empty the mirror of a run and fetch the run's small files; earlier local files are out of date."""
    if address_of(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _fetch_small(folder)


def _fetch_small(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in RESUMED:
        if exists(folder / name):
            with write_atomically(folder / name) as new:
                new.write_bytes(call("read", folder / name, lambda system, key: system.cat_file(key)))
                _sent[folder / name] = _state(new)


def exists(path: Path) -> bool:
    """Return whether a file exists, in the bucket if its path mirrors one."""
    if not address_of(path):
        return path.exists()

    def look(system: Any, key: str) -> bool:
        with suppress(FileNotFoundError):
            return system.info(key)["type"] == "file"
        return False

    return call("looked at", path, look)


def publish(folder: Path) -> None:
    """Copy all new and changed files of a run to the bucket, except its checkpoints."""
    if address_of(folder):
        _publish(sorted(_small_files(folder)))


def _small_files(folder: Path) -> Iterable[Path]:
    for where, folders, names in os.walk(folder):  # it passes over folders that go while it looks
        if Path(where) == folder:
            folders[:] = [name for name in folders if name not in CHECKPOINTS]
        yield from (Path(where, name) for name in names)


def publish_file(path: Path) -> None:
    """Copy one file to the bucket, if its path mirrors one and it has changed."""
    if address_of(path):
        _publish([path])


def _publish(paths: Iterable[Path]) -> None:
    with _sending, tempfile.TemporaryDirectory(prefix="maejax-copy-") as place:
        copy = Path(place, "copy")
        for path in paths:
            try:
                if path.is_symlink() or not path.is_file() or _sent.get(path) == _state(path):
                    continue
                state = _state(path)
                shutil.copyfile(path, copy)  # the original may grow while it is sent
            except FileNotFoundError:
                continue  # a temporary file, already gone
            _put(path, copy)
            _sent[path] = state


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@contextmanager
def published(folder: Path):
    """Publish a run when the block ends, also by an exception, which then takes precedence over Failed."""
    try:
        yield
    except BaseException:
        try:
            publish(folder)
        except Failed as error:
            _log.error("%s", error)
        raise
    publish(folder)


def saved_steps(directory: Path) -> list[int]:
    """List the complete checkpoints in the bucket folder that `directory` mirrors, oldest first."""
    return _complete(_files(directory))


def _complete(names: Iterable[str]) -> list[int]:
    found = (name.split("/") for name in names)
    return sorted(int(step) for step, *rest in found if step.isdigit() and rest == [MARKER])


def send(checkpoint: Path) -> None:
    """Copy a complete local checkpoint to the bucket, its marker last."""
    marker = checkpoint / MARKER
    if not marker.exists():
        marker.write_text("written whole\n")
    if _files(checkpoint):
        remove(checkpoint)  # the rest of an interrupted copy
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path != marker:
            _put(path, path)
    _put(marker, marker)


def bring(checkpoint: Path) -> Path:
    """Fetch a checkpoint from the bucket if it is missing here; return its local folder."""
    if not address_of(checkpoint):
        return checkpoint
    with held(checkpoint, shown(checkpoint)):
        found, record = _files(checkpoint), checkpoint.with_name(f"{checkpoint.name}.fetched")
        versions = {name: version_of(info) for name, info in found.items()}
        known = json.loads(record.read_text()) if record.is_file() else {}
        if known != {"versions": versions, "hashes": _hashes(checkpoint)}:
            part = checkpoint.with_name(f"{checkpoint.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            for name, info in found.items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                call("read", checkpoint / name, lambda s, key, to=part / name: s.get_file(key, str(to)), info["size"])
            shutil.rmtree(checkpoint, ignore_errors=True)
            part.replace(checkpoint)
            write_whole(record, json.dumps({"versions": versions, "hashes": _hashes(checkpoint)}))
    return checkpoint


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of all files below a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def prune(directory: Path, keep: int) -> None:
    """Delete incomplete checkpoints, and all complete ones but the newest `keep`."""
    names = _files(directory)
    steps = {int(step) for step, *_ in (name.split("/") for name in names) if step.isdigit()}
    for step in sorted(steps.difference(_complete(names)[-keep:])):
        remove(directory / str(step))


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint in a bucket, its marker first."""
    if exists(checkpoint / MARKER):
        call("deleted", checkpoint / MARKER, lambda system, key: system.rm_file(key))
    call("deleted", checkpoint, lambda system, key: system.rm(key, recursive=True))


def set_aside(checkpoint: Path, name: str) -> None:
    """Rename a checkpoint in a bucket."""
    for inside in _files(checkpoint):
        target = f"{shown(checkpoint.with_name(name))}/{inside}"
        call("renamed", checkpoint / inside, lambda system, key, to=target: system.cp_file(key, to))
    remove(checkpoint)


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what the file system says of all files below a folder in a bucket, by relative path."""
    found, key = call("listed", folder, lambda system, key: (system.find(key, detail=True), key))
    # Some file systems list folders too.
    files = {name: info for name, info in found.items() if info["type"] == "file" and not name.endswith("/")}
    return {name.lstrip("/").removeprefix(f"{key.lstrip('/')}/"): info for name, info in files.items()}


def _put(path: Path, source: Path) -> None:
    call("written", path, lambda system, key: system.put_file(str(source), key), source.stat().st_size)


def call(doing: str, path: Path, do: Callable[[Any, str], Any], size: int = 0) -> Any:
    """Call `do(system, key)` for a path and a file of `size` bytes; raises Failed if it fails or stalls."""
    address = address_of(path)
    try:
        system, key = open_system(address)
        system.invalidate_cache()  # its listings may be old
        return within(ANSWER_SECONDS + size / LEAST_RATE, threading.Event(), do, system, key)
    except Exception as error:  # every file system raises its own
        raise Failed(f"{address} cannot be {doing}: {shorten(error)}") from None
