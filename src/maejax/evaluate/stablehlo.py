"""An encoder as one file that any later JAX, or another reader of StableHLO, runs without this package."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from maejax.evaluate.encoding import Pool, encode

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write_compiled(model: Any, path: Path, *, pool: Pool | None = "cls", platforms: tuple[str, ...] = PLATFORMS) -> int:
    """Write uint8 images [B, H, W, C] -> float32 features as StableHLO for any B; return the number of bytes.

    Weights and normalisation are inside; features are those of `encoding.extract`.
    `jax.export.deserialize(bytes).call(images)` runs the file.
    """
    config = model.config.encoder
    (batch,) = export.symbolic_shape("B")
    images = jax.ShapeDtypeStruct((batch, *config.image_size, config.channels), jnp.uint8)
    exported = export.export(jax.jit(lambda images: encode(model, images, pool)), platforms=platforms)(images)
    path.write_bytes(exported.serialize())
    return path.stat().st_size


def difference(model: Any, path: Path, images: np.ndarray, pool: Pool | None = "cls") -> float:
    """Run a file on uint8 images [B, H, W, C]; return its largest difference to the model's features.

    The difference is relative to the largest feature.
    """
    wanted = np.asarray(encode(model, images, pool))
    found = np.asarray(export.deserialize(bytearray(path.read_bytes())).call(images))
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
