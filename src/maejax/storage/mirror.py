"""A run in a bucket: the folder of this host that stands for it, filled from the bucket and copied back to it.

Orbax writes to disks and to gs:// alone, and in no bucket can a file grow. So the work is done in a folder of this
host, and what is whole is copied. That a folder stands for an address is seen from where it lies, so nothing else needs
to know of it: for any other folder, what is here does nothing, or looks at the folder itself.
"""

import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from maejax.errors import Failed, FetchError, InputError
from maejax.storage.bucket import open_system, shorten, try_bucket, within

CACHE = "~/.cache/maejax"
MARKER = "commit_success.txt"  # the last file of a checkpoint, by Orbax's name for it: without it, it is half of one
RESUMED = ("config.json", "metrics.jsonl", "wandb-run.txt")  # what a run that goes on needs beside a checkpoint
APART = ("checkpoints", "best")  # are copied by `send`
ANSWER_SECONDS = 120.0  # in which a bucket answers
LEAST_RATE = 1e6  # bytes/s; a copy that is slower has stalled

_log = logging.getLogger("maejax.training")
_sent: dict[Path, tuple[int, int]] = {}  # size and time of the files that are in the bucket as they are here
_sending = threading.Lock()


def work_folder(address: str) -> Path:
    """Give the folder of this host in which this process writes the run at an address."""
    return _root("runs").joinpath(*_parts(address))


def read_folder(address: str) -> Path:
    """Give the folder of this host to read the run at an address from, or a folder of it; its small files are fetched.

    Raises:
        InputError: nothing lies there.
        Failed: the bucket does not answer.

    """
    _try_open(address, address)
    folder = _root("read").joinpath(*_parts(address))
    for run in (folder, *folder.parents[:2]):  # as `locate` looks for it
        if address_of(run) and exists(run / "config.json"):
            _fetch_small(run)
            folder.mkdir(parents=True, exist_ok=True)
            return folder
    raise InputError(f"{address} has no config.json: name a run directory of maejax, one of its checkpoints, or a file")


def _cache() -> Path:
    return Path(CACHE).expanduser().absolute()


def _root(use: str) -> Path:
    # Processes of one host must not write to the same folder, nor a reader to that of a writer.
    return _cache() / use / str(jax.process_index())


def _parts(address: str) -> tuple[str, ...]:
    scheme, _, rest = address.partition("://")
    return scheme, *filter(None, rest.split("/"))


def address_of(path: Path) -> str:
    """Give the address that a folder or file of this host stands for; "" if it stands for itself."""
    if not path.is_relative_to(_cache()):
        return ""
    use, _, scheme, *rest = *path.relative_to(_cache()).parts, "", "", ""
    inside = "/".join(filter(None, rest))
    return f"{scheme}://{inside}" if use in ("runs", "read") and inside else ""


def shown(path: Path) -> str:
    """Name a folder or file as people know it: by its address, if it stands for one."""
    return address_of(path) or str(path)


def check(output_dir: str) -> None:
    """See that a run can write, read and delete below --output-dir, if that is an address.

    Raises:
        InputError: it cannot, or a package is missing; the message says which.

    """
    if "://" not in output_dir:
        return
    if output_dir.startswith("file://"):
        raise InputError(f"--output-dir {output_dir}: write the folder as it is, without file://")
    _try_open(output_dir, f"--output-dir {output_dir}")
    try:
        try_bucket(output_dir)
    except FetchError as error:
        raise InputError(
            f"--output-dir {output_dir}: {error}; see that the bucket is there, and that this host is logged in and "
            "may write, read and delete in it"
        ) from None


def _try_open(address: str, what: str) -> None:
    try:
        open_system(address)
    except FetchError as error:
        raise InputError(f"{what}: {error}") from None


