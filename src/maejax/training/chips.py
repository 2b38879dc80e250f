"""Published peaks of accelerators: for plans, and for the part of the peak that a run reaches.

Sources: memory, its bandwidth and peak from the pages "TPU v3" to "TPU v6e" at docs.cloud.google.com/tpu/docs; so are
the links of v5e, v5p and v6e (published per chip and for both directions: divided by 2 and by the number of links).
Links of v3: Jouppi et al. 2020, doi:10.1145/3360307; of v4: Jouppi et al. 2023, arXiv 2304.01433. A v3
chip is two JAX devices, so these have half of its memory, bandwidth and peak. The clock is not published everywhere:
it is peak / (FLOP of all matrix units in a cycle). Their number and size are on the same pages; the clock of v6e is
that of v5p.

GPUs: bandwidth, peak and link are those of NVIDIA's data sheets of A100 SXM, H100 SXM, H200 SXM, DGX B200, L4 and
L40S. For RTX 4090 they are those of the whitepaper of the Ada architecture, appendix A. A peak is that of bfloat16
without sparsity, with sums in float32; a link counts in one direction. Links of the last three are PCI Express 4.0.
Memory is what a card itself reports.
"""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """One JAX device: `memory` in bytes, `bandwidth` of it in bytes/s, `peak` bfloat16 FLOP/s, `clock` in Hz.

    `link` is the bandwidth of one link to a neighbour in one direction, in bytes/s, and `links` their number. `clock`
    is 0 if the compiler reports no cycles. `kind` is JAX's name of the device.
    """

    name: str
    kind: str
    memory: float
    bandwidth: float
    peak: float
    clock: float = 0.0
    link: float = 0.0
    links: int = 0


CHIPS = (
    Chip("v3", "TPU v3", 16 * GIB, 450e9, 61.5e12, 0.94e9, 82e9, 4),
    Chip("v4", "TPU v4", 32 * GIB, 1200e9, 275e12, 1.05e9, 50e9, 6),
    Chip("v5e", "TPU v5 lite", 16 * GIB, 819e9, 197e12, 1.50e9, 50e9, 4),
    Chip("v5p", "TPU v5", 95 * GIB, 2765e9, 459e12, 1.75e9, 100e9, 6),
    Chip("v6e", "TPU v6 lite", 32 * GIB, 1638e9, 918e12, 1.75e9, 100e9, 4),
    Chip("A100 40GB", "NVIDIA A100-SXM4-40GB", 42_331_013_120, 1555e9, 312e12, link=300e9, links=1),
    Chip("A100", "NVIDIA A100-SXM4-80GB", 85_100_068_864, 2039e9, 312e12, link=300e9, links=1),
    Chip("H100", "NVIDIA H100 80GB HBM3", 84_942_979_072, 3350e9, 989e12, link=450e9, links=1),
    Chip("H200", "NVIDIA H200", 151_397_597_184, 4800e9, 989e12, link=450e9, links=1),
    Chip("B200", "NVIDIA B200", 191_514_411_008, 8000e9, 2250e12, link=900e9, links=1),
    Chip("L4", "NVIDIA L4", 23_034 * 2**20, 300e9, 121e12, link=32e9, links=1),
    Chip("L40S", "NVIDIA L40S", 46_068 * 2**20, 864e9, 362e12, link=32e9, links=1),
    Chip("RTX 4090", "NVIDIA GeForce RTX 4090", 24_564 * 2**20, 1008e9, 165e12, link=32e9, links=1),
)


def chip_of(kind: str) -> Chip | None:
    """Find a chip by JAX's name of it (`device_kind`); None if it is not in the table."""
    return next((chip for chip in CHIPS if chip.kind == kind), None)
