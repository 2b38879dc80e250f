"""The images a second that this host prepares for training."""

import os
import time
from typing import Any

from maejax.data.augment import Size, Transform
from maejax.data.batch_plan import BatchConfig
from maejax.data.pipeline import Loader
from maejax.data.sources import Source


def measure(
    source: Source, transform: Transform, size: Size, channels: int, seconds: float = 3.0
) -> dict[str, float | int]:
    """Measure images/s of the training loader with `one` thread and with one for each core (`all`)."""
    cores = os.cpu_count() or 1
    rates: dict[str, Any] = {"cores": cores, "one": _rate(source, transform, size, channels, 1, seconds)}
    rates["all"] = _rate(source, transform, size, channels, cores, seconds) if cores > 1 else rates["one"]
    return rates


def _rate(source: Source, transform: Transform, size: Size, channels: int, workers: int, seconds: float) -> float:
    batch = 16 * workers  # a small one: batches are counted whole
    loader = Loader(source, transform, BatchConfig(batch), size=size, channels=channels, workers=workers)
    batches = loader.iterate()
    try:
        next(batches)
        begun = time.perf_counter()
        images = 0
        while (passed := time.perf_counter() - begun) < seconds or not images:
            images += int(next(batches).valid.sum())
        return images / passed
    finally:
        batches.close()
