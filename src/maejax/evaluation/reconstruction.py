"""Pictures of the input of a masked autoencoder and of its reconstruction."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from maejax.data.agreement import agree
from maejax.data.arrays import read_pixels
from maejax.data.augment import build_eval
from maejax.data.display import as_picture, limits_of, shown_bands
from maejax.data.form import Form
from maejax.data.sources import Source, open_files
from maejax.errors import InputError, UnreadableImage
from maejax.evaluation.patch_statistics import hidden_statistics
from maejax.evaluation.sheet import draw_sheet
from maejax.models import masking
from maejax.models.normalization import Normalized
from maejax.models.patches import patchify, unpatchify
from maejax.storage.atomic import write_atomically

_GREY = np.uint8(128)
_RAW_NOTE = "Hidden patches are shown as predicted, in pixels."
_NORM_PIX_NOTE = (
    "The model predicts each hidden patch up to brightness and contrast. These two were estimated from visible pixels "
    "and from seams between patches; no hidden pixel was used."
)


@dataclass(frozen=True)
class Reconstruction:
    """Four pictures of each image, uint8 [B, H, W, C], and a `note` on the predicted pixels to print below.

    `masked` shows the visible patches on grey, `reconstruction` the predicted, hidden ones, `pasted` both together.
    `loss` [B] is that of the model on the hidden patches.
    """

    original: np.ndarray
    masked: np.ndarray
    reconstruction: np.ndarray
    pasted: np.ndarray
    note: str
    loss: np.ndarray


@partial(jax.jit, static_argnames="visible")
def predict_hidden(model: Any, images: Any, order: Any, visible: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return images [B, H, W, C] normalised, the prediction of the patches after the first K of the order, the loss."""
    x = model.normalize(images)
    loss, prediction = model(x, order, visible=visible, every=True)
    return *pixels_of(model, x, prediction), loss


def pixels_of(model: Any, x: Any, prediction: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return normalised images and predicted patches as pixels, where the model may know other forms of both."""
    pixels = prediction if model.components is None else model.components.patches(prediction)
    return x.images if isinstance(x, Normalized) else x, pixels


def reconstruct(
    model: Any,
    images: np.ndarray,
    order: np.ndarray,
    show: tuple[int, ...] | None = None,
    visible: int | None = None,
    predict: Callable[..., Any] = predict_hidden,
) -> Reconstruction:
    """Predict hidden patches of images and draw them.

    `images` is [B, H, W, C] of the model's type. `order` is int [B, N], a permutation of the patches for each image;
    the first K stay visible: as many as the model says, or `visible`. `show` are the numbers of the bands that are
    drawn, None for all of uint8 and for the first of other types, which are stretched by `limits_of` the images. For a
    model trained on normalised patches, mean and standard deviation come from `hidden_statistics`: only `original`
    shows hidden pixels. `predict` is `predict_hidden`, or does the same. Raises ValueError if `order` is no
    permutation, or for a model that predicts neither pixels nor their components.
    """
    config, encoder = model.config, model.config.encoder
    if not config.drawable:
        raise ValueError("this model predicts other values than pixels, which cannot be drawn")
    (rows, columns), size = encoder.grid, encoder.patch_size
    if order.shape != (len(images), rows * columns) or np.any(np.sort(order, axis=1) != np.arange(rows * columns)):
        raise ValueError(f"order is a permutation of {rows * columns} patches for each of {len(images)} images")
    kept = visible or config.visible
    seen, guessed = np.split(np.asarray(order), [kept], axis=1)
    x, prediction, loss = predict(model, images, order.astype(np.int32), kept)

    patches = np.array(patchify(x, size))
    np.put_along_axis(patches, guessed[..., None], np.asarray(prediction, patches.dtype), axis=1)
    seen_here = np.zeros(order.shape, bool)
    np.put_along_axis(seen_here, seen, True, axis=1)
    if config.norm_pix_loss:
        for sample, shown in zip(patches, seen_here, strict=True):
            mean, std = hidden_statistics(sample.reshape(-1, size, size, encoder.channels), shown, encoder.grid)
            sample[:] = mean[:, None] + std[:, None] * sample

    values = np.asarray(unpatchify(jax.numpy.asarray(patches), encoder.grid, size))
    values = (values * np.array(encoder.std) + np.array(encoder.mean)) * (255 if encoder.image_type == "uint8" else 1)
    images, no_data = np.asarray(images), encoder.no_data
    every = tuple(range(encoder.channels))
    bands = show or (every if images.dtype == np.uint8 else shown_bands("", (), encoder.channels))
    limits = limits_of(images, bands, no_data)
    original, pixels = as_picture(images, bands, limits, no_data), as_picture(values, bands, limits)
    shown = seen_here.reshape(-1, rows, columns, 1).repeat(size, axis=1).repeat(size, axis=2)
    masked, hidden = np.where(shown, original, _GREY), np.where(shown, _GREY, pixels)
    note = _NORM_PIX_NOTE if config.norm_pix_loss else _RAW_NOTE
    return Reconstruction(original, masked, hidden, np.where(shown, original, pixels), note, np.asarray(loss))


def draw_grid(reconstruction: Reconstruction, captions: Sequence[str] = (), least: int = 128) -> Image.Image:
    """Draw an RGB picture with a row for each image: original, masked, reconstruction and pasted, as `draw_sheet`."""
    columns = ("original", "masked", "reconstruction", "pasted")
    pictures = {name.title(): getattr(reconstruction, name) for name in columns}
    return draw_sheet(pictures, reconstruction.note, captions, least)


def write_pictures(
    model: Any,
    images: Sequence[str],
    folder: Path,
    *,
    mask: Any = "random",
    ratio: float | None = None,
    seed: int = 0,
    asked: Form | None = None,
    show: str = "",
) -> Iterator[Path]:
    """Draw original, masked, reconstruction and pasted of every image file; yield the PNGs written to `folder`.

    `mask` is a kind of `masking.draw`, and `ratio` the share of hidden patches, None for that of the model. Images are
    resized and cropped at the centre to the model's size. `asked` is the form that the model takes, and `show` as
    `--show-bands`. Raises InputError for a ratio that does not fit, and for a file that is missing or no image, before
    anything is drawn.
    """
    encoder = model.config.encoder
    try:
        visible = (model.config if ratio is None else replace(model.config, mask_ratio=ratio)).visible
    except ValueError as error:
        raise InputError(f"--mask-ratio {ratio}: {error}") from None
    bands = shown_bands(show, encoder.bands, encoder.channels) if show or encoder.image_type != "uint8" else None
    source = open_files(images)
    form = agree(source, asked or Form(encoder.channels, encoder.image_type))
    crop = build_eval(encoder.image_size, 1.0, form.no_data)
    pixels = np.stack([crop(_read(source, i), np.random.default_rng(0)) for i in range(len(source))])
    order = np.asarray(masking.draw(mask, jax.random.key(seed), len(source), encoder.grid))
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(source.keys):
        path = folder / f"{i:03d}-{Path(name).stem}.png"
        with write_atomically(path) as new:
            draw_grid(reconstruct(model, pixels[i : i + 1], order[i : i + 1], bands, visible)).save(new, "PNG")
        yield path


def _read(source: Source, i: int) -> np.ndarray:
    try:
        return read_pixels(source.read(i), source.form)
    except OSError as error:
        raise InputError(f"cannot read {source.keys[i]}: {error.strerror}") from None
    except UnreadableImage as error:
        raise InputError(f"{source.keys[i]} is no image that can be read: {error}") from None
