"""How long a step takes on a chip: a range from what a module does, with the assumptions that it rests on."""

from typing import NamedTuple

from maejax.plan.walk import Collective, Walk
from maejax.training.chips import Chip

# What a kernel reaches of the peak by the products that it declares: the instructions of `models/attention_kernel.py`
# as the compiler schedules them, which wait for nothing (docs/notes/plan.md).
KERNEL_SHARE = 0.3

ASSUMPTIONS = (
    "fastest: every operation at the published peak of matrix units or memory, whichever takes longer, and no message "
    "between chips is waited for",
    "slowest: operations with a matrix product at the compiler's own cycle estimate or at memory speed, all others at "
    "memory speed, kernels, of which the compiler tells no cycles, at 30 % of the peak, and every message waited for",
    "messages: a ring over one axis of the slice, both directions, at the published speed of a link",
    "not in it: the host, input that comes late, start-up, saving and validation",
)


class Estimate(NamedTuple):
    """Seconds of a step. `roof`, `mix`: see `ASSUMPTIONS`; `cycles`: the compiler's own; `messages`: all, unhidden.

    `in_kernels`: the part of `mix` that kernels take beyond the limits of the chip.
    """

    roof: float
    mix: float
    cycles: float
    messages: float
    in_kernels: float

    @property
    def fastest(self) -> float:
        """All messages hidden behind the work, which is at the limits of the chip."""
        return max(self.roof, self.messages)

    @property
    def slowest(self) -> float:
        """No message hidden."""
        return self.mix + self.messages


def estimate(walked: Walk, chip: Chip, devices: int) -> Estimate:
    """Estimate how long a module takes on one of `devices` chips."""
    roof = mix = cycles = in_kernels = 0.0
    for work in walked.work:
        memory = work.nbytes / chip.bandwidth
        ideal = sum(work.flop.values()) / chip.peak
        least = max(ideal, memory)
        if work.opcode == "custom-call":
            predicted = max(ideal / KERNEL_SHARE, memory)
            in_kernels += work.times * (predicted - least)
        else:
            predicted = work.cycles / chip.clock if work.cycles is not None and chip.clock else least
        roof += work.times * least
        mix += work.times * (max(predicted, memory) if work.flop else memory)
        cycles += work.times * predicted
    messages = sum(c.times * message_seconds(c, chip, devices) for c in walked.collectives)
    return Estimate(roof, mix, cycles, messages, in_kernels)


def message_seconds(collective: Collective, chip: Chip, devices: int) -> float:
    """Time a collective on a ring of all devices, in both directions."""
    if not chip.link or devices == 1:
        return 0.0
    both = 2 if chip.links > 1 else 1
    rounds = {"all-reduce": 2.0, "collective-permute": devices / (devices - 1)}.get(collective.kind, 1.0)
    return rounds * collective.nbytes * (devices - 1) / devices / (both * chip.link)
