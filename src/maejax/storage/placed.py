"""Files of a command that belong in a bucket: written to this machine, then copied there, the index last.

Files whose time of change is 0 are what the bucket has: they are fetched anew by each command, and never sent.
"""

import fnmatch
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from maejax.errors import Failed, FetchError, InputError
from maejax.storage.bucket import open_system, shorten, try_bucket, within
from maejax.storage.cache import cache_folder
from maejax.storage.redact import redact

ANSWER_SECONDS, LEAST_RATE = 120.0, 1e6  # of a request, and bytes/s below which a copy counts as stalled
LAST = (".json", ".html")  # suffixes of what says that the rest is there
FETCHED = ".fetched"  # suffix of what is being fetched
NEVER_SENT = (".lock", FETCHED)

_log = logging.getLogger("maejax.storage")
_active: list["Place"] = []  # of the command that runs


@contextmanager
def placed(
    flag: str, address: str, owner: str, *, folder: bool, bring: Sequence[str], sends: Callable[[], bool]
) -> Iterator[Path]:
    """Yield a local path that stands for a file or a folder at an address, and copy what is new to the address.

    Of what is there already, files whose names match a pattern of `bring` are copied here first; of all others a
    stand-in of the same size, without content and without taking room. The local copies are removed when all is there.
    Of several processes, that alone copies of which `sends` is true in the end.
    After a failure they are kept, so that the same command goes on with them: `owner` is a name that no other command
    has, for parts of one job may write at the same time. Raises InputError if nothing can be
    written at the address, Failed if a copy fails.
    """
    place = Place(flag, address, owner, folder)
    place.fetch(bring)
    _active.append(place)
    try:
        yield place.path
    finally:
        _active.remove(place)
    if sends():
        place.send()


def hand_over(path: Path) -> None:
    """Copy a finished file to its address at once, and leave a stand-in, if it belongs to a bucket.

    For files that the command does not read again: not all of them need room here. Raises Failed if the copy fails.
    """
    for place in _active:
        place.hand_over(path)


def is_placed(folder: Path) -> bool:
    """Return whether what is written into a folder belongs to a bucket."""
    return any(folder.absolute().is_relative_to(place.path) for place in _active)


class Place:
    """A file or folder at an address, and its `path` on this machine."""

    def __init__(self, flag: str, address: str, owner: str, folder: bool):
        scheme, _, rest = address.partition("://")
        if scheme == "file":
            raise InputError(f"{flag} {address}: write the path as it is, without file://")
        self.shown, self._folder = redact(address), folder
        parent = address.rstrip("/") if folder else address.rpartition("/")[0]
        remedy = ""
        try:
            self._system, self._key = open_system(parent)
            remedy = "; see that this host may write and delete there"
            try_bucket(parent)
        except FetchError as error:
            raise InputError(f"{flag} {self.shown}: {error}{remedy}") from None
        parts = [part for part in parent.partition("://")[2].split("/") if part not in ("", ".", "..")]
        self._local = cache_folder().joinpath("writes", owner, scheme, *parts)
        self.path = self._local if folder else self._local / rest.rpartition("/")[2]
        self._there: list[Path] = []  # of the bucket, as local paths

    def fetch(self, bring: Sequence[str]) -> None:
        """Copy what the command reads of what is there, and make stand-ins for the rest."""
        self._local.mkdir(parents=True, exist_ok=True)
        for path in self._local.rglob("*"):
            if path.is_file() and (not _is_ours(path) or path.suffix == FETCHED):  # of a command that failed
                path.unlink()
        found = self._call("listed", lambda: self._system.find(self._key, detail=True))
        for key, info in found.items():
            name = str(key).lstrip("/").removeprefix(self._key.strip("/")).lstrip("/")
            own = self._folder or ("/" not in name and name.startswith(self.path.stem))
            local = self._local / name
            if info["type"] != "file" or not name or not own or (local.exists() and _is_ours(local)):
                continue
            self._there.append(local)
            local.parent.mkdir(parents=True, exist_ok=True)
            if any(fnmatch.fnmatch(local.name, pattern) for pattern in bring):
                get = partial(self._system.get_file, key)
                self._call("read", lambda local=local, get=get: _replace(local, get), info["size"])
            else:
                _stand_in(local, info["size"])

    def hand_over(self, path: Path) -> None:
        """Send a finished file of this place, and leave a stand-in."""
        path = path.absolute()
        if path.is_relative_to(self._local) and _is_ours(path):
            self._put(path)
            _stand_in(path, path.stat().st_size)

    def send(self) -> None:
        """Copy what is new, those files last that tell of others, and remove what the command did, and all copies."""
        files = [path for path in self._local.rglob("*") if path.is_file() and path.suffix not in NEVER_SENT]
        own = [path for path in files if self._folder or path.name.startswith(self.path.stem)]
        for path in sorted(own, key=lambda path: (path.suffix in LAST, path.name == "index.json", path)):
            if _is_ours(path):
                self._put(path)
        for path in self._there:
            if not path.exists():
                self._call("removed", lambda path=path: self._system.rm_file(self._key_of(path)))
        for path in own:
            path.unlink()
        for path in sorted((path for path in self._local.rglob("*") if path.is_dir()), reverse=True):
            with suppress(OSError):  # another command's files are in it
                path.rmdir()

    def _put(self, path: Path) -> None:
        self._call("written", lambda: self._system.put_file(str(path), self._key_of(path)), path.stat().st_size)

    def _key_of(self, path: Path) -> str:
        return f"{self._key}/{path.relative_to(self._local).as_posix()}"

    def _call(self, doing: str, do: Any, size: int = 0) -> Any:
        try:
            self._system.invalidate_cache()  # its listings may be old
            return within(ANSWER_SECONDS + size / LEAST_RATE, Event(), do)
        except Exception as error:  # every file system raises its own
            if doing == "listed" and isinstance(error, FileNotFoundError):
                return {}
            kept = f"; what was written is in {self._local}: start the same command again" * (doing == "written")
            raise Failed(f"{self.shown} cannot be {doing}: {shorten(error)}{kept}") from None


def _is_ours(path: Path) -> bool:
    return path.stat().st_mtime_ns != 0


def _stand_in(path: Path, size: int) -> None:
    _replace(path, lambda new: os.truncate(new, size))


def _replace(path: Path, write: Callable[[str], None]) -> None:
    """Replace a file by what the bucket has, in one step: what is cut short would be taken for the command's own."""
    new = path.with_name(f"{path.name}{FETCHED}")
    new.touch()
    write(str(new))
    os.utime(new, ns=(0, 0))
    new.replace(path)
