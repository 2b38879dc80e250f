"""The time of a step on a chip, as a range: a roofline model of a compiled module."""

from typing import NamedTuple

from maejax.plan.hlo_cost import Collective, ModuleCost
from maejax.training.chips import Chip

# Fraction of the peak that `ops/attention_tpu.py` reaches, from the compiler's schedule of its instructions if none of
# them waits (docs/notes/plan.md).
KERNEL_UTILISATION = 0.3

ASSUMPTIONS = (
    "fastest case: each operation takes the longer of its arithmetic at the chip's published peak and its memory "
    "traffic at the published bandwidth; all messages between chips are hidden behind it",
    "slowest case: an operation with a matrix product takes the longer of the compiler's own cycle estimate and its "
    "memory traffic, any other operation its memory traffic; no message is hidden",
    "kernels: the compiler estimates no cycles for them, so the slowest case takes 30 % of the peak",
    "messages: a ring over one axis of the slice, in both directions, at the published speed of a link",
    "fast forms: each passes its comparison with plain products on the devices (--attention auto)",
    "left out: the host, late input, start-up, saving and validation",
)


class StepTime(NamedTuple):
    """Seconds of a step by several models, see `ASSUMPTIONS`.

    `roof` is the work of the fastest case, `mix` that of the slowest, `cycles` that of the compiler's estimate alone.
    `messages` is the time of all messages. `in_kernels` is the part of `mix` by which kernels exceed `roof`.
    """

    roof: float
    mix: float
    cycles: float
    messages: float
    in_kernels: float


def step_time(cost: ModuleCost, chip: Chip, devices: int) -> StepTime:
    """Estimate the time of a module on one of `devices` chips."""
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
    messages = sum(c.times * message_seconds(c, chip, devices) for c in cost.collectives)
    return StepTime(roof, mix, cycles, messages, in_kernels)


def message_seconds(collective: Collective, chip: Chip, devices: int) -> float:
    """Return the seconds of a collective on a ring of all devices, in both directions."""
    if not chip.link or devices == 1:
        return 0.0
    both = 2 if chip.links > 1 else 1
    rounds = {"all-reduce": 2.0, "collective-permute": devices / (devices - 1)}.get(collective.kind, 1.0)
    return rounds * collective.nbytes * (devices - 1) / devices / (both * chip.link)
