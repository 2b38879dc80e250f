"""Keep freed memory in the process on Linux: a third of a training step on CPU is otherwise spent on page faults."""

import ctypes
import os
import platform

# mallopt(3): serve large blocks from the heap, never trim it, and keep a single arena.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Make glibc, if it is there, keep what XLA frees, from before the first computation on. MAEJAX_KEEP_MEMORY=0: not.

    XLA on CPU returns its large buffers after every step, and the kernel clears every page anew. The peak is kept.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.get("MAEJAX_KEEP_MEMORY") == "0":
        return
    libc = ctypes.CDLL(None)
    for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1)):
        libc.mallopt(parameter, value)
