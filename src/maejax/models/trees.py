"""Arrays of a model by name, their comparison with others, and the split of a tree in two."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def array_name(path) -> str:
    """Spell a pytree path as a name: `encoder.transformer.blocks.fc1.kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value").replace(".value.", ".")


def is_stacked(path) -> bool:
    """Return whether an array carries the leading depth axis of a stack of layers."""
    return any(isinstance(key, jax.tree_util.GetAttrKey) and key.name == "blocks" for key in path)


def named_arrays(tree: Any) -> dict[str, jax.Array]:
    """List the arrays of a model (or any pytree) by name; those of a stack of layers have a leading depth axis."""
    return {array_name(path): array for path, array in jax.tree_util.tree_leaves_with_path(tree)}


def mismatches(wanted: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Compare arrays (or descriptions of them) by name and shape; return each difference in words, sorted."""
    wrong = [f"missing {name} {tuple(wanted[name].shape)}" for name in wanted.keys() - given.keys()]
    wrong += [f"extra {name} {tuple(given[name].shape)}" for name in given.keys() - wanted.keys()]
    wrong += [
        f"{name} is {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted.keys() & given.keys()
        if tuple(given[name].shape) != tuple(wanted[name].shape)
    ]
    return sorted(wrong)


def with_arrays(tree: Tree, arrays: Mapping[str, Any]) -> Tree:
    """Replace all arrays of a model, maybe an abstract one, cast to its types; raises ValueError for `mismatches`."""
    if wrong := mismatches(named_arrays(tree), arrays):
        raise ValueError("the weights do not fit the model: " + "; ".join(wrong))
    return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.asarray(arrays[array_name(path)], leaf.dtype), tree)


def partition(tree: Tree, chosen: Callable[[Any], bool]) -> tuple[Tree, Tree]:
    """Split a tree in two by path: the arrays that are not `chosen`, and those that are; None in the other's place."""
    first = jax.tree_util.tree_map_with_path(lambda path, leaf: None if chosen(path) else leaf, tree)
    second = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf if chosen(path) else None, tree)
    return first, second


def combine(first: Tree, second: Tree) -> Tree:
    """Join the two trees of `partition`."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda leaf: leaf is None)
