"""The cost of a scheduled HLO module in one run: memory traffic, arithmetic and messages.

XLA's own `cost_analysis` counts a loop's body once, and copies that stay on the chip, so it is not used. The rules are:

- Only arrays in memory space 0 (HBM) count, each by its size in whole tiles. An instruction reads each of its operands
  once and writes its result. Renaming (tuples, bitcasts) and waiting (`-done`) are free.
- A fusion that only reads slices of an operand reads those slices. A fusion that writes a slice into its operand in
  place writes that slice. The same holds for `slice-start` and `dynamic-slice`.
- The body of a loop counts as often as its condition allows. A conditional counts as its most expensive branch.
- FLOP are those of matrix products (`dot`, `convolution`): two for each multiplication that does not meet padding. A
  kernel has the FLOP of its `cost_estimate` (Pallas), and the bytes of its operands and results.
- A call of cuBLAS is a product with the FLOP of its description. One of cuDNN's attention has two products of scores
  forward and five backward, all of them. The room that such a call gets to work in counts as no traffic.
- A collective that runs beside several fusions appears in each of them; it counts where it starts.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from maejax.plan.hlo import Computation, Instruction, Shape, bits

FREE = set(
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id opt-barrier iota "
    "domain".split()
)
FREE_CALLS = set(
    "AllocateBuffer ConcatBitcast AsyncCollectiveDone AsyncCollectiveStart AssumeGatherIndicesInBound "
    "GatherScatterIndicesBitpacked".split()
)
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
SLICES = {"dynamic-slice", "slice", "gather"}


class Collective(NamedTuple):
    """A message between devices: `nbytes` is the larger of its input and its output on one device."""

    kind: str
    dtype: str
    nbytes: int
    times: int


class InstructionCost(NamedTuple):
    """The cost of one of `times` runs of an instruction: bytes of HBM, FLOP by operand type, compiler's cycles."""

    name: str
    opcode: str
    times: int
    nbytes: int
    flop: dict[str, int]
    cycles: int | None


