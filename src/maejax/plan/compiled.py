"""A training step compiled for devices that need not be here, and its memory."""

import math
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from maejax.data.pipeline import Batch
from maejax.training.mesh import replicated, split
from maejax.training.state import REQUESTS, Control

# Without a card no product can be tried, so all are calls of cuBLAS; Triton's, which a card may prefer, need trials.
GPU_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Memory(NamedTuple):
    """Bytes on one device. `given_back` is the part of the output that is written over arguments."""

    arguments: int
    temporaries: int
    output: int
    given_back: int
    code: int

    @property
    def peak(self) -> int:
        """The most bytes that are in use at a time."""
        return self.arguments + self.temporaries + self.output - self.given_back + self.code


class Compiled(NamedTuple):
    """A compiled step. If it needs more memory than a device has, `text` is empty, and `needs` and `has` are set."""

    text: str
    memory: Memory | None
    seconds: float
    needs: float = 0.0
    has: float = 0.0


def abstract_inputs(
    mesh: Mesh, batch_size: int, image_shape: tuple[int, int, int], image_type: str = "uint8"
) -> tuple[Any, Any, Any]:
    """Return the abstract inputs of a step after its state: batch, `Control` of the previous step, and requests."""
    rows, same = split(mesh), replicated(mesh)

    def array(shape, dtype, sharding) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    of_row = {"images": (image_shape, np.dtype(image_type)), "labels": ((), np.int32), "valid": ((), bool)}
    of_row |= {"index": ((), np.int32)}
    batch = Batch(**{name: array((batch_size, *shape), dtype, rows) for name, (shape, dtype) in of_row.items()})
    control = Control(array((REQUESTS,), np.int32, same), array((), bool, same), array((), bool, same))
    return batch, control, array((mesh.size, REQUESTS), np.int32, rows)


def compile_for(mesh: Mesh, step: Any, inputs: tuple[Any, ...]) -> Compiled:
    """Compile a jitted function for the devices of a mesh and abstract inputs."""
    begun = time.monotonic()
    absent = mesh.devices.flat[0].platform == "gpu" and mesh.devices.flat[0] not in jax.devices()
    with jax.set_mesh(mesh):
        lowered = step.lower(*inputs)
        try:
            compiled = lowered.compile(compiler_options=GPU_OPTIONS if absent else None)
        except jax.errors.JaxRuntimeError as error:
            shortage = read_shortage(str(error))
            if shortage is None:
                raise
            return Compiled("", None, time.monotonic() - begun, *shortage)
    sizes = compiled.memory_analysis()
    parts = ("argument_size", "temp_size", "output_size", "alias_size", "generated_code_size")
    memory = Memory(*(getattr(sizes, f"{part}_in_bytes") for part in parts))
    return Compiled(compiled.as_text(), memory, time.monotonic() - begun)


def read_shortage(message: str) -> tuple[float, float] | None:
    """Return the bytes that a program needs and a device has, from the compiler's error; None for another error."""
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
    """Show how long the block has run: by a moving line on a terminal, otherwise by a line every `every` seconds."""
    done, begun = threading.Event(), time.monotonic()
    with console.status(what) as status:
        update, pause = (status.update, 1.0) if console.is_terminal else (console.print, every)

        def report() -> None:
            while not done.wait(pause):
                update(f"{what}: {time.monotonic() - begun:.0f} s")

        thread = threading.Thread(target=report, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
