"""Placement of arrays: one mesh of all devices, batches split over it, the state on every device or split as well."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from maejax.models.trees import is_stacked

Tree = TypeVar("Tree")
Sharding = Literal["replicated", "fsdp"]

SMALL = 2**14  # elements; to split smaller arrays saves nothing and costs a message each


def make_mesh() -> Mesh:
    """Build a mesh of all devices of all hosts with one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Return the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch, whose rows are spread over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_sharding(state: Any, mesh: Mesh | AbstractMesh, sharding: Sharding) -> Any:
    """Return the sharding of every array of a state, or of its abstract shape.

    "replicated": all on every device. "fsdp" (ZeRO-3, Rajbhandari et al. 2020): the largest axis that divides by the
    number of devices is split, but never the depth of a stack, whose layers are used one at a time. Others stay whole.
    """

    def place(path, array) -> NamedSharding:
        axes = [axis for axis in range(is_stacked(path), array.ndim) if array.shape[axis] % mesh.size == 0]
        if sharding == "replicated" or array.size < SMALL or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))

    return jax.tree_util.tree_map_with_path(place, state)


def constrain(tree: Tree, sharding: Sharding) -> Tree:
    """Keep a state, or gradients of its model, in its `state_sharding`; in a compiled function, if a mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    return tree if mesh.empty else jax.lax.with_sharding_constraint(tree, state_sharding(tree, mesh, sharding))


def gather_unstacked(model: Tree) -> Tree:
    """All-gather the parameters outside the layer stack, which gathers one layer at a time; else as `constrain`."""
    if jax.sharding.get_abstract_mesh().empty:
        return model

    def gather_one(path, array):
        return array if is_stacked(path) else jax.lax.with_sharding_constraint(array, PartitionSpec())

    return jax.tree_util.tree_map_with_path(gather_one, model)


def put_rows(rows: Any, mesh: Mesh, place: Callable[[Mesh], NamedSharding] = split) -> Any:
    """Copy this host's rows of a global array, or of a tree of them, to its devices; works for any number of hosts."""
    with jax.transfer_guard_host_to_device("allow"):  # JAX does not count this as the explicit transfer that it is
        return jax.make_array_from_process_local_data(place(mesh), rows)


def put_same(value: np.ndarray, mesh: Mesh) -> jax.Array:
    """Copy an array that is the same on every host to every device."""
    return put_rows(value, mesh, replicated)


def gather(value: Any, mesh: Mesh) -> list[Any]:
    """Return the values of all processes, each anything that JSON holds; all processes call this together."""
    if jax.process_count() == 1:
        return [value]
    text = json.dumps(value).encode()
    sizes = _from_all(np.array([len(text)], np.int32), mesh)
    texts = _from_all(np.frombuffer(text.ljust(int(sizes.max())), np.uint8), mesh)
    return [json.loads(row.tobytes()) for row in texts]


def _from_all(row: np.ndarray, mesh: Mesh) -> np.ndarray:
    return by_process(local_copy(put_rows(np.tile(row, (len(mesh.local_devices), 1)), mesh), mesh), mesh)


def by_process(rows: Any, mesh: Mesh) -> np.ndarray:
    """Select from rows of all devices [devices, ...] those of the first device of every process [processes, ...]."""
    rows = np.asarray(rows)
    first = {device.process_index: i for i, device in reversed(list(enumerate(mesh.devices.flat)))}
    return rows[[first[process] for process in sorted(first)]]


def first_rows(batch: Tree, count: int, mesh: Mesh) -> Tree:
    """Return the first rows of a global batch, of which every process has its part; all call this together."""
    first = partial(jax.tree.map, lambda rows: rows[:count])
    if jax.process_count() == 1:
        return first(batch)
    taken = jax.jit(first, out_shardings=replicated(mesh))(put_rows(batch, mesh))
    return jax.tree.map(lambda rows: np.asarray(rows.addressable_data(0)), taken)


def local_copy(tree: Tree, mesh: Mesh) -> Tree:
    """Return a copy of a tree on this process's first device; all processes call this together."""
    if not all(array.is_fully_replicated for array in jax.tree.leaves(tree)):
        tree = replicate(tree, mesh)
    here = replicated(_first_device())
    (device,) = here.device_set
    return jax.tree.map(
        lambda a: jax.device_put(next(s.data for s in a.addressable_shards if s.device == device), here), tree
    )


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Copy every array of a tree whole to every device; all processes call this together."""
    return jax.jit(_same, out_shardings=replicated(mesh))(tree)


def fetch_on_first(tree: Any, mesh: Mesh) -> Any:
    """Fetch a tree into the first process's memory, array by array; None in the others, which call this too."""

    def fetch(array: jax.Array) -> np.ndarray | None:
        full = array if array.is_fully_replicated else replicate(array, mesh)
        return np.asarray(full.addressable_data(0)) if jax.process_index() == 0 else None

    return jax.tree.map(fetch, tree)


def first_device():
    """Compute on this process's first device alone within a `with`, as for a `local_copy`."""
    return jax.set_mesh(_first_device())


def _first_device() -> Mesh:
    return jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:1])


def _same(tree):
    return tree
