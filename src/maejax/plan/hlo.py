"""The text of a scheduled HLO module as data: computations of instructions, shapes with their layout in memory."""

import math
import re
from typing import NamedTuple

BITS = {
    "pred": 8,
    "s2": 2,
    "u2": 2,
    "s4": 4,
    "u4": 4,
    "s8": 8,
    "u8": 8,
    "s16": 16,
    "u16": 16,
    "s32": 32,
    "u32": 32,
    "s64": 64,
    "u64": 64,
    "bf16": 16,
    "f16": 16,
    "f32": 32,
    "f64": 64,
    "c64": 64,
    "c128": 128,
    "token": 0,
}

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
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.sizes)

    @property
    def nbytes(self) -> int:
        """What its elements take, in bytes, without padding."""
        return self.elements * bits(self.dtype) // 8

    @property
    def padded(self) -> int:
        """What it takes in memory, in bytes: its fastest axes filled up to whole tiles."""
        sizes = [self.sizes[axis] for axis in reversed(self.minor_to_major)] if self.minor_to_major else [*self.sizes]
        missing = len(self.tile) - len(sizes)
        sizes = [1] * missing + sizes
        for i, tile in enumerate(reversed(self.tile), 1):
            sizes[-i] = -(-sizes[-i] // tile) * tile
        return math.prod(sizes) * bits(self.dtype) // 8


class Instruction(NamedTuple):
    """One line of a computation; `shapes` are the arrays of its result, all those of a tuple."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    inside: str  # what stands between the parentheses: the number of a parameter, the value of a constant
    attributes: str

    @property
    def called(self) -> list[str]:
        """The computations it calls: of a fusion, the body and condition of a loop, of branches."""
        return [name for found in _CALLED.findall(self.attributes) for name in _NAME.findall(found)]

    def called_by(self, attribute: str) -> str:
        """The computation that one of its attributes names, such as body."""
        found = re.search(rf"\b{attribute}=%([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    def number(self, field: str) -> int | None:
        """A number of its backend configuration."""
        found = re.search(rf'"{field}":"?(\d+)', self.attributes)
        return int(found[1]) if found else None


class Computation(NamedTuple):
    """Instructions in the order in which they run, by name; the root's is the result."""

    instructions: dict[str, Instruction]
    root: str

    def parameter(self, number: int) -> str:
        """The name of a parameter."""
        return next(i.name for i in self.instructions.values() if i.opcode == "parameter" and i.inside == str(number))

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read an instruction's result."""
        return [i for i in self.instructions.values() if name in i.operands]


class Module(NamedTuple):
    """A compiled program: its computations by name, and the one that runs."""

    computations: dict[str, Computation]
    entry: str


def bits(dtype: str) -> int:
    """Bits of an element; 8-bit floats have many names."""
    return BITS.get(dtype, 8 if dtype.startswith("f8") else 4 if dtype.startswith("f4") else 32)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Read the shape of a result: one array, or all arrays of a tuple, whatever its nesting."""
    shapes = []
    for dtype, sizes, layout in _LEAF.findall(_COMMENT.sub("", text)):
        order, _, rest = layout.partition(":")
        tile, space = _TILE.search(rest), _SPACE.search(rest)
        shapes.append(
            Shape(
                dtype,
                tuple(int(size.lstrip("<= ")) for size in sizes.split(",") if size),
                tuple(int(axis) for axis in order.split(",") if axis.isdecimal()),
                tuple(int(size) for size in tile[1].split(",") if size.isdecimal()) if tile else (),
                int(space[1]) if space else 0,
            )
        )
    return tuple(shapes)


def parse(text: str) -> Module:
    """Read the text of a module, as `compiled.as_text()` gives it.

    Raises:
        ValueError: it has no entry computation.

    """
    computations: dict[str, Computation] = {}
    entry, name, instructions, root = "", "", {}, ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            head = _HEAD.match(line)
            if head:
                name, instructions, root = head[2], {}, ""
                entry = name if head[1] else entry
            elif line.startswith("}") and name:
                computations[name] = Computation(instructions, root)
        elif name and (found := _LINE.match(line)):
            instruction = parse_instruction(found[2], found[3])
            instructions[instruction.name] = instruction
            root = instruction.name if found[1] else root
    if not entry:
        raise ValueError("this is no HLO module: it has no ENTRY")
    return Module(computations, entry)


def parse_instruction(name: str, text: str) -> Instruction:
    """Read what follows the equals sign of an instruction."""
    text = _COMMENT.sub("", text)
    end = closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shapes, rest = text[:end], text[end:].lstrip()
    start = rest.index("(")
    stop = closing(rest, start)
    inside = rest[start + 1 : stop]
    return Instruction(name, parse_shapes(shapes), rest[:start], tuple(_NAME.findall(inside)), inside, rest[stop + 1 :])


def closing(text: str, start: int) -> int:
    """Find the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)
