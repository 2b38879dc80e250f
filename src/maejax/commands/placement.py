"""Commands whose outputs belong in a bucket: they write to this machine, and their files are copied there."""

import hashlib
import os
import sys
from contextlib import ExitStack
from dataclasses import fields, replace
from typing import Any

from rich.console import Console

from maejax.commands.command import Command
from maejax.storage.redact import redact


def run_placed(command: Command, console: Console) -> Any:
    """Run a command and return its result, with addresses where it names its outputs."""
    given = {name: getattr(command, name) for name in command.outputs()}
    there = {name: value for name, value in given.items() if value and "://" in str(value)}
    if not there:
        return command.run(console)
    from maejax.data.pieces import ENGINES
    from maejax.storage.placed import placed

    # Tasks of an array are the same command, but for their variables.
    variables = [os.environ.get(name) for names in ENGINES.values() for name in names]
    owner = hashlib.sha256(repr((command, variables)).encode()).hexdigest()[:16]
    flags = {each.name: each.metadata.get("positional", f"--{each.name.replace('_', '-')}") for each in fields(command)}
    with ExitStack() as stack:
        here = {}
        for name, address in there.items():
            flag, folder = flags[name], command.outputs()[name]
            place = placed(flag, address, owner, folder=folder, bring=command.brings(), sends=is_first)
            here[name] = stack.enter_context(place)
        result = replace(command, **{name: str(path) for name, path in here.items()}).run(console)
    for name, path in here.items():
        kept, place = str(path), redact(str(there[name]))
        if not command.outputs()[name]:
            kept, place = str(path.parent), place.rpartition("/")[0]
        result = named(result, kept, place.rstrip("/"))
    return result


def is_first() -> bool:
    """Return whether this process is the first of its job, which alone writes."""
    if "jax" not in sys.modules:
        return True
    import jax

    return not jax.distributed.is_initialized() or jax.process_index() == 0


def named(result: Any, path: str, address: str) -> Any:
    """Return a result with an address in the place of a local path, in all its texts."""
    if isinstance(result, dict):
        return {name: named(value, path, address) for name, value in result.items()}
    if isinstance(result, list | tuple):
        return [named(value, path, address) for value in result]
    return result.replace(path, address) if isinstance(result, str) else result
