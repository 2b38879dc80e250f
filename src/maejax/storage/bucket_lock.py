"""A lock on a run in a bucket: a small file that its holder renews; one that is no longer renewed is free."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maejax.errors import Failed
from maejax.storage import mirror

LOCK = "lock.json"
RENEW_SECONDS, STALE_SECONDS = 10.0, 45.0  # between two renewals; without one, until the holder counts as dead
SETTLE_SECONDS = 1.0  # for a second process that found no lock at the same moment

_log = logging.getLogger("maejax.training")


@contextmanager
def held_in_bucket(folder: Path, remedy: str) -> Iterator[None]:
    """Hold the run that a folder mirrors for this process alone; does nothing for a folder that mirrors no bucket.

    The lock of another process is watched. Raises Failed, with the name of the holder and the remedy, if that renews
    it, or if the bucket does not answer.
    """
    lock, shown = folder / LOCK, mirror.shown(folder)
    if not mirror.address_of(folder):
        yield
        return
    mine = {"holder": f"process {os.getpid()} on {socket.gethostname()}", "id": uuid.uuid4().hex}
    found = _read(lock)
    if found:
        _log.warning("%s may be held by %s; waiting up to %g s for a sign of it", shown, found["holder"], STALE_SECONDS)
    end = time.monotonic() + STALE_SECONDS
    while found and time.monotonic() < end:
        time.sleep(RENEW_SECONDS / 10)
        if (now := _read(lock)) and now != found:
            raise Failed(f"{shown} is held by {now['holder']}; {remedy}")
        found = now
    _write(lock, mine | {"renewed": 0})
    time.sleep(SETTLE_SECONDS)
    if (now := _read(lock)).get("id") != mine["id"]:
        raise Failed(f"{shown} is held by {now.get('holder', 'another process')}; {remedy}")
    done = threading.Event()

    def renew():
        """Renew the lock until the block ends; end the process if another has it: two would spoil the run."""
        count = 0
        while not done.wait(RENEW_SECONDS):
            count += 1
            try:
                if (now := _read(lock)).get("id", mine["id"]) != mine["id"]:
                    _log.error("%s was taken over by %s while this process was paused; it ends", shown, now["holder"])
                    os._exit(1)
                _write(lock, mine | {"renewed": count})
            except Failed as error:
                _log.warning("%s; the lock of the run will be renewed later", error)

    thread = threading.Thread(target=renew, name="maejax-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(Failed):  # a lock that stays is stale soon
            if _read(lock).get("id") == mine["id"]:
                mirror.call("deleted", lock, lambda system, key: system.rm_file(key))


def _read(lock: Path) -> dict[str, Any]:
    """Return what a lock says; {} without one."""

    def content(system: Any, key: str) -> bytes:
        try:
            return system.cat_file(key)
        except FileNotFoundError:
            return b"{}"

    return json.loads(mirror.call("read", lock, content))


def _write(lock: Path, content: dict[str, Any]) -> None:
    mirror.call("written", lock, lambda system, key: system.pipe_file(key, json.dumps(content).encode()))
