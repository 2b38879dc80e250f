"""Losses of a classifier, and how a linear probe is trained: on features that the frozen encoder made beforehand."""

from typing import Literal

import jax
import jax.numpy as jnp

from maejax.models.classifier import ImageClassifier
from maejax.models.trees import array_name
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


def probe_losses(model: ImageClassifier, batch: Batch, turn: jax.Array) -> jax.Array:
    """Compute the loss [B] of a linear probe, whose batch holds `features` [B, D] and `targets` [B, labels]."""
    return cross_entropy(model.classify(batch["features"], batch["valid"]), batch["targets"], "ce")


def observe_features(model: ImageClassifier, batch: Batch) -> ImageClassifier:
    """Move the running statistics of a linear probe's batch normalisation."""
    return model.update_stats(batch["features"], batch["valid"])
