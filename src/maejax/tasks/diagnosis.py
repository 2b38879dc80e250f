"""Why a step gave no finite loss or gradient: which images, and which layer is the first to go wrong."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from maejax.models.classifier import ImageClassifier
from maejax.models.mae import MaskedAutoencoder
from maejax.models.trees import named_arrays
from maejax.models.vit import Transformer
from maejax.storage.mirror import shown

NAMED = 8  # keys listed in a message; the file has all rows


def first_bad_layer(model: MaskedAutoencoder, images: np.ndarray, order: np.ndarray) -> str:
    """Name the first part of a model that is not finite on images uint8 [B, H, W, C] with order int32 [B, N].

    In the order of computation: parameters, the encoder layer by layer, the decoder layer by layer, the loss, then the
    gradients. Runs the stacks once for every layer: for a run that ends, not for every step.
    """
    wrong = [name for name, array in named_arrays(model).items() if not finite(array)]
    if wrong:
        return f"the parameter {wrong[0]}"
    x = model.normalize(jnp.asarray(images))
    keep = jnp.asarray(order)[:, : model.visible]
    for stack, encoder in cut(model.encoder, "transformer"):
        if not finite(encoder(x, keep)):
            return f"encoder.transformer.blocks[{stack - 1}]" if stack else "encoder.embed"
    latent = model.encoder(x, keep)
    for stack, part in cut(model, "decoder"):
        if not finite(part.decode(latent, jnp.asarray(order))):
            return f"decoder.blocks[{stack - 1}]" if stack else "dec_embed"
    if not finite(model(x, jnp.asarray(order)).loss):
        return "the loss"
    gradients = named_arrays(jax.grad(lambda m: m(x, jnp.asarray(order)).loss.sum())(model))
    wrong = [name for name, array in gradients.items() if not finite(array)]
    return f"the gradient of {wrong[-1]}" if wrong else "no layer without dropout"


def first_bad_part(model: ImageClassifier, images: np.ndarray, labels: jax.Array) -> str:
    """Name the first part of a classifier that is not finite on images uint8 [B, H, W, C] with labels int32 [B]."""
    wrong = [name for name, array in named_arrays(model).items() if not finite(array)]
    if wrong:
        return f"the parameter {wrong[0]}"
    x = model.normalize(jnp.asarray(images))
    for layers, encoder in cut(model.encoder, "transformer"):
        if not finite(encoder(x)):
            return f"encoder.transformer.blocks[{layers - 1}]" if layers else "encoder.embed"
    if not finite(model(x)):
        return "the head"

    def loss(m):
        return -jnp.take_along_axis(jax.nn.log_softmax(m(x)), labels.reshape(-1, 1), axis=1).sum()

    wrong = [name for name, array in named_arrays(jax.grad(loss)(model)).items() if not finite(array)]
    return f"the gradient of {wrong[-1]}" if wrong else "no layer without dropout"


def cut(module, attribute: str):
    """Yield (n, module with only the first n layers of one of its stacks), n from 0 to all of them."""
    whole: Transformer = getattr(module, attribute)
    for layers in range(whole.layers + 1):
        shallow, stack = (jax.tree.map(lambda a: a, m) for m in (module, whole))
        stack.layers, stack.blocks = layers, jax.tree.map(lambda a, n=layers: a[:n], whole.blocks)
        setattr(shallow, attribute, stack)
        yield layers, shallow


def finite(array: jax.Array) -> bool:
    """Return whether an array holds finite numbers only."""
    return bool(jnp.isfinite(array).all())


def write_batch(path: Path, rows: dict[str, np.ndarray]) -> str:
    """Write a batch as .npz for inspection; return a sentence with its path, or why it was not written."""
    try:
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **rows)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        return f"the batch was not written ({error.strerror})"
    return f"the batch is in {shown(path)}"


def list_keys(keys: list[str]) -> str:
    """List the first few samples."""
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return f"{', '.join(keys[:NAMED])}{more}"
