"""Shared by all tests: CPU devices, strictness, golden files."""

from pathlib import Path

import jax
import numpy as np
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden():
    """Read a golden file by its stem: groups "a/b" become nested dictionaries."""

    def read(stem):
        tree = {}
        with np.load(GOLDEN / f"{stem}.npz") as file:
            for name in file.files:
                group, _, rest = name.partition("/")
                if rest:
                    tree.setdefault(group, {})[rest] = file[name]
                else:
                    tree[group] = file[name]
        return tree

    return read
