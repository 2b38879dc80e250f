"""Losses of a classifier, and how a linear probe is trained: on features that the frozen encoder made beforehand."""

from typing import Literal

import jax
import jax.numpy as jnp

from maejax.models.arrays import array_name
from maejax.models.classifier import Classifier
from maejax.training.state import Batch

Criterion = Literal["ce", "bce"]


def cross_entropy(logits: jax.Array, targets: jax.Array, criterion: Criterion) -> jax.Array:
    """Compute the loss [B] of logits against targets, both [B, labels], the targets soft or one-hot.

    "ce": softmax cross-entropy. "bce": sigmoid cross-entropy, the mean over the classes.
    """
    if criterion == "ce":
        return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)
    return -jnp.mean(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits), axis=-1)


def is_encoder(path) -> bool:
    """Tell whether an array belongs to what linear probing freezes: all but the head."""
    return not array_name(path).startswith(("head.", "head_norm."))


def classifier_losses(
    model: Classifier, batch: Batch, turn: jax.Array, *, dropout_seed: int, criterion: Criterion
) -> jax.Array:
    """Compute the loss [B] of a classifier in training, on `images` [B, H, W, C] and `targets` [B, labels]."""
    key = jax.random.fold_in(jax.random.key(dropout_seed), turn)
    return cross_entropy(model(normalized(model, batch["images"]), key), batch["targets"], criterion)


def normalized(model: Classifier, images: jax.Array) -> jax.Array:
    """Normalise uint8 images; those that erasing or mixing has made float are normalised already."""
    return model.normalize(images) if images.dtype == jnp.uint8 else images


def probe_losses(model: Classifier, batch: Batch, turn: jax.Array, *, criterion: Criterion = "ce") -> jax.Array:
    """Compute the loss [B] of a linear probe, whose batch holds `features` [B, D] and `targets` [B, labels]."""
    return cross_entropy(model.classify(batch["features"], batch["valid"]), batch["targets"], criterion)


def encode_features(model: Classifier, batch: Batch, *, parts: int = 1) -> Batch:
    """Add `features` [B, D] of the frozen encoder to a batch, in `parts` one after the other."""

    def encode(images):
        return model.features(normalized(model, images))

    images = batch["images"]
    if parts == 1:
        return {**batch, "features": encode(images)}
    # Strided, so that every part has its share of every device's rows.
    features = jax.lax.map(encode, images.reshape(-1, parts, *images.shape[1:]).swapaxes(0, 1))
    return {**batch, "features": features.swapaxes(0, 1).reshape(images.shape[0], -1)}


def count_right(logits: jax.Array, labels: jax.Array, valid: jax.Array, criterion: Criterion) -> jax.Array:
    """Sum over the valid rows: [number, right at the first, right within the first five, loss], float32 [4].

    With fewer than five classes all are within the first five. The loss is that of the labels [B] without smoothing.
    """
    best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
    hits = best == labels[:, None]
    losses = cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]), criterion)
    rows = jnp.stack([jnp.ones_like(losses), hits[:, 0], hits.any(axis=-1), losses])
    return jnp.sum(jnp.where(valid[None], rows, 0.0), axis=-1)


def observe_features(model: Classifier, batch: Batch) -> Classifier:
    """Move the running statistics of a linear probe's batch normalisation."""
    return model.observed(batch["features"], batch["valid"])
