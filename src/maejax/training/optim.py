"""Optimizers over stacked layers: which parameters decay, and trust ratios per layer rather than per stack.

The layers of a model are one stack, so a bias has two dimensions here: every rule goes by a parameter's name.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from maejax.models.tokens import Constant
from maejax.models.trees import array_name, is_stacked, partition
from maejax.training.muon import matrix_or_other, scale_by_muon

DECAYED = (
    "kernel",
    "cls_token",
    "registers",
    "query_token",
    "mask_token",
)  # authors' pre-training: all but biases, norms and LayerScale
FINETUNE_DECAYED = ("kernel",)  # authors' fine-tuning spares the tokens too
FIRST = tuple(f"encoder.{part}" for part in ("embed.", "cls_token", "registers", "positions", "pre_norm."))
OPTIMIZERS = ("adamw", "muon", "lamb", "sgd", "lars")
MOMENTUM = 0.9  # SGD and LARS: the paper's Table 10 and the original


class ParameterRules(NamedTuple):
    """How an optimizer treats single parameters: those named in `decayed` decay, and have trust ratios in LARS, LAMB.

    `lr_decay` as in `layer_rates`, 1 for none; `tuned_blocks` as in `tuned_factors`, None for the whole encoder.
    """

    decayed: tuple[str, ...] = DECAYED
    lr_decay: float = 1.0
    tuned_blocks: float | None = None


def build_optimizer(
    name: str,
    rate: optax.Schedule,
    *,
    weight_decay: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    clip_grad: float = 0.0,
    rules: ParameterRules | None = None,
) -> optax.GradientTransformation:
    """Build one of `OPTIMIZERS` for a model of this package; fixed tables get no update and no optimizer state.

    `weight_decay` is decoupled for AdamW, Muon and LAMB, and added to the gradient for SGD and LARS. AdamW, LAMB and
    the part of Muon that is no matrix take `b1`, `b2` and `eps`. `clip_grad` is the largest norm of the gradient, 0 for
    any. Raises ValueError for an unknown name.
    """
    rules = rules or ParameterRules()
    mask = partial(decay_mask, decayed=rules.decayed)
    decay = optax.add_decayed_weights(weight_decay, mask=mask)
    match name:
        case "adamw":
            steps = [scale_by_adam(b1, b2, eps), decay]
        case "muon":
            each: dict[Any, Any] = {"matrix": scale_by_muon(), "other": scale_by_adam(b1, b2, eps)}
            steps = [optax.partition(each, matrix_or_other), decay]
        case "lamb":
            steps = [scale_by_adam(b1, b2, eps), decay, scale_by_layer_trust(mask)]
        case "sgd":
            steps = [decay, optax.trace(MOMENTUM)]
        case "lars":
            steps = [decay, scale_by_layer_trust(mask, 0.001), optax.trace(MOMENTUM)]
        case _:
            raise ValueError(f"the optimizer is one of {', '.join(OPTIMIZERS)}, not {name}")
    # LARS keeps the rate inside the momentum in the authors' code (buffer of unscaled updates): the rate comes last.
    steps.append(optax.scale_by_learning_rate(rate))
    if rules.lr_decay != 1:
        steps.append(scale_by_factors(partial(layer_rates, decay=rules.lr_decay)))
    if clip_grad:
        steps.insert(0, optax.clip_by_global_norm(clip_grad))
    if rules.tuned_blocks is not None:
        tuned = scale_by_factors(partial(tuned_factors, blocks=rules.tuned_blocks))
        steps = [tuned, *steps, tuned]  # first for the gradient's norm, last for the decay of the weights
    trained = optax.chain(*steps)
    return optax.partition({"trained": trained, "fixed": optax.set_to_zero()}, _trained_or_fixed)


def _trained_or_fixed(model: nnx.Module):
    def label(node) -> str:
        return "fixed" if isinstance(node, Constant) else "trained"

    return jax.tree.map(label, model, is_leaf=lambda node: isinstance(node, nnx.Variable))


class AdamState(NamedTuple):
    """The state of `scale_by_adam`, with Optax's names. A type of its own, so that `select` can leave it out."""

    count: jax.Array
    mu: Any
    nu: Any