class ModuleCost(NamedTuple):
    """The work and the messages of a module, and the parts that are not counted in full.

    `unknown_loops` are loops without a known trip count, which count once. `kernels` are targets of custom calls that
    declare no FLOP.
    """

    work: list[InstructionCost]
    collectives: list[Collective]
    unknown_loops: list[str]
    kernels: list[str]

    def add(self, other: "ModuleCost") -> None:
        """Append the work, messages and gaps of another cost."""
        for ours, theirs in zip(self, other, strict=True):
            ours.extend(theirs)  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """Bytes of HBM read and written."""
        return sum(work.nbytes * work.times for work in self.work)

    @property
    def flop(self) -> int:
        """FLOP of all matrix products."""
        return sum(self.flop_by_type.values())

    @property
    def flop_by_type(self) -> dict[str, int]:
        """FLOP of matrix products by the type of their operands, such as "bf16", or "f32 x bf16" if they differ."""
        total = Counter()
        for work in self.work:
            total.update({dtype: flop * work.times for dtype, flop in work.flop.items()})
        return dict(total)

    @property
    def messages(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Number of collectives and their bytes, by kind and element type."""
        total: dict[tuple[str, str], tuple[int, int]] = {}
        for c in self.collectives:
            count, nbytes = total.get((c.kind, c.dtype), (0, 0))
            total[c.kind, c.dtype] = count + c.times, nbytes + c.times * c.nbytes
        return dict(sorted(total.items()))


def module_cost(computation: Computation, times: int = 1) -> ModuleCost:
    """Count the work and the messages of `times` runs of a computation."""
    result = ModuleCost([], [], [], [])
    for instruction in computation.instructions.values():
        opcode = instruction.opcode
        if opcode == "while":
            trips = _trip_count(instruction)
            if trips is None:
                result.unknown_loops.append(instruction.name)
            result.add(module_cost(instruction.called_by("body"), times * (trips or 1)))
        elif opcode == "conditional":
            cases = [module_cost(case, times) for case in instruction.called]
            result.add(max(cases, key=lambda case: (case.flop, case.nbytes)))
        elif opcode == "call" or (opcode == "async-start" and instruction.called):
            for called in instruction.called:
                result.add(module_cost(called, times))
        elif opcode not in FREE:
            result.collectives.extend(_collectives(instruction, times))
            flop = Counter()
            for dtype, amount in _matmuls(instruction):
                flop[dtype] += amount
            target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
            if target and target[1] not in FREE_CALLS and not flop:
                result.kernels.append(target[1])
            cycles = instruction.number("estimated_cycles")
            result.work.append(
                InstructionCost(instruction.name, opcode, times, _traffic(instruction), dict(flop), cycles)
            )
    return result


def _trip_count(loop: Instruction) -> int | None:
    """Return how often the body of a loop runs: as the compiler notes, or the limit of a counter that starts at 0."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = loop.called_by("condition")
    compares = [i for part in _reached(condition) for i in part.instructions.values() if i.opcode == "compare"]
    constants = [i.inside for i in condition.instructions.values() if i.opcode == "constant"]
    limits = [int(text) for text in constants if text.lstrip("-").isdecimal()]
    if not compares or len(limits) != 1:
        return None
    return limits[0] + ("direction=LE" in compares[0].attributes)


def _reached(computation: Computation) -> Iterator[Computation]:
    yield computation
    for instruction in computation.instructions.values():
        for called in instruction.called:
            yield from _reached(called)


def _traffic(instruction: Instruction) -> int:
    """Return the bytes of HBM that an instruction reads and writes."""
    opcode, operands = instruction.opcode, instruction.operands
    if opcode.endswith(("-done", "-update")) or (
        opcode == "custom-call" and any(f'"{name}"' in instruction.attributes for name in FREE_CALLS)
    ):
        return 0
    if instruction.name.startswith(("async-collective-start", "async-collective-done")):
        return 0  # the fusions that follow hold its operands and results
    if opcode == "copy-start":
        return _hbm(operands[0].shapes) + _hbm(instruction.shapes[:1])
    if opcode in ("slice-start", "dynamic-slice-start"):
        slice_ = instruction.shapes[-2]
        return slice_.padded * (_in_hbm(operands[0]) + (slice_.space == 0))
    if opcode in SLICES:
        return _padded(instruction.shapes) * _in_hbm(operands[0]) + _hbm(instruction.shapes)
    if opcode == "dynamic-update-slice":
        return _hbm(operands[1].shapes) + operands[1].shapes[0].padded * (instruction.shapes[0].space == 0)
    if opcode.endswith("-start"):  # a collective: its result mostly holds its operands too
        held = len(instruction.shapes) > len(operands)
        return _hbm(instruction.shapes) + (0 if held else sum(_hbm(operand.shapes) for operand in operands))
    if opcode != "fusion":
        # A kernel with one array as several operands reads a different part through each.
        shapes = (
            instruction.shapes[:-1] if _library(instruction) and len(instruction.shapes) > 1 else instruction.shapes
        )
        return sum(_hbm(operand.shapes) for operand in set(operands)) + _hbm(shapes)
    called, first, last = instruction.called[0], 0, len(operands)
    results = range(len(instruction.shapes))
    passing = instruction.number("operand_original_start"), instruction.number("operand_original_end")
    if passing[0] is not None and passing[1] is not None:  # the other operands belong to a running collective
        first, last, results = passing[0], passing[1], range(1)
    total = 0
    for number in range(first, last):
        if _in_hbm(operands[number]):
            total += min(_hbm(operands[number].shapes), _read(called, number))
    written = _written(called)
    for number in results:
        shape = instruction.shapes[number]
        if shape.space == 0:
            total += min(shape.padded, written[number]) if number < len(written) else shape.padded
    return total


def _read(computation: Computation, number: int) -> int:
    """Return the bytes that a computation reads of a parameter: all of it, or only its slices."""
    instructions = computation.instructions.values()
    parameter = next(i for i in instructions if i.opcode == "parameter" and i.inside == str(number))
    whole = _padded(parameter.shapes)

    def of(value: Instruction) -> int:
        """Return the bytes read of a value that is the parameter, or a bitcast of it."""
        if value is computation.root:
            return whole
        total = 0
        for user in instructions:
            if value not in user.operands:
                continue
            if user.opcode in SLICES and user.operands[0] is value:
                total += _padded(user.shapes)
            elif user.opcode == "bitcast":
                total += of(user)
            elif user.opcode == "fusion":
                total += sum(_read(user.called[0], i) for i, o in enumerate(user.operands) if o is value)
            elif user.opcode != "dynamic-update-slice" or user.operands[0] is not value:  # else written in place
                return whole
        return total

    return of(parameter)


def _written(computation: Computation) -> list[int]:
    """Return the bytes that a fused computation writes of each array of its result."""

    def of(instruction: Instruction) -> list[int]:
        """Return the bytes written of each array of an instruction's result."""
        opcode, operands = instruction.opcode, instruction.operands
        if opcode == "tuple":
            return [of(operand)[0] for operand in operands]
        if opcode == "bitcast" and operands and operands[0].opcode == "dynamic-update-slice":
            return of(operands[0])
        if opcode == "dynamic-update-slice":
            return [_padded(operands[1].shapes)]
        return [shape.padded for shape in instruction.shapes]

    assert computation.root is not None
    return of(computation.root)


def _padded(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.padded for shape in shapes)


def _hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.padded for shape in shapes if shape.space == 0)


def _in_hbm(instruction: Instruction) -> bool:
    return any(shape.space == 0 for shape in instruction.shapes)


