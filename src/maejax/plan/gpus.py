"""NVIDIA GPUs as XLA's compiler must have them described where there is no card and no driver.

Sources, in NVIDIA's documents:
- Cores (streaming multiprocessors), clock (boost) and second-level cache: the architecture whitepapers of A100, H100
  and Ada (its appendices have RTX 4090, L40S and L4). B200 and the sizes of memory in `chips.CHIPS`: what the cards
  say of themselves (xla/backends/gpu/target_config/specs in XLA's repository; nvidia-smi for Ada's cards).
- Limits of a core by compute capability: CUDA C++ Programming Guide, table "Technical Specifications per Compute
  Capability"; its units for float32: there, table of the throughput of arithmetic instructions.
- Network of a host: the user guides of DGX A100 (eight ports of 200 Gbit/s), DGX H100, H200 and B200 (eight of 400).
  Hosts of other cards differ; one port of 100 Gbit/s is assumed.

V100 is left out: there the compiler multiplies bfloat16 as float32, and cuDNN's fused attention does not run.
"""

import re
from typing import NamedTuple

from maejax.training.chips import CHIPS, Chip

HOST = 8  # GPUs of one host, at most
MIB, KIB = 2**20, 2**10
CUDA, CUDNN = "12.8.0", (9, 10, 0)


class Gpu(NamedTuple):
    """A card: its row of `CHIPS`, compute capability, cores, MiB of cache, GHz, and bytes/s of its host's network."""

    chip: str
    capability: tuple[int, int]
    cores: int
    cache: int
    clock: float
    network: float

    @property
    def described(self) -> Chip:
        """Its published memory, bandwidth and peak."""
        return next(chip for chip in CHIPS if chip.name == self.chip)


class Limits(NamedTuple):
    """Limits of a core: KiB of shared memory, KiB of it for one block, threads, units for float32."""

    shared: int
    block: int
    threads: int
    units: int


GPUS = {
    "h100": Gpu("H100", (9, 0), 132, 50, 1.98, 400e9),
    "h200": Gpu("H200", (9, 0), 132, 50, 1.98, 400e9),
    "b200": Gpu("B200", (10, 0), 148, 126, 1.965, 400e9),
    "a100-40": Gpu("A100 40GB", (8, 0), 108, 40, 1.41, 200e9),
    "a100-80": Gpu("A100", (8, 0), 108, 40, 1.41, 200e9),
    "l4": Gpu("L4", (8, 9), 58, 48, 2.04, 12.5e9),
    "l40s": Gpu("L40S", (8, 9), 142, 96, 2.52, 12.5e9),
    "rtx4090": Gpu("RTX 4090", (8, 9), 128, 72, 2.52, 12.5e9),
}
LIMITS = {
    (8, 0): Limits(164, 163, 2048, 64),
    (8, 9): Limits(100, 99, 1536, 128),
    (9, 0): Limits(228, 227, 2048, 128),
    (10, 0): Limits(228, 227, 2048, 128),
}


def read_gpus(name: str, flag: str = "--topology") -> tuple[Gpu, int] | None:
    """Read a card and its number, such as h100-8 or a100-80-8, 1 without a number; None if the name is of no card.

    Raises ValueError if there are no such hosts: all have eight, or there is one with fewer.
    """
    card = next((card for card in GPUS if re.fullmatch(rf"{card}(-\d+)?", name)), None)
    if card is None:
        if name.startswith("a100"):
            raise ValueError(f"{flag} {name}: give the memory of the card too: a100-40, a100-80, a100-80-8 for eight")
        return None
    count = int(name.removeprefix(card).removeprefix("-") or 1)
    if count < 1 or (count > HOST and count % HOST):
        raise ValueError(f"{flag} {name}: give {card}-1 to {card}-{HOST} for one host, or a multiple of {HOST}")
    return GPUS[card], count


def linked(gpu: Gpu, count: int) -> Chip:
    """Return the chip of a card with the links that so many have: those of a host, or its network where slower."""
    chip = gpu.described
    return chip if count <= HOST else chip._replace(link=min(chip.link, gpu.network))


def describe(gpu: Gpu) -> str:
    """Describe a card in the text form of XLA's `GpuTargetConfigProto`."""
    chip, limits = gpu.described, LIMITS[gpu.capability]
    major, minor = gpu.capability
    features = "\n    feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    versions = "".join(f"\n  {field}: {part}" for field, part in zip(("major", "minor", "patch"), CUDNN, strict=True))
    return f"""
gpu_device_info {{
  cuda_compute_capability {{
    major: {major}
    minor: {minor}{features}
  }}
  name: "{chip.kind}"
  core_count: {gpu.cores}
  fpus_per_core: {limits.units}
  clock_rate_ghz: {gpu.clock}
  memory_bandwidth: {chip.bandwidth:.0f}
  device_memory_size: {chip.memory:.0f}
  l2_cache_size: {gpu.cache * MIB}
  shared_memory_per_core: {limits.shared * KIB}
  shared_memory_per_block: {48 * KIB}
  shared_memory_per_block_optin: {limits.block * KIB}
  threads_per_core_limit: {limits.threads}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  runtime_version: "{CUDA}"
  compile_time_toolkit_version: "{CUDA}"
  driver_version: "{CUDA}"
  dnn_version: "{".".join(map(str, CUDNN))}"
}}
platform_name: "CUDA"
dnn_version_info {{{versions}
}}
device_description_str: "{chip.kind}"
"""
