"""Answers to the page: a masked picture filled in, attention, and the nearest pictures. Every answer is JSON."""

import base64
import io
import time
from collections import OrderedDict
from functools import partial
from typing import Any

import jax
import numpy as np
from PIL import Image

from maejax.data.augment import Transform
from maejax.data.display import as_picture, limits_of
from maejax.data.form import Form
from maejax.errors import InputError
from maejax.evaluation.encoding import encode
from maejax.evaluation.reconstruction import pixels_of, reconstruct
from maejax.models import masking
from maejax.models.any_mask import fill_hidden
from maejax.models.mae import MaskedAutoencoder
from maejax.models.pooling import pools
from maejax.playground.gallery import Gallery
from maejax.playground.run_steps import RunSteps
from maejax.playground.upload import read_upload

CHUNK = 32  # pictures encoded between two other answers
KEPT_STEPS = 32  # whose features stay in memory
NEAREST = 12
KINDS = ("random", "block", "grid", "noise")


class Playground:
    """A model, or those of a run, and the pictures to try it on. Nothing of a visitor stays here between two calls.

    `form` is what the model takes, `crop` makes any image as large, `show` are the bands of pictures. Methods raise
    InputError for what cannot be answered. Those that compute are called by one thread at a time.
    """

    title = ""  # names the model on the page

    def __init__(self, steps: RunSteps, gallery: Gallery, form: Form, crop: Transform, show: tuple[int, ...]):
        self.steps, self.gallery, self.form, self.crop, self.show = steps, gallery, form, crop, show
        self.encoder = steps.first.config.encoder
        self.pool = pools(self.encoder)[-1]
        self._features: OrderedDict[int | None, list[np.ndarray]] = OrderedDict()

    @property
    def no_decoder(self) -> str:
        """Why there are no reconstructions, in a sentence; "" if there are."""
        if not isinstance(self.steps.first, MaskedAutoencoder):
            return "These weights are an encoder without a decoder: they show attention and neighbours alone."
        if not self.steps.first.config.drawable:
            return "This model predicts features, and no pixels that could be drawn."
        return ""

    def about(self) -> dict[str, Any]:
        """Describe the model and the pictures."""
        encoder, mae = self.encoder, self.steps.first.config
        first = ["cls"] * encoder.cls_token + [f"register {i + 1}" for i in range(encoder.registers)]
        return {
            "title": self.title,
            "grid": encoder.grid,
            "size": encoder.image_size,
            "patch": encoder.patch_size,
            "channels": encoder.channels,
            "layers": encoder.layers,
            "heads": encoder.heads,
            "dim": encoder.dim,
            "tokens": first,
            "ratio": getattr(mae, "mask_ratio", 0.75),
            "kinds": KINDS,
            "no_decoder": self.no_decoder,
            "steps": self.steps.listed(),
            "step": self.steps.step,
            "classes": self.gallery.classes,
            "names": self.gallery.names,
            "note": self.gallery.note,
        }

    def picture(self, number: int) -> dict[str, Any]:
        """Return a picture of the gallery: its pixels, for later calls, and how it looks."""
        if not 0 <= number < len(self.gallery.images):
            raise InputError(f"there is no picture {number}: choose one of {len(self.gallery.images)}")
        return self._described(self.gallery.images[number], self.gallery.names[number])

    def thumbnail(self, number: int) -> bytes:
        """Return a picture of the gallery as a PNG."""
        self.picture(number)
        return self._png(self.gallery.images[number : number + 1])

    def upload(self, data: bytes, name: str) -> dict[str, Any]:
        """Return a visitor's picture as `picture` does."""
        return self._described(self.crop(read_upload(data, name, self.form), np.random.default_rng(0)), name)

    def order(self, kind: str, seed: int) -> dict[str, Any]:
        """Draw an order of the patches, of which the last are to be hidden, as `masking.draw`."""
        if kind not in KINDS:
            raise InputError(f"a mask is one of {', '.join(KINDS)}, not {kind}")
        return {"order": np.asarray(_draw(kind, seed % 2**31, self.encoder.grid)).tolist()}

    def reconstruct(self, pixels: str, hidden: Any, step: int | None) -> dict[str, Any]:
        """Fill the hidden patches, a list of numbers, of an image."""
        if self.no_decoder:
            raise InputError(self.no_decoder)
        images, count = self._images(pixels), self.encoder.patches
        if not isinstance(hidden, list) or not all(type(i) is int and 0 <= i < count for i in hidden):
            raise InputError(f"hidden patches are a list of numbers from 0 to {count - 1}")
        if not 0 < len(set(hidden)) < count:
            raise InputError("hide at least one patch, and leave at least one visible")
        model, start = self.steps.model(step), time.perf_counter()
        order = np.argsort(np.isin(np.arange(count), hidden), kind="stable")[None]
        drawn = reconstruct(model, images, order, self.show, count - len(set(hidden)), _predict)
        loss = float(drawn.loss[0])
        return {
            "picture": _as_uri(_encoded(drawn.pasted[0])),
            "loss": loss if np.isfinite(loss) else None,
            "note": drawn.note,
            "seconds": time.perf_counter() - start,
            "steps": self.steps.listed(),
        }

    def attention(self, pixels: str, layer: int, head: int, step: int | None) -> dict[str, Any]:
        """Return how much each token attends to each patch in a layer, by one head or (-1) by all on average.

        `weights` is base64 of uint8 [T, N], each row scaled by its largest.
        """
        encoder = self.encoder
        if not (0 <= layer < encoder.layers and -1 <= head < encoder.heads):
            raise InputError(f"the model has layers 0 to {encoder.layers - 1} and heads 0 to {encoder.heads - 1}")
        heads = np.asarray(_attend(self.steps.model(step), self._images(pixels), layer))
        weights = (heads.mean(axis=0) if head < 0 else heads[head])[:, encoder.prefix :]
        scaled = np.rint(255 * weights / np.maximum(weights.max(axis=1, keepdims=True), 1e-12)).astype(np.uint8)
        return {"weights": base64.b64encode(scaled.tobytes()).decode(), "steps": self.steps.listed()}

    def encode_some(self, step: int | None) -> bool:
        """Encode the next pictures of the gallery by the model of a step; return whether more are left."""
        done = self._features.setdefault(step, [])
        self._features.move_to_end(step)
        while len(self._features) > KEPT_STEPS:
            self._features.popitem(last=False)
        start = CHUNK * len(done)
        if start < len(self.gallery.images):
            done.append(self._encode(self.gallery.images[start : start + CHUNK], self.steps.model(step), CHUNK))
        return CHUNK * len(done) < len(self.gallery.images)

    def neighbours(self, pixels: str, number: int | None, step: int | None) -> dict[str, Any]:
        """Return the nearest pictures of the gallery, all of it encoded, without picture `number`, the image itself."""
        features = np.concatenate(self._features[step]) if len(self.gallery.images) else np.empty((0, 1))
        if not len(features):
            raise InputError("there are no pictures to compare with: give --images, a set of them, to maejax serve")
        similarity = features @ self._encode(self._images(pixels), self.steps.model(step), 1)[0]
        if number is not None and 0 <= number < len(similarity):
            similarity[number] = -np.inf
        nearest = [int(i) for i in np.argsort(-similarity, kind="stable")[:NEAREST] if similarity[i] > -np.inf]
        found = [{"number": i, "similarity": float(similarity[i])} for i in nearest]
        return {"neighbours": found, "steps": self.steps.listed()}

    def warm_up(self) -> None:
        """Compile what the page asks for first."""
        images = np.zeros((1, *self.encoder.image_size, self.encoder.channels), self.encoder.image_type)
        pixels = base64.b64encode(images.tobytes()).decode()
        self.order("random", 0)
        if not self.no_decoder:
            self.reconstruct(pixels, [0], None)
        self.attention(pixels, 0, -1, None)

    def _encode(self, images: np.ndarray, model: Any, size: int) -> np.ndarray:
        padded = np.pad(images, [(0, size - len(images)), (0, 0), (0, 0), (0, 0)])
        features = np.asarray(encode(model, padded, self.pool))[: len(images)]
        return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)

    def _images(self, pixels: Any) -> np.ndarray:
        shape = (1, *self.encoder.image_size, self.encoder.channels)
        try:
            return np.frombuffer(base64.b64decode(pixels, validate=True), self.encoder.image_type).reshape(shape)
        except (ValueError, TypeError):
            raise InputError(f"pixels are base64 of {self.encoder.image_type} {list(shape[1:])}") from None

    def _described(self, image: np.ndarray, name: str) -> dict[str, Any]:
        pixels = base64.b64encode(np.ascontiguousarray(image).tobytes()).decode()
        return {"pixels": pixels, "picture": _as_uri(self._png(image[None])), "name": name}

    def _png(self, images: np.ndarray) -> bytes:
        limits = limits_of(images, self.show, self.encoder.no_data)
        return _encoded(as_picture(images, self.show, limits, self.encoder.no_data)[0])


