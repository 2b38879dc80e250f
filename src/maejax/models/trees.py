"""A model's arrays by name, and strict replacement of all of them: what checkpoints and foreign layouts speak."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def array_name(path) -> str:
    """Spell a pytree path as a name: `encoder.transformer.blocks.fc1.kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value").replace(".value.", ".")


def named_arrays(tree: Any) -> dict[str, jax.Array]:
    """List the arrays of a model (or any pytree) by name; those of a stack of layers carry a leading depth axis."""
    return {array_name(path): array for path, array in jax.tree_util.tree_leaves_with_path(tree)}


def check_arrays(tree: Any, arrays: Mapping[str, Any]) -> None:
    """Check that `arrays` (or descriptions of them) are exactly those of a model, by name and shape.

    Raises:
        ValueError: a missing, extra or misshapen array; the message lists them all.

    """
    wanted = named_arrays(tree)
    wrong = [f"missing {name} {wanted[name].shape}" for name in wanted.keys() - arrays.keys()]
    wrong += [f"extra {name} {arrays[name].shape}" for name in arrays.keys() - wanted.keys()]
    wrong += [
        f"{name} is {arrays[name].shape}, the model's {wanted[name].shape}"
        for name in wanted.keys() & arrays.keys()
        if tuple(wanted[name].shape) != tuple(arrays[name].shape)
    ]
    if wrong:
        raise ValueError("the weights do not fit the model: " + "; ".join(sorted(wrong)))


def with_arrays(tree: Tree, arrays: Mapping[str, Any]) -> Tree:
    """Replace all arrays of a model, or of its abstract shape, by `arrays`, cast to the model's types.

    Raises:
        ValueError: as `check_arrays`.

    """
    check_arrays(tree, arrays)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.asarray(arrays[array_name(path)], leaf.dtype), tree)


def parted(tree: Tree, apart: Callable[[Any], bool]) -> tuple[Tree, Tree]:
    """Part a model's arrays in two by path: those not `apart`, and those `apart`; None where the other has one."""
    first = jax.tree_util.tree_map_with_path(lambda path, leaf: None if apart(path) else leaf, tree)
    second = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf if apart(path) else None, tree)
    return first, second


def joined(first: Tree, second: Tree) -> Tree:
    """Join what `parted` has parted."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda leaf: leaf is None)
