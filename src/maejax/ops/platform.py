"""The platform that code will run on: that of the current mesh, which may be abstract, or else of this machine."""

import jax

# Their compiler refuses kernels with products in half precision, and their on-chip memory holds no whole arrays.
OLD_TPUS = ("TPU v2", "TPU v3")


def target_platform() -> str:
    """Return the platform that is compiled for: the mesh's, or JAX's default without a mesh."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def is_target_tpu() -> bool:
    """Return whether the code is compiled for a TPU of version 4 or later."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = jax.devices()[0].device_kind if device is None else device.device_kind
    return target_platform() == "tpu" and kind not in OLD_TPUS


def auto_devices() -> int:
    """Count the devices over which the compiler splits arrays itself: the mesh's, but 1 inside a shard_map."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or mesh.manual_axes else mesh.size
