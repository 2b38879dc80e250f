"""Why a step gave no finite loss or gradient: which images, and which layer is the first to go wrong."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maejax.data.sources import Source
from maejax.data.stream import Stream
from maejax.models.classifier import ImageClassifier
from maejax.models.mae import MaskedAutoencoder
from maejax.models.transformer import Transformer
from maejax.models.trees import named_arrays
from maejax.storage.mirror import shown

NAMED = 8  # keys listed in a message; the file has all rows


def first_bad_layer(model: MaskedAutoencoder, images: np.ndarray, order: np.ndarray) -> str:
    """Name the first part of a model that is not finite on images uint8 [B, H, W, C] with order int32 [B, N].

    In the order of computation: parameters, the encoder layer by layer, the decoder layer by layer, the loss, then the
    gradients. Runs the stacks once for every layer: for a run that ends, not for every step.
    """
    x, order_here = model.normalize(jnp.asarray(images)), jnp.asarray(order)
    keep = order_here[:, : model.visible]

    def outcomes():
        yield from layers(model.encoder, "transformer", "encoder.", "embed", lambda part: part(x, keep))
        latent, first = model.latent(x, order_here), "dec_embed" if getattr(model, "dec_embed", None) else "mask_token"
        if isinstance(model.decoder, Transformer):
            yield from layers(model, "decoder", "", first, lambda part: part.decode(latent, order_here))
        else:
            yield "the decoder", model.decode(latent, order_here)
        yield "the loss", model(x, order_here).loss

    return first_bad(model, outcomes(), lambda m: m(x, order_here).loss.sum())


def first_bad_part(model: ImageClassifier, images: np.ndarray, labels: jax.Array) -> str:
    """Name the first part of a classifier that is not finite on images uint8 [B, H, W, C] with labels int32 [B]."""
    x = model.normalize(jnp.asarray(images))

    def outcomes():
        yield from layers(model.encoder, "transformer", "encoder.", "embed", lambda part: part(x))
        yield "the head", model(x)

    def loss(m):
        return -jnp.take_along_axis(jax.nn.log_softmax(m(x)), labels.reshape(-1, 1), axis=1).sum()

    return first_bad(model, outcomes(), loss)


def first_bad(model: nnx.Module, outcomes: Iterable[tuple[str, jax.Array]], loss: Callable[[Any], jax.Array]) -> str:
    """Name the first of the parameters, the named outcomes, and the gradients of a loss that is not finite."""
    for name, array in named_arrays(model).items():
        if not finite(array):
            return f"the parameter {name}"
    for name, array in outcomes:
        if not finite(array):
            return name
    wrong = [name for name, array in named_arrays(jax.grad(loss)(model)).items() if not finite(array)]
    return f"the gradient of {wrong[-1]}" if wrong else "no layer without dropout"


def layers(module: Any, attribute: str, prefix: str, embedding: str, run: Callable[[Any], jax.Array]):
    """Yield what `run` computes with only the first n layers of one stack of a module, by the name of layer n."""
    whole: Transformer = getattr(module, attribute)
    for count in range(whole.layers + 1):
        shallow, stack = (jax.tree.map(lambda a: a, m) for m in (module, whole))
        stack.layers, stack.blocks = count, jax.tree.map(lambda a, n=count: a[:n], whole.blocks)
        setattr(shallow, attribute, stack)
        yield f"{prefix}{attribute}.blocks[{count - 1}]" if count else prefix + embedding, run(shallow)


def describe_batch(where: str, source: Source | Stream, bad: np.ndarray, path: Path, rows: Mapping[str, Any]) -> str:
    """Describe a step that was not finite: `where`, the images of the `bad` rows; write the batch for inspection."""
    keys = [source.key(i) for i in rows["index"][bad].tolist()]
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    try:
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **rows)
        written = f"the batch is in {shown(path)}"
    except OSError as error:
        written = f"the batch was not written ({error.strerror})"
    return f"first not finite: {where}; on {', '.join(keys[:NAMED])}{more}; {written}"


def finite(array: jax.Array) -> bool:
    """Return whether an array holds finite numbers only."""
    return bool(jnp.isfinite(array).all())
