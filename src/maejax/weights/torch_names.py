"""State dicts in PyTorch's names, the authors' and timm's: read and written whole."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from maejax.errors import WeightsError
from maejax.weights import fair
from maejax.weights.run_directory import fold_head_norm, model_shapes
from maejax.weights.weights import Weights, check_shapes


def from_state(state: Mapping[str, np.ndarray], what: str, layout: str, **known: Any) -> Weights:
    """Understand a state dict of the authors' code ("fair") or of timm.

    Raises:
        WeightsError: a missing, extra or misshapen tensor; the message lists them all.

    """
    arguments, notices = fair.geometry(state, what, **known)
    check_shapes(state, wanted_shapes(arguments), what)
    writer = "timm" if layout == "timm" else "the authors' PyTorch code"
    arrays = fair.to_ours(state)
    if layout == "timm":
        notices += drop_identity(arrays, arguments)
    return Weights(arrays, arguments, layout, writer, tuple(notices))


def drop_identity(arrays: dict[str, np.ndarray], arguments: dict[str, Any]) -> list[str]:
    """Leave out what `to_timm` wrote as the identity, in place, and say so."""
    notices = []
    scales = [name for name in arrays if name.endswith((".scale1", ".scale2"))]
    if scales and all((arrays[name] == 1).all() for name in scales):
        for name in scales:
            del arrays[name]
        arguments["layerscale"] = False
        notices.append("its LayerScale is 1 everywhere and left out: it does nothing")
    if arguments.get("pooling") == "cls" and not arrays["head.kernel"].any() and not arrays["head.bias"].any():
        for name in ("head.kernel", "head.bias"):
            del arrays[name]
        del arguments["labels"], arguments["pooling"]
        notices.append("its head is all zeros and left out")
    return notices


def wanted_shapes(arguments: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Give the shapes of all tensors of such a model, by their names."""
    shapes = model_shapes(arguments)
    if "head_norm" in arguments:
        shapes["head_norm.batches"] = ()
    blank = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    return {name: array.shape for name, array in fair.to_theirs(blank, arguments).items()}


def to_fair(weights: Weights) -> tuple[dict[str, np.ndarray], list[str]]:
    """Give a state dict of the authors' code, and what a reader must know.

    Raises:
        WeightsError: that code cannot express the model.

    """
    arguments = weights.arguments
    if arguments["layerscale"] or arguments.get("dec_layerscale"):
        raise WeightsError("the authors' code has no LayerScale; convert to timm, hf or maejax")
    arrays = dict(weights.arrays)
    if "head_norm.mean" in arrays:
        arrays.setdefault("head_norm.batches", np.array(0))
    return fair.to_theirs(arrays, arguments), activation_notice(weights)


def to_timm(weights: Weights, *, identity: bool = False) -> tuple[dict[str, np.ndarray], list[str]]:
    """Give a state dict of a timm `vit_*`, and what a reader must know; a decoder, which timm lacks, is left out.

    With `identity` it fits `create_model(..., init_values=...)` with 1,000 classes: what the model has no value for is
    written as the identity, LayerScale 1 and a head of zeros.

    Raises:
        WeightsError: timm has no place for a tensor, such as a probe's BatchNorm.

    """
    notices = activation_notice(weights)
    arguments = {n: v for n, v in weights.arguments.items() if not n.startswith("dec_")}
    arrays = {n: a for n, a in weights.arrays.items() if n.startswith(("encoder.", "norm.", "head"))}
    if weights.kind == "mae":
        notices.append("timm has no decoder: only the encoder is written")
    if "head_norm" in arguments:
        notices.append("the probe's BatchNorm is folded into its linear layer")
        arrays = fold_head_norm(arrays, arguments.pop("head_norm"))
    state = fair.to_theirs(arrays, arguments)
    if identity:
        if not arguments["layerscale"]:
            for layer in range(arguments["layers"]):
                for i in (1, 2):
                    state[f"blocks.{layer}.ls{i}.gamma"] = np.ones(arguments["dim"], np.float32)
            notices.append("LayerScale is written as 1: the model has none")
        if "head.weight" not in state:
            state["head.weight"] = np.zeros((1000, arguments["dim"]), np.float32)
            state["head.bias"] = np.zeros(1000, np.float32)
            notices.append("the head is written as zeros: the model has none")
    return state, notices


def activation_notice(weights: Weights) -> list[str]:
    """Say where these codes compute another activation by default."""
    if weights.arguments.get("gelu", "erf") == "erf":
        return []
    return ["these weights were trained with the tanh GELU: with timm, give create_model act_layer='gelu_tanh'"]
