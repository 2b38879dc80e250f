"""What a scheduled module does when it runs once: memory traffic, arithmetic and messages, loops counted in full.

XLA's own `cost_analysis` counts a loop's body once and copies that never leave the chip, so it is not used. Rules here:

- Only arrays in memory space 0 (HBM) count, each by its size in whole tiles. An instruction reads each of its operands
  once and writes its result. What only renames (tuples, bitcasts) or waits (`-done`) costs nothing.
- A fusion that reads an operand by slices alone reads those slices; one that writes a slice into its operand in place
  writes that slice. So do `slice-start` and `dynamic-slice`.
- A loop's body counts as often as its condition says; a branch counts as the dearest of its cases.
- FLOP are those of matrix products (`dot`, `convolution`), two for each multiplication that does not meet padding, and
  those that a kernel says it has (`cost_estimate` of a Pallas call). Its bytes are its operands and results.
- A collective that runs while fusions compute appears in each of them; it counts where it starts.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from maejax.plan.hlo import Computation, Instruction, Module, Shape
from maejax.plan.products import matmuls

FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "iota",
    "domain",
}
FREE_CALLS = {
    "AllocateBuffer",
    "ConcatBitcast",
    "AsyncCollectiveDone",
    "AsyncCollectiveStart",
    "AssumeGatherIndicesInBound",
    "GatherScatterIndicesBitpacked",
}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
SLICES = {"dynamic-slice", "slice", "gather"}


class Collective(NamedTuple):
    """A message between devices: `nbytes` is the larger of what goes in and what comes out on one device."""

    kind: str
    dtype: str
    nbytes: int
    times: int


class InstructionCost(NamedTuple):
    """What one instruction costs each of the `times` it runs: bytes of HBM, FLOP by operand type, compiler's cycles."""

    name: str
    opcode: str
    times: int
    nbytes: int
    flop: dict[str, int]
    cycles: int | None


