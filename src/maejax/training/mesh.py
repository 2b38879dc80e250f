"""Where arrays live: one mesh of all devices, batches split over it, the state on every device or split as well."""

import json
from typing import Any, Literal, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from maejax.training.optim import is_stacked

Tree = TypeVar("Tree")
Sharding = Literal["replicated", "fsdp"]

SMALL = 2**14  # elements; splitting smaller arrays saves nothing and costs a message each


def make_mesh() -> Mesh:
    """Make a mesh of all devices of all hosts with one axis, `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Give the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Give the sharding of a batch: its rows are spread over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place_state(state: Any, mesh: Mesh | AbstractMesh, sharding: Sharding) -> Any:
    """Give the sharding of every array of a state, or of its abstract shape.

    "replicated": all on every device. "fsdp" (ZeRO-3, Rajbhandari et al. 2020): the largest axis that divides by the
    number of devices is split, but never the depth of a stack, whose layers are used one at a time; small arrays, and
    those that nothing divides, stay whole.
    """

    def place(path, array) -> NamedSharding:
        if sharding == "replicated" or array.size < SMALL:
            return replicated(mesh)
        first = 1 if is_stacked(path) else 0
        axes = [axis for axis in range(first, array.ndim) if array.shape[axis] % mesh.size == 0]
        if not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))

    return jax.tree_util.tree_map_with_path(place, state)


def hold_split(tree: Tree, sharding: Sharding) -> Tree:
    """Keep a state, or gradients of its model, split as `place_state` says; in a compiled function, with a mesh set."""
    mesh = jax.sharding.get_abstract_mesh()
    return tree if mesh.empty else jax.lax.with_sharding_constraint(tree, place_state(tree, mesh, sharding))


def gather_unstacked(model: Tree) -> Tree:
    """Make whole what is not in a stack of layers, which gathers its own one at a time; where `hold_split` works."""
    if jax.sharding.get_abstract_mesh().empty:
        return model

    def gather(path, array):
        return array if is_stacked(path) else jax.lax.with_sharding_constraint(array, PartitionSpec())

    return jax.tree_util.tree_map_with_path(gather, model)


def put_rows(rows: Any, mesh: Mesh) -> Any:
    """Put this host's rows of a global array, or of a tree of them, on its devices; works for any number of hosts."""
    with jax.transfer_guard_host_to_device("allow"):  # JAX does not count this as the explicit transfer that it is
        return jax.make_array_from_process_local_data(split(mesh), rows)


def put_same(value: np.ndarray, mesh: Mesh) -> jax.Array:
    """Put an array that is the same on every host whole on every device."""
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_process_local_data(replicated(mesh), value)


def gather(value: Any, mesh: Mesh) -> list[Any]:
    """Give every process the values of all, each anything that JSON holds; all processes call this together."""
    if jax.process_count() == 1:
        return [value]
    text = json.dumps(value).encode()
    sizes = _from_all(np.array([len(text)], np.int32), mesh)
    texts = _from_all(np.frombuffer(text.ljust(int(sizes.max())), np.uint8), mesh)
    return [json.loads(row.tobytes()) for row in texts]


def _from_all(row: np.ndarray, mesh: Mesh) -> np.ndarray:
    return by_process(local_copy(put_rows(np.tile(row, (len(mesh.local_devices), 1)), mesh), mesh), mesh)


def by_process(rows: Any, mesh: Mesh) -> np.ndarray:
    """Take from rows of all devices [devices, ...] those of the first device of every process [processes, ...]."""
    rows = np.asarray(rows)
    first = {device.process_index: i for i, device in reversed(list(enumerate(mesh.devices.flat)))}
    return rows[[first[process] for process in sorted(first)]]


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Put this host's rows of a global batch on its devices; works for any number of hosts."""
    return put_rows(batch, mesh)


def first_rows(batch: dict[str, np.ndarray], count: int, mesh: Mesh) -> dict[str, np.ndarray]:
    """Give every process the first rows of a global batch, of which it has its part; all call this together."""
    if jax.process_count() == 1:
        return {name: rows[:count] for name, rows in batch.items()}
    taken = jax.jit(lambda rows: jax.tree.map(lambda a: a[:count], rows), out_shardings=replicated(mesh))
    return {name: np.asarray(rows.addressable_data(0)) for name, rows in taken(put_batch(batch, mesh)).items()}


def local_copy(tree: Tree, mesh: Mesh) -> Tree:
    """Give this process a copy of a tree on its first device; all processes call this together."""
    if not all(array.is_fully_replicated for array in jax.tree.leaves(tree)):
        tree = replicate(tree, mesh)
    here = replicated(_first_device())
    (device,) = here.device_set
    return jax.tree.map(
        lambda a: jax.device_put(next(s.data for s in a.addressable_shards if s.device == device), here), tree
    )


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Make every array of a tree whole on every device; all processes call this together."""
    return jax.jit(_same, out_shardings=replicated(mesh))(tree)


def take_whole(tree: Any, mesh: Mesh) -> Any:
    """Give the first process every array of a tree whole, in its host memory, and the others None.

    All processes call this together; the devices hold one array more at a time.
    """

    def take(array: jax.Array) -> np.ndarray | None:
        whole = array if array.is_fully_replicated else replicate(array, mesh)
        return np.asarray(whole.addressable_data(0)) if jax.process_index() == 0 else None

    return jax.tree.map(take, tree)


def first_device():
    """Compute on this process's first device alone within a `with`, as for a `local_copy`."""
    return jax.set_mesh(_first_device())


def _first_device() -> Mesh:
    return jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:1])


def _same(tree):
    return tree