def _encoded(picture: np.ndarray) -> bytes:
    """Return a picture uint8 [H, W, 1 or 3] as a PNG."""
    file = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _as_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _predict(model: Any, images: np.ndarray, order: np.ndarray, visible: int) -> tuple[Any, np.ndarray, Any]:
    """Do as `evaluation.reconstruction.predict_hidden`, compiled once for masks of any number of patches."""
    hidden = np.ones(order.shape, bool)
    np.put_along_axis(hidden, order[:, :visible], False, axis=1)
    x, pixels, loss = _fill(model, images, hidden)
    return x, np.take_along_axis(np.asarray(pixels), order[:, visible:, None], axis=1), loss


@jax.jit
def _fill(model: Any, images: Any, hidden: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    x = model.normalize(images)
    loss, prediction = fill_hidden(model, x, hidden)
    return *pixels_of(model, x, prediction), loss


@jax.jit
def _attend(model: Any, images: Any, layer: Any) -> jax.Array:
    """Compute the attention [heads, T, T] of a layer, compiled once for all of them."""
    encoder = model.encoder
    block, states = encoder.transformer.block(layer), encoder.states(encoder.normalize(images))
    return block.attention.weights(block.norm1(states[layer]), encoder.angles())[0]


@partial(jax.jit, static_argnames=("kind", "grid"))
def _draw(kind: Any, seed: Any, grid: tuple[int, int]) -> jax.Array:
    return masking.draw(kind, jax.random.key(seed), 1, grid)[0]
