"""Compiled programs, kept in the user's cache folder: a command that is started again need not compile anew."""

import hashlib
import os
from pathlib import Path

import jax

from maejax.storage.cache import cache_folder

SIZE = 2 << 30  # bytes; what was used least recently goes first
LEAST_SECONDS = 0.5  # of compilation, below which a program is not kept


def keep_compiled() -> None:
    """Keep what JAX compiles from now on, unless JAX_ENABLE_COMPILATION_CACHE=false.

    JAX_COMPILATION_CACHE_DIR names another folder. Several processes may share it, for JAX locks it. In a job of
    several processes nothing is kept, so that all of them compile the same program. Where the folder cannot be written,
    nothing is kept either.
    """
    known = jax.config.values
    off, elsewhere = not known["jax_enable_compilation_cache"], known["jax_compilation_cache_dir"]
    if off or elsewhere or jax.process_count() > 1:
        return
    folder = cache_folder() / "compiled" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", SIZE)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


def _processor() -> str:
    """Return a name for what this processor can do: hosts may share a home, and JAX does not tell them apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        known = " ".join(os.uname()[3:])
    return hashlib.sha256(known.encode()).hexdigest()[:12]
