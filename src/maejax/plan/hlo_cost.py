"""The cost of a scheduled HLO module in one run: memory traffic, arithmetic and messages.

XLA's own `cost_analysis` counts a loop's body once, and copies that stay on the chip, so it is not used. The rules are:

- Only arrays in memory space 0 (HBM) count, each by its size in whole tiles. An instruction reads each of its operands
  once and writes its result. Renaming (tuples, bitcasts) and waiting (`-done`) are free.
- A fusion that only reads slices of an operand reads those slices. A fusion that writes a slice into its operand in
  place writes that slice. The same holds for `slice-start` and `dynamic-slice`.
- The body of a loop counts as often as its condition allows. A conditional counts as its most expensive branch.
- FLOP are those of matrix products (`dot`, `convolution`): two for each multiplication that does not meet padding. A
  kernel has the FLOP of its `cost_estimate` (Pallas), and the bytes of its operands and results.
- A collective that runs beside several fusions appears in each of them; it counts where it starts.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from maejax.plan.hlo import Computation, Instruction, Module, Shape
from maejax.plan.matmul_flop import matmuls

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


def module_cost(module: Module) -> ModuleCost:
    """Count the work and the messages of one run of a module."""
    result = ModuleCost([], [], [], [])
    _visit(module, module.entry, 1, result)
    return result


def _visit(module: Module, name: str, times: int, result: ModuleCost) -> None:
    computation = module.computations[name]
    for instruction in computation.instructions.values():
        if instruction.opcode == "while":
            trips = trip_count(module, computation, instruction)
            if trips is None:
                result.unknown_loops.append(instruction.name)
            _visit(module, instruction.called_by("body"), times * (trips or 1), result)
        elif instruction.opcode == "conditional":
            cases = []
            for case in instruction.called:
                cases.append(ModuleCost([], [], [], []))
                _visit(module, case, times, cases[-1])
            dearest = max(cases, key=lambda case: (case.flop, case.nbytes))
            for ours, theirs in zip(result, dearest, strict=True):
                ours.extend(theirs)  # type: ignore[arg-type]
        elif instruction.opcode == "call" or (instruction.opcode == "async-start" and instruction.called):
            for called in instruction.called:
                _visit(module, called, times, result)
        elif instruction.opcode not in FREE:
            for kind, found, where in _collectives(module, computation, instruction):
                result.collectives.extend(_messages(where, kind, found, times))
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


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Return how often the body of a loop runs: as the compiler notes, or the limit of a counter that starts at 0."""
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
    """Return the bytes of HBM that an instruction reads and writes."""
    opcode = instruction.opcode
    if opcode.endswith(("-done", "-update")) or (
        opcode == "custom-call" and any(f'"{name}"' in instruction.attributes for name in FREE_CALLS)
    ):
        return 0
    if instruction.name.startswith(("async-collective-start", "async-collective-done")):
        return 0  # the fusions that follow hold its operands and results
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
        # A kernel with one array as several operands reads a different part through each.
        distinct = {operand.name: operand for operand in operands}.values()
        return sum(_hbm(operand.shapes) for operand in distinct) + _hbm(instruction.shapes)
    called, first, last = instruction.called[0], 0, len(operands)
    results = range(len(instruction.shapes))
    passing = instruction.number("operand_original_start"), instruction.number("operand_original_end")
    if passing[0] is not None and passing[1] is not None:  # the other operands belong to a running collective
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
    """Return the bytes that a computation reads of a parameter: all of it, or only its slices."""
    computation = module.computations[name]
    parameter = computation.parameter(number)
    whole = _padded(computation.instructions[parameter].shapes)

    def of(value: str) -> int:
        """Return the bytes read of a value that is the parameter, or a bitcast of it."""
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
    """Return the bytes that a fused computation writes of each array of its result."""
    computation = module.computations[name]

    def of(instruction: Instruction) -> list[int]:
        """Return the bytes written of each array of an instruction's result."""
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
    """Yield kind, instruction and computation of each collective that starts in an instruction or in its fusion."""
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        yield kind, instruction, computation
    elif instruction.opcode == "fusion" and not instruction.name.startswith("async-collective-done"):
        name = instruction.called[0]
        if name.startswith("async_collective_fusion"):
            return  # it started before
        for inner in module.computations[name].instructions.values():
            for kind, found, where in _collectives(module, module.computations[name], inner):
                # The TPU compiler writes a reduce-scatter as an all-reduce of which each device keeps a slice.
                yield "reduce-scatter" if name.startswith("all-reduce-scatter") else kind, found, where


def _messages(computation: Computation, kind: str, found: Instruction, times: int) -> Iterator[Collective]:
    """Yield the messages of a collective, one for each element type; the compiler combines many arrays."""
    results = found.shapes
    if found.opcode.endswith("-start") and len(results) > 1:  # the result also holds operands and signals
        results = (max(results, key=lambda shape: shape.nbytes),)
    inputs = [computation.instructions[name].shapes for name in found.operands if name in computation.instructions]
    sides = [results, tuple(shape for shapes in inputs for shape in shapes)]
    for dtype in sorted({shape.dtype for shape in results}):
        sizes = [sum(shape.nbytes for shape in side if shape.dtype == dtype) for side in sides]
        yield Collective(kind, dtype, max(sizes), times)
