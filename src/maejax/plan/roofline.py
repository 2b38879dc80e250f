"""The time of a step on a chip, as a range: a roofline model of a compiled module."""

from typing import NamedTuple

from maejax.plan.hlo_cost import Collective, ModuleCost
from maejax.training.chips import Chip

# Fraction of the peak that `ops/attention_tpu.py` reaches, from the compiler's schedule of its instructions if none of
# them waits (docs/notes/plan.md).
KERNEL_UTILISATION = 0.3
# On GPUs, whose compiler estimates no cycles, the slowest case reaches these shares of peak and bandwidth: assumed. For
# Hopper, Shah et al. 2024 (arXiv 2407.08608, section 1) have 80 to 90 % for large products and 35 % for attention.
GPU_PRODUCTS, GPU_MEMORY = 0.4, 0.8

TPU_ASSUMPTIONS = (
    "fastest case: each operation takes the longer of its arithmetic at the chip's published peak and its memory "
    "traffic at the published bandwidth; all messages between chips are hidden behind it",
    "slowest case: an operation with a matrix product takes the longer of the compiler's own cycle estimate and its "
    "memory traffic, any other operation its memory traffic; no message is hidden",
    "kernels: the compiler estimates no cycles for them, so the slowest case takes 30 % of the peak",
    "messages: a ring over one axis of the slice, in both directions, at the published speed of a link",
    "fast forms: each passes its comparison with plain products on the devices (--attention auto)",
    "left out: the host, late input, start-up, saving and validation",
)
GPU_ASSUMPTIONS = (
    TPU_ASSUMPTIONS[0].replace("chip", "card").replace("between cards", "between GPUs"),
    f"slowest case: products reach {GPU_PRODUCTS:.0%} of the peak, memory {GPU_MEMORY:.0%} of the bandwidth, which is "
    "assumed and not measured; no message is hidden",
    "float32 is multiplied as TF32, at half the peak of bfloat16",
    "traffic: every kernel reads and writes device memory, though a card's cache keeps some of it; products are those "
    "of cuBLAS, for which a card may prefer Triton's, which move less",
    "messages: a ring over all GPUs at the published speed of NVLink, PCIe or, of several hosts, their network",
    *TPU_ASSUMPTIONS[-2:],
)


class StepTime(NamedTuple):
    """Seconds of a step by several models, see the assumptions above.

    `roof` is the work of the fastest case, `mix` that of the slowest, `cycles` that of the compiler's estimate alone.
    `messages` is the time of all messages. `in_kernels` is the part of `mix` by which kernels exceed `roof`.
    """

    roof: float
    mix: float
    cycles: float
    messages: float
    in_kernels: float


def step_time(cost: ModuleCost, chip: Chip, devices: int) -> StepTime:
    """Estimate the time of a module on one of `devices` chips; a chip without a clock is a GPU."""
    messages = sum(c.times * message_seconds(c, chip, devices) for c in cost.collectives)
    if not chip.clock:
        return _gpu_time(cost, chip, messages)
    roof = mix = cycles = in_kernels = 0.0
    for work in cost.work:
        memory = work.nbytes / chip.bandwidth
        ideal = sum(work.flop.values()) / chip.peak
        least = max(ideal, memory)
        if work.opcode == "custom-call":
            predicted = max(ideal / KERNEL_UTILISATION, memory)
            in_kernels += work.times * (predicted - least)
        else:
            predicted = work.cycles / chip.clock if work.cycles is not None and chip.clock else least
        roof += work.times * least
        mix += work.times * (max(predicted, memory) if work.flop else memory)
        cycles += work.times * predicted
    return StepTime(roof, mix, cycles, messages, in_kernels)


def _gpu_time(cost: ModuleCost, chip: Chip, messages: float) -> StepTime:
    roof = mix = 0.0
    for work in cost.work:
        memory = work.nbytes / chip.bandwidth
        ideal = sum(flop * (2 if "f32" in dtype else 1) for dtype, flop in work.flop.items()) / chip.peak
        roof += work.times * max(ideal, memory)
        mix += work.times * max(ideal / GPU_PRODUCTS, memory / GPU_MEMORY)
    return StepTime(roof, mix, mix, messages, 0.0)


def message_seconds(collective: Collective, chip: Chip, devices: int) -> float:
    """Return the seconds of a collective on a ring of all devices, in both directions."""
    if not chip.link or devices == 1:
        return 0.0
    both = 2 if chip.links > 1 else 1
    rounds = {"all-reduce": 2.0, "collective-permute": devices / (devices - 1)}.get(collective.kind, 1.0)
    return rounds * collective.nbytes * (devices - 1) / devices / (both * chip.link)