class Walk(NamedTuple):
    """All work and messages of a module, and what could not be read.

    `unknown_loops`: loops whose number of turns is not written down; they count once. `kernels`: calls of what the
    compiler did not make, by target, that do not say how many FLOP they have.
    """

    work: list[InstructionCost]
    collectives: list[Collective]
    unknown_loops: list[str]
    kernels: list[str]

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
        """FLOP of matrix products by the type of their operands, such as "bf16", or "f32 x bf16" where they differ."""
        total: dict[str, int] = {}
        for work in self.work:
            for dtype, flop in work.flop.items():
                total[dtype] = total.get(dtype, 0) + flop * work.times
        return total

    @property
    def messages(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Number of collectives and their bytes, by kind and element type."""
        total: dict[tuple[str, str], tuple[int, int]] = {}
        for c in self.collectives:
            count, nbytes = total.get((c.kind, c.dtype), (0, 0))
            total[c.kind, c.dtype] = count + c.times, nbytes + c.times * c.nbytes
        return dict(sorted(total.items()))


def walk(module: Module) -> Walk:
    """Count all that a module does in one run."""
    result = Walk([], [], [], [])
    _visit(module, module.entry, 1, result)
    return result


def _visit(module: Module, name: str, times: int, result: Walk) -> None:
    computation = module.computations[name]
    for instruction in computation.instructions.values():
        if instruction.opcode == "while":
            turns = loop_turns(module, computation, instruction)
            if turns is None:
                result.unknown_loops.append(instruction.name)
            _visit(module, instruction.called_by("body"), times * (turns or 1), result)
        elif instruction.opcode == "conditional":
            cases = []
            for case in instruction.called:
                cases.append(Walk([], [], [], []))
                _visit(module, case, times, cases[-1])
            dearest = max(cases, key=lambda case: (case.flop, case.nbytes))
            for ours, theirs in zip(result, dearest, strict=True):
                ours.extend(theirs)  # type: ignore[arg-type]
        elif instruction.opcode == "call" or (instruction.opcode == "async-start" and instruction.called):
            for called in instruction.called:
                _visit(module, called, times, result)
        elif instruction.opcode not in FREE:
            for kind, found, where in _collectives(module, computation, instruction):
                result.collectives.extend(_sent(where, kind, found, times))
            target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
            work = _work(module, computation, instruction, times)
            if target and target[1] not in FREE_CALLS and not work.flop:
                result.kernels.append(target[1])
            result.work.append(work)


def _work(module: Module, computation: Computation, instruction: Instruction, times: int) -> InstructionCost:
    flop: dict[str, int] = {}
    for dtype, amount in matmuls(module, computation, instruction):
        flop[dtype] = flop.get(dtype, 0) + amount
    nbytes = traffic(module, computation, instruction)
    return InstructionCost(
        instruction.name, instruction.opcode, times, nbytes, flop, instruction.number("estimated_cycles")
    )


def loop_turns(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Read how often a loop's body runs: what the compiler says, or the limit of a counter that starts at 0."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    for name in _reached(module, loop.called_by("condition")):
        for compare in module.computations[name].instructions.values():
            if compare.opcode == "compare":
                limits = [
                    int(i.inside)
                    for i in module.computations[loop.called_by("condition")].instructions.values()
                    if i.opcode == "constant" and i.inside.lstrip("-").isdecimal()
                ]
                more = "direction=LE" in compare.attributes
                return limits[0] + more if len(limits) == 1 else None
    return None


def _reached(module: Module, name: str) -> Iterator[str]:
    yield name
    for instruction in module.computations[name].instructions.values():
        for called in instruction.called:
            yield from _reached(module, called)


def traffic(module: Module, computation: Computation, instruction: Instruction) -> int:
    """Count the bytes of HBM that an instruction reads and writes."""
    opcode = instruction.opcode
    if opcode.endswith(("-done", "-update")) or (
        opcode == "custom-call" and any(f'"{name}"' in instruction.attributes for name in FREE_CALLS)
    ):
        return 0
    if instruction.name.startswith(("async-collective-start", "async-collective-done")):
        return 0  # its bytes are the operands and results of what it starts, whose fusions follow
    operands = [computation.instructions[name] for name in instruction.operands if name in computation.instructions]
    if opcode == "copy-start":
        return _hbm(operands[0].shapes) + _hbm(instruction.shapes[:1])
    if opcode in ("slice-start", "dynamic-slice-start"):
        slice_ = instruction.shapes[-2]
        return slice_.padded * (_in_hbm(operands[0]) + (slice_.space == 0))
    if opcode in SLICES:
        return _padded(instruction.shapes) * _in_hbm(operands[0]) + _hbm(instruction.shapes)
    if opcode == "dynamic-update-slice":
        return _hbm(operands[1].shapes) + operands[1].shapes[0].padded * (instruction.shapes[0].space == 0)
    if opcode.endswith("-start"):  # a collective: its result holds its operands too
        return _hbm(instruction.shapes)
    if opcode != "fusion":
        # A kernel that is given one array several times reads another part of it each time.
        distinct = {operand.name: operand for operand in operands}.values()
        return sum(_hbm(operand.shapes) for operand in distinct) + _hbm(instruction.shapes)
    called, first, last = instruction.called[0], 0, len(operands)
    results = range(len(instruction.shapes))
    passing = instruction.number("operand_original_start"), instruction.number("operand_original_end")
    if passing[0] is not None and passing[1] is not None:  # the rest of them belong to a collective that goes on
        first, last, results = passing[0], passing[1], range(1)
    total = 0
    for number in range(first, last):
        if _in_hbm(operands[number]):
            total += min(_hbm(operands[number].shapes), _read(module, called, number))
    written = _written(module, called)
    for number in results:
        shape = instruction.shapes[number]
        if shape.space == 0:
            total += min(shape.padded, written[number]) if number < len(written) else shape.padded
    return total


def _read(module: Module, name: str, number: int) -> int:
    """Bytes that a computation reads of a parameter: all of it, or the slices that it takes of it."""
    computation = module.computations[name]
    parameter = computation.parameter(number)
    whole = _padded(computation.instructions[parameter].shapes)

    def of(value: str) -> int:
        if value == computation.root:
            return whole
        total = 0
        for user in computation.users(value):
            if user.opcode in SLICES and user.operands[0] == value:
                total += _padded(user.shapes)
            elif user.opcode == "bitcast":
                total += of(user.name)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == value:
                continue  # written in place
            elif user.opcode == "fusion":
                total += sum(_read(module, user.called[0], i) for i, o in enumerate(user.operands) if o == value)
            else:
                return whole
        return total

    return of(parameter)


def _written(module: Module, name: str) -> list[int]:
    """Bytes that a fused computation writes of each array of its result."""
    computation = module.computations[name]

    def of(instruction: Instruction) -> list[int]:
        if instruction.opcode == "tuple":
            return [of(computation.instructions[operand])[0] for operand in instruction.operands]
        if instruction.opcode == "bitcast" and instruction.operands[0] in computation.instructions:
            inner = computation.instructions[instruction.operands[0]]
            if inner.opcode == "dynamic-update-slice":
                return of(inner)
        if instruction.opcode == "dynamic-update-slice":
            return [_padded(computation.instructions[instruction.operands[1]].shapes)]
        return [shape.padded for shape in instruction.shapes]

    return of(computation.instructions[computation.root])


def _padded(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.padded for shape in shapes)


def _hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.padded for shape in shapes if shape.space == 0)


def _in_hbm(instruction: Instruction) -> bool:
    return any(shape.space == 0 for shape in instruction.shapes)


def _collectives(
    module: Module, computation: Computation, instruction: Instruction
) -> Iterator[tuple[str, Instruction, Computation]]:
    """Find the collectives that start in an instruction, or in what it fuses: kind, instruction, where it stands."""
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        yield kind, instruction, computation
    elif instruction.opcode == "fusion" and not instruction.name.startswith("async-collective-done"):
        name = instruction.called[0]
        if name.startswith("async_collective_fusion"):
            return  # it began before
        for inner in module.computations[name].instructions.values():
            for kind, found, where in _collectives(module, module.computations[name], inner):
                # What the TPU compiler makes of a reduce-scatter: an all-reduce of which each device keeps a slice.
                yield "reduce-scatter" if name.startswith("all-reduce-scatter") else kind, found, where


def _sent(computation: Computation, kind: str, found: Instruction, times: int) -> Iterator[Collective]:
    """Say what a collective sends, once for each element type: the compiler puts many arrays into one message."""
    results = found.shapes
    if found.opcode.endswith("-start") and len(results) > 1:  # operands and signals stand beside the results
        results = (max(results, key=lambda shape: shape.nbytes),)
    inputs = [computation.instructions[name].shapes for name in found.operands if name in computation.instructions]
    sides = [results, tuple(shape for shapes in inputs for shape in shapes)]
    for dtype in sorted({shape.dtype for shape in results}):
        sizes = [sum(shape.nbytes for shape in side if shape.dtype == dtype) for side in sides]
        yield Collective(kind, dtype, max(sizes), times)
