"""Masked-autoencoder pre-training in JAX: from images to a measured encoder.

Examples:
    >>> import maejax
    >>> model = maejax.load("runs/demo")              # what a run wrote
    >>> z = model.encode(model.normalize(images))     # uint8 [B, H, W, C] -> [B, D]

docs/python.md describes the names below. None of them imports JAX before it is used.
"""

from typing import TYPE_CHECKING

from maejax.version import __version__ as __version__

__all__ = [
    "Dataset",
    "InputError",
    "MaskedAutoencoder",
    "VisionTransformer",
    "create",
    "evaluate",
    "load",
    "masking",
    "normalize",
    "reconstruct",
    "save",
    "train",
]

if TYPE_CHECKING:
    from maejax.api.creation import create, save
    from maejax.api.dataset import Dataset
    from maejax.api.evaluation import evaluate
    from maejax.api.trained import train
    from maejax.errors import InputError
    from maejax.evaluation.reconstruction import reconstruct
    from maejax.models import masking
    from maejax.models.mae import MaskedAutoencoder
    from maejax.models.normalization import normalize
    from maejax.models.vit import VisionTransformer
    from maejax.weights.files import load


def __getattr__(name: str):
    """Import a public name when it is first used, so that `maejax --help` does not wait for JAX."""
    match name:
        case "Dataset":
            from maejax.api.dataset import Dataset as value
        case "InputError":
            from maejax.errors import InputError as value
        case "MaskedAutoencoder":
            from maejax.models.mae import MaskedAutoencoder as value
        case "VisionTransformer":
            from maejax.models.vit import VisionTransformer as value
        case "create":
            from maejax.api.creation import create as value
        case "evaluate":
            from maejax.api.evaluation import evaluate as value
        case "save":
            from maejax.api.creation import save as value
        case "train":
            from maejax.api.trained import train as value
        case "load":
            from maejax.weights.files import load as value
        case "masking":
            from maejax.models import masking as value
        case "normalize":
            from maejax.models.normalization import normalize as value
        case "reconstruct":
            from maejax.evaluation.reconstruction import reconstruct as value
        case _:
            raise AttributeError(f"module 'maejax' has no attribute {name!r}")
    return value
