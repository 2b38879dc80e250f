"""Masked-autoencoder pre-training in JAX: from images to a measured encoder.

Examples:
    >>> import maejax
    >>> model = maejax.load("runs/demo")              # what a run wrote
    >>> z = model.encode(model.normalize(images))     # uint8 [B, H, W, C] -> [B, D]
"""

from typing import TYPE_CHECKING

from maejax.version import __version__ as __version__

__all__ = ["load", "masking", "normalize", "reconstruct"]

if TYPE_CHECKING:
    from maejax.evaluate.reconstruction import reconstruct
    from maejax.models import masking
    from maejax.models.normalization import normalize
    from maejax.weights.files import load


def __getattr__(name: str):
    """Import a public name when it is first used, so that `maejax --help` does not wait for JAX."""
    match name:
        case "load":
            from maejax.weights.files import load as value
        case "masking":
            from maejax.models import masking as value
        case "normalize":
            from maejax.models.normalization import normalize as value
        case "reconstruct":
            from maejax.evaluate.reconstruction import reconstruct as value
        case _:
            raise AttributeError(f"module 'maejax' has no attribute {name!r}")
    return value
