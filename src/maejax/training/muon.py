"""Muon (Jordan et al. 2024): momentum made orthogonal, every layer of a stack and every packed projection alone."""

import math
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers
from optax.contrib import scale_by_muon as scale_by_plain_muon

from maejax.models.trees import array_name, is_stacked, named_arrays

# The first and the last layer are AdamW's (Jordan et al. 2024): they map from pixels, and to pixels or classes.
OUTER = (".embed.kernel", ".predict.kernel", ".head.kernel")
PACKED = {"qkv": 3, "kv": 2}
RMS = 0.2  # of an update, that of AdamW: its rates and its decay carry over (Liu et al. 2025, section 2.2)


def scale_by_muon() -> optax.GradientTransformation:
    """Replace the gradients of matrices by Optax's Muon of each, with updates of the root mean square `RMS`.

    The momentum has the shapes of the parameters, and is placed and saved as they are.
    """
    muon = scale_by_plain_muon(weight_dimension_numbers=_axes)

    def update(updates, state: Any, params=None):
        """Compute the orthogonal updates and the new state."""
        parts = _parts(updates)
        new: Any = muon.update(_separate(updates, parts), state._replace(mu=_separate(state.mu, parts)))
        scaled = jax.tree.map(lambda a: RMS * math.sqrt(max(a.shape[-3], a.shape[-1])) * a, new[0])
        return _joined(scaled, updates), new[1]._replace(mu=_joined(new[1].mu, updates))

    return optax.GradientTransformation(muon.init, update)


def matrix_or_other(model: Any) -> Any:
    """Label the arrays of a model: "matrix" for the kernels of Muon, "other" for those that AdamW trains.

    Others are vectors, tokens, positions, mixing weights and the layers in `OUTER`.
    """

    def label(path, _) -> str:
        name = array_name(path)
        return "matrix" if name.endswith(".kernel") and not f".{name}".endswith(OUTER) else "other"

    return jax.tree_util.tree_map_with_path(label, model)


def _parts(model: Any) -> dict[str, int]:
    """Count the matrices that lie side by side in each kernel, by name: queries, keys and values; gates and values."""
    shapes = {name: array.shape for name, array in named_arrays(model).items()}

    def count(name: str) -> int:
        layer = name.removesuffix(".kernel").rpartition(".")[2]
        if layer == "fc1":  # twice as wide as what fc2 reads, if one half of it are gates
            return shapes[name][-1] // shapes[name.replace("fc1", "fc2")][-2]
        return PACKED.get(layer, 1)

    return {name: count(name) for name in shapes}


def _separate(tree: Any, parts: dict[str, int]) -> Any:
    """Reshape kernels [layers, D, n E] of n matrices to [layers, D, n, E]."""

    def reshape(path, array):
        return array.reshape(*array.shape[:-1], parts[array_name(path)], -1)

    return jax.tree_util.tree_map_with_path(reshape, tree)


def _joined(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda array, shape: array.reshape(shape.shape), tree, like)


def _axes(tree: Any) -> Any:
    """Name the input and the output axis of every separate matrix; all others are axes of a batch."""
    return jax.tree_util.tree_map_with_path(lambda path, _: MuonDimensionNumbers(int(is_stacked(path)), -1), tree)
