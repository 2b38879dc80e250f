"""Frozen features: images to the pooled tokens of an encoder, without a mask."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from maejax.data.pipeline import evaluation_loader
from maejax.data.sources import Source
from maejax.models.pooling import Pool, pools
from maejax.training.mesh import make_mesh, put_rows, replicate, replicated

Layers = Sequence[int] | None
Images = Iterable[np.ndarray]  # [n, H, W, C] of the model's type, of any n
READING = {"crop_ratio": 0.0, "batch_size": 64, "workers": 0}  # of `evaluation_loader`


def extract(
    model: Any, images: Images, batch_size: int = 256, pool: Pool | None = "cls+mean", layers: Layers = None
) -> np.ndarray:
    """Encode images and return one feature each: float32 [n, D], [n, 2 D] for "cls+mean", [n, 1 + N, D] for None.

    `images` is one array [n, H, W, C] of the model's type, or an iterable of them with n of any size. "cls" is the
    class token, "mean" the mean of the patch tokens, "cls+mean" both, which is stronger for small encoders; None keeps
    all tokens.
    `layers` are those of `VisionTransformer.encode`; with them the result is [n, L, ...].

    All chunks are padded to one size, so that the encoder compiles once and a feature does not depend on the images
    beside it. Raises ValueError for an unknown `pool`, for other arrays, and without images.
    """
    if isinstance(images, np.ndarray):
        batch_size = min(batch_size, max(len(images), 1))  # pad three images to 3, not to 256
        images = [images]
    chunks = ((None, chunk) for chunk in _chunks(images, batch_size, model.config.encoder.image_type))
    features = [rows for _, rows in _encode_all(model, chunks, batch_size, pool, layers, local_mesh())]
    if not features:
        raise ValueError("there are no images to encode")
    return np.concatenate(features)


class Encoded(NamedTuple):
    """The images of one batch without their pixels: `labels`, `valid` and `index` as of `Batch`, and `features`."""

    features: np.ndarray
    labels: np.ndarray
    valid: np.ndarray
    index: np.ndarray


def encode_source(
    model: Any, source: Source, *, pool: Pool | None, layers: Layers = None, first: int = 0, **reading: Any
) -> Iterator[Encoded]:
    """Yield the batches of a source in its order, from number `first` on, with features as of `extract`.

    All devices share the images of a batch. Several processes call this together: each reads and encodes its share, and
    all of them get all batches. `reading` are arguments of `evaluation_loader`, by default those of `READING`; several
    processes round the batch size up to a multiple of their devices. Rows of padding have index -1.
    """
    encoder, reading = model.config.encoder, READING | reading
    mesh, processes = make_mesh(), jax.process_count()
    if processes > 1:
        reading["batch_size"] = round_up(reading["batch_size"], mesh.size)
        reading |= {"process_index": jax.process_index(), "process_count": processes}
    loader = evaluation_loader(source, encoder.image_size, channels=encoder.channels, **reading)
    batches = (((b.labels, b.valid, b.index.astype(np.int32)), b.images) for b in loader.iterate(first))
    for about, features in _encode_all(model, batches, reading["batch_size"] // processes, pool, layers, mesh):
        yield Encoded(features, *_of_all(about, mesh))


def feature_shape(model: Any, pool: Pool | None, layers: Layers) -> tuple[int, ...]:
    """Return the shape of one feature, as of `extract`, without computing any."""
    encoder = model.config.encoder
    images = jax.ShapeDtypeStruct((1, *encoder.image_size, encoder.channels), encoder.image_type)
    chosen = None if layers is None else tuple(layers)
    return jax.eval_shape(lambda model, images: encode(model, images, pool, chosen), model, images).shape[1:]


def read(source: Source, model: Any, reading: dict[str, Any]) -> np.ndarray:
    """Read all images of a small source as `encode_source` shows them to the encoder, [n, H, W, C] of its type."""
    encoder, crop = model.config.encoder, reading.get("crop_ratio", 0.0)
    options: dict[str, Any] = {"crop_ratio": crop, "channels": encoder.channels, "batch_size": len(source)}
    (batch,) = evaluation_loader(source, encoder.image_size, **options).iterate()
    return batch.images


def local_mesh() -> Mesh:
    """Return a mesh of the devices of this process."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def round_up(size: int, unit: int) -> int:
    """Return the smallest multiple of a unit that is no less than a size."""
    return -(-size // unit) * unit


def _of_all(rows: Any, mesh: Mesh) -> Any:
    """Return the rows of all processes, in order, on the host."""
    if jax.process_count() > 1:
        rows = jax.tree.map(lambda a: a.addressable_data(0), replicate(put_rows(rows, mesh), mesh))
    return jax.tree.map(np.asarray, rows)


def _encode_all(
    model: Any, chunks: Iterable[tuple[Any, np.ndarray]], size: int, pool: Pool | None, layers: Layers, mesh: Mesh
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yield each label of a chunk with the features of its images; a chunk holds at most `size` images.

    The devices of the mesh share a chunk. Where they are of several processes, `size` is the share of one of them, and
    the features are those of all.
    """
    if pool is not None and pool not in (known := pools(model.config.encoder)):
        raise ValueError(f"pool is {', '.join(map(repr, known))} or None, not {pool!r}")
    chosen = None if layers is None else tuple(layers)
    running: list[tuple[Any, jax.Array, int | None]] = []
    model = jax.device_put(model, replicated(mesh))
    size = round_up(size, len(mesh.local_devices))
    alone = len(mesh.local_devices) == mesh.size

    def fetch(label: Any, features: jax.Array, count: int | None) -> tuple[Any, np.ndarray]:
        whole = features if alone else replicate(features, mesh).addressable_data(0)
        return label, np.asarray(whole)[:count]

    for label, images in chunks:
        padding = [(0, size - len(images)), (0, 0), (0, 0), (0, 0)]
        with jax.set_mesh(mesh):
            rows = put_rows(np.pad(images, padding), mesh)
            running.append((label, encode(model, rows, pool, chosen), len(images) if alone else None))
        if len(running) > 1:  # fetch a chunk after the next one has started: the device never waits for the host
            yield fetch(*running.pop(0))
    for last in running:
        yield fetch(*last)


def _chunks(batches: Images, size: int, kind: str) -> Iterator[np.ndarray]:
    for batch in batches:
        if batch.ndim != 4 or batch.dtype != kind:
            raise ValueError(f"images are {kind} [B, H, W, C], not {batch.dtype} {list(batch.shape)}")
        for start in range(0, len(batch), size):
            yield batch[start : start + size]


@partial(jax.jit, static_argnames=("pool", "layers"))
def encode(model: Any, images: Any, pool: Pool | None, layers: tuple[int, ...] | None = None) -> jax.Array:
    """Encode images [B, H, W, C] of the model's type in one pass; see `extract`."""
    chosen = {} if layers is None else {"layers": layers}
    return model.encode(model.normalize(images), pool=pool, **chosen)
