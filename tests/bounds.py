"""How close computed floats have to be: the one rule for all tests."""

import jax
import numpy as np

PARITY = 1e-5  # what the authors' code, PyTorch, timm and optax compute, in float32


def rounding(terms):
    """Return how far apart two float32 computations of the same values may be, of the largest value.

    `terms` counts the additions on the way to one value: the sizes of all sums passed through, one after the other.

    A float32 sum of n terms is rounded n times by up to 2^-24 of its size. Each processor adds in another order: SSE,
    AVX2 and AVX-512 have 4, 8 and 16 lanes. The roundings are independent, so the sums differ by about sqrt(n) * 2^-24
    of the largest. The factor 4 is for the largest difference among thousands of values.
    """
    return 4 * np.sqrt(terms) * 2.0**-24


def assert_close(actual, wanted, rtol=PARITY, each=0.0, name=""):
    """Compare arrays, or trees of arrays, to within `rtol` of the largest wanted value of each array.

    Small values come from sums of large ones, so their error is that of the large ones. `each` allows a share of every
    single value beside it, for values that are rounded to bfloat16 at the end. A list counts as an array.
    """

    def compare(path, ours, theirs):
        theirs = np.asarray(theirs, np.float64)
        atol = rtol * np.abs(theirs).max()
        np.testing.assert_allclose(
            np.asarray(ours, np.float64), theirs, rtol=each, atol=atol, err_msg=name + jax.tree_util.keystr(path)
        )

    jax.tree_util.tree_map_with_path(compare, actual, wanted, is_leaf=lambda tree: isinstance(tree, list))


def assert_trained_alike(actual, wanted, rtol=PARITY, name=""):
    """Compare an array that Adam has trained, to within `rtol` of the norm of the wanted one.

    Adam divides a gradient by its size. The rounding of a gradient near zero moves that value as far as any other.
    """
    assert np.linalg.norm(np.asarray(actual) - wanted) < rtol * np.linalg.norm(wanted), name