def select(skip: jax.Array | bool, old: Any, new: Any) -> Any:
    """Select the old arrays of a tree where `skip`, a bool scalar, is true; `scale_by_adam` did so for `AdamState`."""

    def one(old, new):
        return new if isinstance(new, AdamState) else jnp.where(skip, old, new)

    return jax.tree.map(one, old, new, is_leaf=lambda node: isinstance(node, AdamState))


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Scale by Adam's moments exactly as `optax.scale_by_adam`, but keep the old state where `skip` is true.

    It is selected before it is read: later, XLA on CPU copies all arrays, and an update takes half as long again.
    """

    def init(params):
        return AdamState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update(updates, state, params=None, *, skip=False, **extra):
        """Compute the scaled updates and the new state."""
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        new = AdamState(*select(skip, tuple(state), (optax.safe_increment(state.count), mu, nu)))
        count = optax.safe_increment(state.count)
        mu, nu = optax.tree.bias_correction(new.mu, b1, count), optax.tree.bias_correction(new.nu, b2, count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), new

    return optax.GradientTransformationExtraArgs(init, update)


def for_trained(optimizer: optax.GradientTransformation, frozen: Callable[[Any], bool]) -> optax.GradientTransformation:
    """Keep an optimizer from holding state for the arrays of a model whose path is `frozen`; see `Frozen`."""
    return optax.GradientTransformationExtraArgs(
        lambda params: optimizer.init(partition(params, frozen)[0]), optax.with_extra_args_support(optimizer).update
    )


def decay_mask(model: nnx.Module, decayed: tuple[str, ...] = DECAYED):
    """Mark the arrays that decay, by the last part of their names."""
    return jax.tree_util.tree_map_with_path(lambda path, _: array_name(path).split(".")[-1] in decayed, model)


def layer_rates(model: Any, decay: float):
    """Compute the factor on every parameter's rate (BEiT, Bao et al. 2022; authors' fine-tuning code).

    With d layers in the encoder: block i (from 0) has decay^(d - i). What comes before the blocks (`FIRST`) has
    decay^(d + 1), all others (final norm, pooling, head, decoder) 1. A stack gets one factor per layer.
    """

    def factor(path, array):
        """Compute the factor of one array."""
        name = array_name(path)
        if name.startswith("encoder.transformer.blocks."):
            depth = array.shape[0]
            return (decay ** (depth - jnp.arange(depth))).reshape(-1, *[1] * (array.ndim - 1))
        if name.startswith(FIRST):
            return decay ** (model.encoder.transformer.layers + 1)
        return 1.0

    return jax.tree_util.tree_map_with_path(factor, model)


def tuned_factors(model: Any, blocks: float):
    """Mark the parameters that partial fine-tuning trains by 1, the others by 0 (paper, Figure 9).

    The head and its norms are always trained. With `blocks` > 0 the encoder's final norm and the last `blocks` blocks
    are, of which .5 is the last MLP with its norm. Embedding, cls token and positions are if all blocks are.
    """

    def factor(path, array):
        """Compute the factor of one array."""
        name = array_name(path)
        if not name.startswith("encoder."):
            return 1.0
        if name.startswith("encoder.attention_pool."):
            return 1.0
        if name.startswith("encoder.norm."):
            return float(blocks > 0)
        if not name.startswith("encoder.transformer.blocks."):
            return float(blocks >= model.encoder.transformer.layers)
        depth = array.shape[0]
        mlp = name.split(".")[3] in ("norm2", "fc1", "fc2", "scale2")
        first = depth - (math.ceil(blocks) if mlp else int(blocks))
        return (jnp.arange(depth) >= first).astype(jnp.float32).reshape(-1, *[1] * (array.ndim - 1))

    return jax.tree_util.tree_map_with_path(factor, model)


def scale_by_factors(factors: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Multiply every update by its factor in `factors(model)`, such as `layer_rates`."""
    return optax.stateless(lambda updates, params: jax.tree.map(jnp.multiply, updates, factors(params)))


def scale_by_layer_trust(mask: Callable[[Any], Any], coefficient: float = 1.0) -> optax.GradientTransformation:
    """Scale each layer's update by |weights| / |update| (LARS: You et al. 2017; LAMB: You et al. 2020).

    A stack of layers gets one ratio per layer; arrays outside `mask(model)` and those with a norm of 0 keep theirs.
    """

    def ratio(weights, update):
        w, u = jnp.linalg.norm(weights.reshape(-1)), jnp.linalg.norm(update.reshape(-1))
        return jnp.where((w > 0) & (u > 0), coefficient * w / jnp.where(u > 0, u, 1), 1.0) * update

    def scale(path, update, weights, trusted):
        if not trusted:
            return update
        return (jax.vmap(ratio) if is_stacked(path) else ratio)(weights, update)

    scaled = partial(jax.tree_util.tree_map_with_path, scale)
    return optax.stateless(lambda updates, params: scaled(updates, params, mask(params)))
