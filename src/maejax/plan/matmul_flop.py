"""FLOP of the matrix products in a module."""

import math
import re
from collections.abc import Iterator

import numpy as np

from maejax.plan.hlo import Instruction, Shape, bits


def matmuls(instruction: Instruction) -> Iterator[tuple[str, int]]:
    """Yield operand type and FLOP of every matrix product in an instruction; a kernel has those that it declares."""
    if instruction.opcode in ("dot", "convolution"):
        shapes = [operand.shapes[0] for operand in instruction.operands[:2]]
        types = sorted({shape.dtype for shape in shapes}, key=bits, reverse=True)
        flop = dot_flop if instruction.opcode == "dot" else convolution_flop
        yield " x ".join(types), flop(instruction, *shapes)
    elif instruction.opcode == "custom-call" and (declared := instruction.number("flops")):
        yield instruction.operands[0].shapes[0].dtype, declared
    elif instruction.opcode == "fusion":
        for inner in instruction.called[0].instructions.values():
            yield from matmuls(inner)


def dot_flop(dot: Instruction, left: Shape, right: Shape) -> int:
    """Return the FLOP of a `dot`: two for each element of the result and each contracted index."""
    found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes)
    contracted = math.prod(left.sizes[int(axis)] for axis in found[1].split(",") if axis) if found else 1
    return 2 * dot.shapes[0].elements * contracted


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
