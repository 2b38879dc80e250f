"""Small weights of every kind, with random values everywhere."""

import sys

import numpy as np
import pytest

from maejax.models.description import MAE, Classifier, Decoder, ViT
from maejax.models.patches import sincos_table
from maejax.weights.weights import Weights, blank_arrays

ENCODER = {"image_size": (16, 24), "patch_size": 4, "dim": 64, "layers": 2, "heads": 1}


@pytest.fixture(scope="session")
def weights():
    """Make weights: `(kind, posemb, seed, **changed fields of the encoder)`."""

    def make(kind, posemb="sincos2d", seed=0, **changes):
        config = encoder = ViT(**ENCODER | changes, posemb=posemb)
        if kind == "mae":
            config = MAE(encoder=encoder, decoder=Decoder(dim=32, layers=2, heads=2, posemb=posemb), norm_pix_loss=True)
        elif kind in ("cls", "gap", "probe"):
            pooling, eps = "gap" if kind == "gap" else "cls", 1e-6 if kind == "probe" else 0.0
            config = Classifier(encoder=encoder, labels=5, pooling=pooling, head_norm=eps)
        rng = np.random.default_rng(seed)
        arrays = {n: rng.normal(0, 0.2, a.shape).astype(np.float32) for n, a in blank_arrays(config).items()}
        for name in arrays:
            if name.endswith("positions") and posemb == "sincos2d":
                arrays[name] = sincos_table(encoder.grid, arrays[name].shape[-1])[None]
            if name.endswith((".scale", "head_norm.var")):
                arrays[name] = np.abs(arrays[name]) + 0.5
        return Weights(arrays, config, "maejax", "a test")

    return make


@pytest.fixture
def same():
    """Check that two dictionaries hold the same arrays, bit by bit."""

    def check(a, b):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]), name

    return check


def prepare_torchvision():
    """Let torchvision be imported where it was built for another PyTorch: both packages import it, neither needs it."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [n for n in sys.modules if n.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        prepare_torchvision.kept = library
    except ImportError:
        pass


@pytest.fixture(scope="module")
def timm():
    prepare_torchvision()
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def transformers():
    prepare_torchvision()
    return pytest.importorskip("transformers")
