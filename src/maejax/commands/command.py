"""The base of every command: a value with `run`, whose result is printed for people or as JSON."""

import ast
import errno
import inspect
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from rich.console import Console

from maejax.config import flag_words
from maejax.errors import Failed, InputError

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 75  # exit codes


@dataclass(frozen=True)
class Command:
    """A command of `maejax`: its fields are its arguments, and their docstrings its help.

    A field with `metadata={"positional": "CKPT"}` is a positional argument of that name. The modules of this package
    are imported by every call, so what computes is imported by the methods.
    """

    json: bool = field(default=False, kw_only=True)
    """Print the result as JSON, and everything else to the error stream."""

    to_stdout: ClassVar[bool] = False  # whether progress goes there, as the log of a training does
    lighter: ClassVar[str] = "use a device with more memory"  # what to do where it does not suffice

    def run(self, console: Console) -> Any:
        """Do the work and return its result, as JSON can hold it; `console` is for progress."""
        raise NotImplementedError

    def outputs(self) -> dict[str, bool]:
        """Name the arguments that say where the command writes, each with whether that is a folder."""
        return {}

    def brings(self) -> tuple[str, ...]:
        """Name the files, as patterns, that it reads of an earlier output at an address; of others it sees the size."""
        return ("*.json", "*.jsonl")

    def show(self, console: Console, result: Any) -> None:
        """Print a result for people."""
        raise NotImplementedError

    def following(self, result: Any) -> str:
        """Return the command that comes next, with real arguments; empty if there is none."""
        return ""

    def exit_code(self, result: Any) -> int:
        """Return the exit code that goes with a result."""
        return DONE


def help_of(kind: type, name: str) -> str:
    """Return the docstring below a field, of this class or a base; for a group of flags, that of the group."""
    owner = next(owner for owner in kind.__mro__ if name in inspect.get_annotations(owner))
    return docstrings(owner).get(name) or str(get_type_hints(owner)[name].__doc__)


@cache
def docstrings(owner: type) -> dict[str, str]:
    """Read the docstrings below the fields of a class."""
    body: list[Any] = ast.parse(inspect.getsource(owner)).body[0].body  # type: ignore[attr-defined]
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(below.value).split())
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)
    }


def command_line(*words: Any) -> str:
    """Return `maejax WORDS`, quoted for a shell."""
    return shlex.join(["maejax", *map(str, words)])


def flags_given(command: Command, names: Iterable[str]) -> list[str]:
    """Return those of a command's flags that are not at their defaults, as words."""
    usual = {each.name: each.default for each in fields(command)}
    values = {name: getattr(command, name) for name in names}
    return [word for name, value in values.items() if value != usual[name] for word in flag_words(name, value)]


def prepare_devices(join: Callable[[], bool] = lambda: True, *, keep: bool = True) -> bool:
    """Set up memory and devices before JAX computes; return what `join` does. Raises InputError without a device.

    If `keep`, compiled programs are kept for the next command.
    """
    import jax

    from maejax.training.compile_cache import keep_compiled
    from maejax.training.memory import keep_freed_memory

    keep_freed_memory()
    try:
        first = join()
        with quiet_libtpu():
            jax.devices()
        if keep:
            keep_compiled()
    except (InputError, Failed):
        raise
    except (RuntimeError, AssertionError) as error:  # JAX asserts where a known platform has no plugin
        why = f" ({str(error).partition(' (set ')[0]})" if str(error) else ""
        found = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: JAX finds no such device on this machine{why}"
        raise InputError(f"{found}; set JAX_PLATFORMS=cpu, or see what `maejax doctor` says") from None
    return first


@contextmanager
def explain_out_of_memory(command: Command) -> Iterator[None]:
    """Raise Failed with what to do where a device or this machine has too little memory for a command."""
    try:
        yield
    except Failed:  # says what to do already
        raise
    except MemoryError as error:
        raise Failed(f"out of memory on this machine: {str(error) or 'nothing is left'}; {command.lighter}") from None
    except RuntimeError as error:  # JAX has no class for it, and XLA's devices call it by different codes
        if not (found := re.search(r"out of memory(.*?)\.?$", str(error), re.IGNORECASE | re.MULTILINE)):
            raise
        raise Failed(f"out of memory{found[1]}; {command.lighter}") from None


@contextmanager
def quiet_libtpu() -> Iterator[None]:
    """Drop what libtpu prints while it finds that this machine has no TPU: it writes to the error stream by itself."""
    # JAX sets the variable where it sees no TPU.
    if find_spec("libtpu") is None or os.environ.get("TPU_SKIP_MDS_QUERY") != "1":
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check_writable(flag: str, path: str | Path, *, folder: bool = False) -> None:
    """Check that a file or folder can be written, leaving nothing behind; raises InputError that names the flag."""
    if "://" in str(path):
        raise InputError(f"{flag} {path}: this command writes to this machine; name a file or folder of it, then copy")
    path = Path(path).expanduser().absolute()
    try:
        if path.exists() and path.is_dir() != folder:
            raise OSError(code := errno.ENOTDIR if folder else errno.EISDIR, os.strerror(code))
        place = next(place for place in (path, *path.parents) if place.exists())
        if place.is_file():
            place.open("ab").close()
        if not place.is_file() or place != path:
            tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise InputError(f"{flag} {path} cannot be written: {error.strerror}; choose another place") from None
