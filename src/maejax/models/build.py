"""Models from their descriptions: with fresh weights, or as shapes alone."""

from typing import Any

import jax
from flax import nnx

from maejax.models.classifier import ImageClassifier
from maejax.models.custom import CustomAutoencoder
from maejax.models.description import MAE, PLAIN, Classifier, Compute, Network, ViT
from maejax.models.mae import MaskedAutoencoder
from maejax.models.vit import VisionTransformer

MODULES = {ViT: VisionTransformer, MAE: MaskedAutoencoder, Classifier: ImageClassifier}


def initial_model(config: Network, compute: Compute = PLAIN, seed: int = 0) -> Any:
    """Build the model of a description with fresh float32 weights."""
    custom = isinstance(config, MAE) and config.decoder.custom is not None
    return (CustomAutoencoder if custom else MODULES[type(config)])(config, compute, nnx.Rngs(seed))  # type: ignore[arg-type]


def abstract_model(config: Network, compute: Compute = PLAIN) -> Any:
    """Build a model of shapes and types alone, which takes neither memory nor time."""
    return jax.eval_shape(lambda: initial_model(config, compute))
