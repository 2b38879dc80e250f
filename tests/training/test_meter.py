"""Rates: over whole intervals, and as a share of a known chip's peak."""

import pytest

from maejax.training import meter
from maejax.training.chips import CHIPS


def test_a_known_chip_gives_the_share_of_its_peak(monkeypatch):
    clock = iter((0.0, 100.0, 100.5, 102.0, 102.0))
    monkeypatch.setattr(meter.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(meter.jax, "device_count", lambda: 2)
    monkeypatch.setattr(meter, "chip_of", lambda kind: next(chip for chip in CHIPS if chip.name == "v4"))
    measure = meter.Meter(batch_size=64, stop=10, flop=58.7e9)
    measure.restart(1)
    assert measure.read(1) == {}  # which does not begin anew
    read = measure.read(3)
    assert read["train/images_per_second"] == 2 * 64 / 2.0
    assert read["train/mfu"] == pytest.approx(64 * 58.7e9 / (2 * 275e12))


def test_an_unknown_chip_gives_none():
    measure = meter.Meter(batch_size=64, stop=10, flop=58.7e9)
    assert "train/mfu" not in measure.read(3)
