"""Random numbers by position: the order of an epoch, and the numbers of the augmentation of a row."""

import threading
from typing import Any

import numpy as np

_ORDER, _AUGMENT = 0, 1  # streams of random numbers


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of n images in an epoch, a permutation of 0..n-1 as int64 [n]."""
    # Raw bits of Philox: their streams are fixed for good, those of numpy's `permutation` are not.
    return np.argsort(_philox(seed, _ORDER, epoch).random_raw(n), kind="stable")


def window_order(n: int, seed: int, shard: int, window: int) -> np.ndarray:
    """Return the order of the n images of a window of a shard, int64 [n]; `shard` counts those of all epochs."""
    return np.argsort(_philox(seed, _ORDER, shard, 1 + window).random_raw(n), kind="stable")


def augment_rng(seed: int, position: int) -> np.random.Generator:
    """Return the generator of this thread, at the random numbers of the row at a position of the endless sequence."""
    state = _thread.state
    state["state"]["key"][0] = seed % 2**64
    state["state"]["counter"][1] = position
    _thread.rng.bit_generator.state = state
    return _thread.rng


def _philox(seed: int, stream: int, position: int, part: int = 0) -> np.random.Philox:
    # Counter-based: every (seed, stream, position, part) has 2**64 blocks of its own, and none costs a warm-up.
    key = np.array([seed % 2**64, stream], np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, position, part, 0], np.uint64))


class _Thread(threading.local):
    """The generator of a thread: a new one for each row would cost ten times as much as setting its state."""

    def __init__(self):
        self.rng = np.random.Generator(_philox(0, _AUGMENT, 0))
        self.state: dict[str, Any] = dict(self.rng.bit_generator.state)


_thread = _Thread()