def refresh(folder: Path) -> None:
    """Begin anew with what the bucket has of a run: its small files; all else in the folder is of another time.

    Raises:
        Failed: the bucket does not answer.

    """
    if address_of(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _fetch_small(folder)


def _fetch_small(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in RESUMED:
        if exists(folder / name):
            new = folder / f"{name}.new"
            new.write_bytes(_call("read", folder / name, lambda system, key: system.cat_file(key)))
            _sent[folder / name] = _state(new)
            new.replace(folder / name)


def exists(path: Path) -> bool:
    """Tell whether a file is there: in the bucket, where its folder stands for one."""
    if not address_of(path):
        return path.exists()

    def look(system: Any, key: str) -> bool:
        try:
            return system.info(key)["type"] == "file"
        except FileNotFoundError:
            return False

    return _call("looked at", path, look)


def publish(folder: Path) -> None:
    """Copy all files of a run that are new or have changed, but no checkpoints.

    Raises:
        Failed: some cannot be written.

    """
    if not address_of(folder):
        return
    with _sending, tempfile.TemporaryDirectory(prefix="maejax-copy-") as place:
        for path in sorted(folder.rglob("*")):
            if path.relative_to(folder).parts[0] not in APART:
                _publish_file(path, Path(place) / "copy")


def publish_file(path: Path) -> None:
    """Copy one file; for the rest see `publish`."""
    if address_of(path):
        with _sending, tempfile.TemporaryDirectory(prefix="maejax-copy-") as place:
            _publish_file(path, Path(place) / "copy")


def _publish_file(path: Path, copy: Path) -> None:
    try:
        if path.is_symlink() or not path.is_file() or _sent.get(path) == _state(path):
            return
        state = _state(path)
        shutil.copyfile(path, copy)  # what grows while it is sent would not be what it was said to be
    except FileNotFoundError:
        return  # was for a moment only
    _put(path, copy)
    _sent[path] = state


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@contextmanager
def published(folder: Path):
    """Publish a run when it ends, however it ends.

    Raises:
        Failed: it cannot be written, and nothing else went wrong.

    """
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
    """List the checkpoints that are whole in a folder that stands for one in a bucket, oldest first.

    Raises:
        Failed: the bucket does not answer.

    """
    return _whole(_files(directory))


def _whole(names: Iterable[str]) -> list[int]:
    found = (name.split("/") for name in names)
    return sorted(int(step) for step, *rest in found if step.isdigit() and rest == [MARKER])


def send(checkpoint: Path) -> None:
    """Copy a checkpoint that is whole here, its marker last.

    Raises:
        Failed: it cannot be written.

    """
    marker = checkpoint / MARKER
    if not marker.exists():
        marker.write_text("written whole\n")
    if _files(checkpoint):
        remove(checkpoint)  # half of it is there
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path != marker:
            _put(path, path)
    _put(marker, marker)


def bring(checkpoint: Path) -> Path:
    """See that a checkpoint that is in a bucket is here too, and return its folder.

    Raises:
        Failed: it cannot be read.

    """
    if not address_of(checkpoint):
        return checkpoint
    wanted = _files(checkpoint)
    here = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*") if path.is_file()}
    if wanted != {name: path.stat().st_size for name, path in here.items()}:
        half = checkpoint.with_name(f"{checkpoint.name}.part")
        shutil.rmtree(half, ignore_errors=True)
        for name, size in wanted.items():
            (half / name).parent.mkdir(parents=True, exist_ok=True)
            _call("read", checkpoint / name, lambda s, key, to=half / name: s.get_file(key, str(to)), size)
        shutil.rmtree(checkpoint, ignore_errors=True)
        half.replace(checkpoint)
    return checkpoint


def prune(directory: Path, keep: int) -> None:
    """Delete halves of checkpoints, and those that are whole but for the newest `keep`.

    Raises:
        Failed: they cannot be deleted.

    """
    names = _files(directory)
    kept = _whole(names)[-keep:]
    for step in sorted({int(name.split("/")[0]) for name in names if name.split("/")[0].isdigit()} - set(kept)):
        remove(directory / str(step))


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint in a bucket, its marker first; raises Failed."""
    if exists(checkpoint / MARKER):
        _call("deleted", checkpoint / MARKER, lambda system, key: system.rm_file(key))
    _call("deleted", checkpoint, lambda system, key: system.rm(key, recursive=True))


def set_aside(checkpoint: Path, name: str) -> None:
    """Give a checkpoint in a bucket another name; raises Failed."""
    for inside in _files(checkpoint):
        target = f"{shown(checkpoint.with_name(name))}/{inside}"
        _call("renamed", checkpoint / inside, lambda system, key, to=target: system.cp_file(key, to))
    remove(checkpoint)


def _files(folder: Path) -> dict[str, int]:
    """List what lies below a folder in a bucket, by its path in there: bytes."""

    def find(system: Any, key: str) -> dict[str, int]:
        found = system.find(key, detail=True)
        return {
            name.lstrip("/").removeprefix(f"{key.lstrip('/')}/"): told["size"]
            for name, told in found.items()
            if told["type"] == "file" and not name.endswith("/")  # some list folders too
        }

    return _call("listed", folder, find)


def _put(path: Path, source: Path) -> None:
    _call("written", path, lambda system, key: system.put_file(str(source), key), source.stat().st_size)


def _call(doing: str, path: Path, do: Callable[[Any, str], Any], size: int = 0) -> Any:
    """Call `do(system, key)` for what a path stands for; `size` is of what is copied.

    Raises:
        Failed: it failed, or took so long that it has stalled.

    """
    address = address_of(path)
    try:
        system, key = open_system(address)
        system.invalidate_cache()  # what was listed before may be old
        return within(ANSWER_SECONDS + size / LEAST_RATE, threading.Event(), do, system, key)
    except Exception as error:  # every file system raises its own
        raise Failed(f"{address} cannot be {doing}: {shorten(error)}") from None
