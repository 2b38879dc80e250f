"""An encoder as one file that any later JAX, or another reader of StableHLO, runs without this package."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from maejax.evaluate.encoding import Pool, encode

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write_compiled(model: Any, path: Path, pool: Pool | None) -> float:
    """Write uint8 images [B, H, W, C] -> float32 features as StableHLO for any B, and run it on three random images.

    Weights and normalisation are inside; features are those of `encoding.extract`.
    `jax.export.deserialize(bytes).call(images)` runs the file. Returns the largest difference to the model's features,
    relative to the largest of them.
    """
    shape = *model.config.encoder.image_size, model.config.encoder.channels
    images = jax.ShapeDtypeStruct((*export.symbolic_shape("B"), *shape), jnp.uint8)
    exported = export.export(jax.jit(lambda images: encode(model, images, pool)), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())
    noise = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    wanted = np.asarray(encode(model, noise, pool))
    found = np.asarray(export.deserialize(bytearray(path.read_bytes())).call(noise))
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