def _collectives(instruction: Instruction, times: int) -> Iterator[Collective]:
    """Yield the messages of each collective that starts in an instruction or in its fusion."""
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        yield from _messages(kind, instruction, times)
    elif instruction.opcode == "fusion" and not instruction.name.startswith("async-collective-done"):
        called = instruction.called[0]
        if called.name.startswith("async_collective_fusion"):
            return  # it started before
        for inner in called.instructions.values():
            for found in _collectives(inner, times):
                # The TPU compiler writes a reduce-scatter as an all-reduce of which each device keeps a slice.
                scatter = called.name.startswith("all-reduce-scatter")
                yield found._replace(kind="reduce-scatter") if scatter else found


def _messages(kind: str, found: Instruction, times: int) -> Iterator[Collective]:
    """Yield the messages of a collective, one for each element type; the compiler combines many arrays."""
    results, given = found.shapes, len(found.operands)
    if found.opcode.endswith("-start") and len(results) > 1:  # the result may also hold operands and signals
        single = (max(results, key=lambda shape: shape.nbytes),)
        results = single if given == 1 else results[-given:]
    sides = [results, [shape for operand in found.operands for shape in operand.shapes]]
    for dtype in sorted({shape.dtype for shape in results}):
        sizes = [sum(shape.nbytes for shape in side if shape.dtype == dtype) for side in sides]
        yield Collective(kind, dtype, max(sizes), times)


def _matmuls(instruction: Instruction) -> Iterator[tuple[str, int]]:
    """Yield operand type and FLOP of every matrix product in an instruction; a kernel has those that it declares."""
    if instruction.opcode in ("dot", "convolution"):
        shapes = [operand.shapes[0] for operand in instruction.operands[:2]]
        types = sorted({shape.dtype for shape in shapes}, key=bits, reverse=True)
        flop = _dot_flop if instruction.opcode == "dot" else convolution_flop
        yield " x ".join(types), flop(instruction, *shapes)
    elif instruction.opcode == "custom-call" and (
        declared := instruction.number("flops") or _library_flop(instruction)
    ):
        yield instruction.operands[0].shapes[0].dtype, declared
    elif instruction.opcode == "fusion":
        for inner in instruction.called[0].instructions.values():
            yield from _matmuls(inner)


def _library(instruction: Instruction) -> str:
    """Return the function of cuBLAS or cuDNN that an instruction calls, empty if it calls none."""
    found = re.search(r'custom_call_target="__(cublas|cudnn)\$([^"]*)"', instruction.attributes)
    return f"{found[1]} {found[2]}" if found else ""


def _library_flop(call: Instruction) -> int:
    """Return the FLOP of a call of cuBLAS, or of cuDNN's attention, from its description; 0 for other calls."""
    library = _library(call)
    if library.startswith("cublas"):
        axes = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', call.attributes)
        left = call.operands[0].shapes[0].sizes
        contracted = math.prod(left[int(axis)] for axis in re.findall(r"\d+", axes[1])) if axes else 1
        return 2 * math.prod(call.shapes[0].sizes) * contracted
    scores = re.search(r'"intermediate_tensor_shape":.*?"dimensions": ?\[([^\]]*)\]', call.attributes)
    if scores is None or "fmha" not in library:
        return 0
    head = call.operands[0].shapes[0].sizes[-1]
    return 2 * (5 if "Backward" in library else 2) * math.prod(map(int, re.findall(r"\d+", scores[1]))) * head


def _dot_flop(dot: Instruction, left: Shape, right: Shape) -> int:
    """Return the FLOP of a `dot`: two for each element of the result and each contracted index."""
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
    contracted = math.prod(left.sizes[int(axis)] for axis in found[1].split(",") if axis) if found else 1
    return 2 * math.prod(dot.shapes[0].sizes) * contracted


def convolution_flop(convolution: Instruction, left: Shape, right: Shape) -> int:
    """Return the FLOP of a `convolution`, as which TPUs run every matrix product; padding and holes cost nothing."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    assert labels, convolution.name
    window = dict(re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", convolution.attributes) or [""])[0]))
    spatial = [label for label in labels[1] if label.isdecimal()]

    def numbers(field: str, default: int) -> list[int]:
        return [int(n) for n in window[field].split("x")] if field in window else [default] * len(spatial)

    kernel = numbers("size", 1)
    pads = window.get("pad", "x".join(["0_0"] * len(spatial))).split("x")
    stride, holes, dilation = numbers("stride", 1), numbers("lhs_dilate", 1), numbers("rhs_dilate", 1)
    total = 2 * right.sizes[labels[2].index("i")]  # input features of a group
    for axis in ("b", "f"):
        total *= convolution.shapes[0].sizes[labels[3].index(axis)]
    for i, label in enumerate(spatial):
        size = left.sizes[labels[1].index(label)]
        out = convolution.shapes[0].sizes[labels[3].index(label)]
        at = np.arange(out)[:, None] * stride[i] + np.arange(kernel[i])[None] * dilation[i] - int(pads[i].split("_")[0])
        total *= int(((at >= 0) & (at <= (size - 1) * holes[i]) & (at % holes[i] == 0)).sum())
    return total
