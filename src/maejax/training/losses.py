"""Losses of a classifier and of a linear probe, whose batch holds features of the frozen encoder."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from maejax.models.classifier import ImageClassifier
from maejax.models.trees import array_name

Criterion = Literal["ce", "bce"]


def cross_entropy(logits: jax.Array, targets: jax.Array, criterion: Criterion) -> jax.Array:
    """Compute the loss [B] against targets [B, labels]: "ce" softmax cross-entropy, "bce" the mean of sigmoid ones."""
    if criterion == "ce":
        return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)
    return -jnp.mean(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits), axis=-1)


def is_encoder(path) -> bool:
    """Return whether linear probing freezes an array: all but the head."""
    return not array_name(path).startswith(("head.", "head_norm."))


class Features(NamedTuple):
    """A batch of a linear probe: encoder `features` [B, D] and `targets` [B, labels] float32, `valid` bool [B]."""

    features: jax.Array
    targets: jax.Array
    valid: jax.Array


def probe_losses(model: ImageClassifier, batch: Features, microstep: jax.Array) -> jax.Array:
    """Compute the loss [B] of a linear probe."""
    return cross_entropy(model.classify(batch.features, batch.valid), batch.targets, "ce")


def update_stats(model: ImageClassifier, batch: Features) -> ImageClassifier:
    """Update the running statistics of a linear probe's batch normalisation."""
    return model.update_stats(batch.features, batch.valid)
