"""Small weights of every kind, with random values everywhere."""

import numpy as np
import pytest

from maejax.models.patches import sincos_table
from maejax.weights.run_directory import model_shapes
from maejax.weights.weights import Weights, decoder_arguments, encoder_arguments

ENCODER = {
    "image_size": [16, 24], "patch_size": 4, "channels": 3, "dim": 64, "layers": 2, "heads": 1, "layerscale": False,
}  # fmt: skip


@pytest.fixture(scope="session")
def weights():
    """Make weights: `(kind, seed, **changed encoder arguments)`."""

    def make(kind, posemb="sincos2d", seed=0, **changes):
        arguments = encoder_arguments(**{**ENCODER, **changes, "posemb": posemb})
        if kind == "mae":
            arguments |= decoder_arguments(dim=32, layers=2, heads=2, posemb=posemb, norm_pix_loss=True)
        elif kind in ("cls", "gap", "probe"):
            arguments |= {"labels": 5, "pooling": "gap" if kind == "gap" else "cls"}
        if kind == "probe":
            arguments |= {"head_norm": 1e-6}
        rng = np.random.default_rng(seed)
        arrays = {n: rng.normal(0, 0.2, s).astype(np.float32) for n, s in model_shapes(arguments).items()}
        for name in arrays:
            if name.endswith("positions") and posemb == "sincos2d":
                grid = [s // arguments["patch_size"] for s in arguments["image_size"]]
                arrays[name] = sincos_table((grid[0], grid[1]), arrays[name].shape[-1])[None]
            if name.endswith((".scale", "head_norm.var")):
                arrays[name] = np.abs(arrays[name]) + 0.5
        return Weights(arrays, arguments, "maejax", "a test")

    return make


@pytest.fixture
def same():
    """Check that two dictionaries hold the same arrays, bit by bit."""

    def check(a, b):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]), name

    return check
