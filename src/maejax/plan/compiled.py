"""A training step compiled for devices that need not be here: its memory, or why there is not enough."""

import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from maejax.data.pipeline import Batch
from maejax.training.mesh import replicated, split
from maejax.training.state import REQUESTS, Control

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Memory(NamedTuple):
    """Bytes on one device. `given_back` is the part of the arguments that the output takes over."""

    arguments: int
    temporaries: int
    output: int
    given_back: int
    code: int

    @property
    def peak(self) -> int:
        """What a device needs at most."""
        return self.arguments + self.temporaries + self.output - self.given_back + self.code


class Compiled(NamedTuple):
    """A step after compilation. Where it needs more memory than there is: no text, no memory, and `needs` and `has`."""

    text: str
    memory: Memory | None
    seconds: float
    needs: float = 0.0
    has: float = 0.0


def abstract_inputs(mesh: Mesh, batch_size: int, image_shape: tuple[int, int, int]) -> tuple[Any, Any, Any]:
    """Describe what the loop gives a step beside its state: batch, control of the step before, requests."""
    rows, same = split(mesh), replicated(mesh)

    def array(shape, dtype, sharding) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    batch = Batch(
        images=array((batch_size, *image_shape), np.uint8, rows),
        labels=array((batch_size,), np.int32, rows),
        valid=array((batch_size,), bool, rows),
        index=array((batch_size,), np.int32, rows),
    )
    control = Control(array((REQUESTS,), np.int32, same), array((), bool, same), array((), bool, same))
    return batch, control, array((mesh.size, REQUESTS), np.int32, rows)


def compile_for(mesh: Mesh, step: Any, inputs: tuple[Any, ...]) -> Compiled:
    """Compile a jitted function for the devices of a mesh, for inputs described by shape, type and sharding."""
    begun = time.monotonic()
    with jax.set_mesh(mesh):
        lowered = step.lower(*inputs)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            shortage = read_shortage(str(error))
            if shortage is None:
                raise
            return Compiled("", None, time.monotonic() - begun, *shortage)
    found = compiled.memory_analysis()
    memory = Memory(
        found.argument_size_in_bytes,
        found.temp_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.generated_code_size_in_bytes,
    )
    return Compiled(compiled.as_text(), memory, time.monotonic() - begun)


def read_shortage(message: str) -> tuple[float, float] | None:
    """Read from the compiler's error how many bytes a program needs and a device has; None if it is another error."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"[Uu]sed ([\d.]+)([KMGT]?)i?B? of ([\d.]+)([KMGT]?)i?B? hbm", message) or re.search(
        r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)", message
    )
    if found is None:
        return math.nan, math.nan
    return float(found[1]) * UNITS[found[2]], float(found[3]) * UNITS[found[4]]


@contextmanager
def waiting(console: Console, what: str, every: float = 30.0) -> Iterator[None]:
    """Show that something goes on, and for how long: a moving line on a terminal, else a line now and then."""
    done, begun = threading.Event(), time.monotonic()

    def tell(update: Callable[[str], object], pause: float) -> None:
        while not done.wait(pause):
            update(f"{what}: {time.monotonic() - begun:.0f} s")

    with console.status(what) as status:
        update, pause = (status.update, 1.0) if console.is_terminal else (console.print, every)
        thread = threading.Thread(target=tell, args=(update, pause), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
