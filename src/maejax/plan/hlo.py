"""A parser for the text of a scheduled HLO module: computations, instructions, shapes with their layout."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

_LEAF = re.compile(r"(\w+)\[([\d,<= ]*)\](?:\{([^}]*)\})?")
_COMMENT = re.compile(r"/\*.*?\*/")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_TILE = re.compile(r"T\(([\d,*]*)\)")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)


class Shape(NamedTuple):
    """An array: element type, sizes, axes from the fastest to the slowest, first tile, memory space (0 is HBM)."""

    dtype: str
    sizes: tuple[int, ...]
    minor_to_major: tuple[int, ...]
    tile: tuple[int, ...]
    space: int

    @property
    def nbytes(self) -> int:
        """The bytes of its elements, without padding."""
        return math.prod(self.sizes) * bits(self.dtype) // 8

    @property
    def padded(self) -> int:
        """The bytes that it takes in memory, with its fastest axes padded to whole tiles."""
        sizes = [self.sizes[axis] for axis in reversed(self.minor_to_major)] if self.minor_to_major else [*self.sizes]
        missing = len(self.tile) - len(sizes)
        sizes = [1] * missing + sizes
        for i, tile in enumerate(reversed(self.tile), 1):
            sizes[-i] = -(-sizes[-i] // tile) * tile
        return math.prod(sizes) * bits(self.dtype) // 8


@dataclass(eq=False)
class Instruction:
    """One line of a computation; `shapes` are the arrays of its result, all those of a tuple."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: "tuple[Instruction, ...]"
    inside: str  # the text between the parentheses: the number of a parameter, the value of a constant
    attributes: str
    called: "tuple[Computation, ...]"  # a fusion's, the body and condition of a loop, branches

    def called_by(self, attribute: str) -> "Computation":
        """Return the computation that an attribute names, such as body."""
        found = re.search(rf"\b{attribute}=%([\w.\-]+)", self.attributes)
        return next(called for called in self.called if found and called.name == found[1])

    def number(self, field: str) -> int | None:
        """Return a number of its backend configuration, None if it has none."""
        found = re.search(rf'"{field}":"?(\d+)', self.attributes)
        return int(found[1]) if found else None


@dataclass(eq=False)
class Computation:
    """Instructions in the order in which they run, by name; the root's is the result."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: Instruction | None = None


def bits(dtype: str) -> int:
    """Return the bits of an element: the first number in the name of its type, such as bf16 or f8e4m3fn."""
    number = re.search(r"\d+", dtype)
    return {"pred": 8, "token": 0}.get(dtype, int(number[0]) if number else 32)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Parse the shape of a result: one array, or all arrays of a tuple, however nested."""
    shapes = []
    for dtype, sizes, layout in _LEAF.findall(_COMMENT.sub("", text)):
        order, _, rest = layout.partition(":")
        tile, space = _TILE.search(rest), _SPACE.search(rest)
        number = int(space[1]) if space else 0
        shapes.append(Shape(dtype, _numbers(sizes), _numbers(order), _numbers(tile[1] if tile else ""), number))
    return tuple(shapes)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def parse(text: str) -> Computation:
    """Parse a module, as of `compiled.as_text()`, to the computation that runs; raises ValueError if there is none."""
    computations: dict[str, Computation] = {}
    entry = here = None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            here = computations[head[2]] = Computation(head[2])
            entry = here if head[1] else entry
        elif here is not None and (found := _LINE.match(line)):
            instruction = parse_instruction(found[2], found[3], here.instructions, computations)
            here.instructions[instruction.name] = instruction
            here.root = instruction if found[1] else here.root
    if entry is None:
        raise ValueError("this is no HLO module: it has no ENTRY")
    return entry


def parse_instruction(
    name: str, text: str, known: Mapping[str, Instruction] = {}, computations: Mapping[str, Computation] = {}
) -> Instruction:
    """Parse the text of an instruction after its equals sign; operands and computations are those that are known."""
    text = _COMMENT.sub("", text)
    end = closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    rest = text[end:].lstrip()
    start = rest.index("(")
    stop = closing(rest, start)
    inside, attributes = rest[start + 1 : stop], rest[stop + 1 :]
    operands = tuple(known[operand] for operand in _NAME.findall(inside) if operand in known)
    names = [called for found in _CALLED.findall(attributes) for called in _NAME.findall(found)]
    called = tuple(computations[called] for called in names if called in computations)
    return Instruction(name, parse_shapes(text[:end]), rest[:start], operands, inside, attributes, called)


def closing(text: str, start: int) -> int:
    """Return the position of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)
