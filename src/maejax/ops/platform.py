"""What is compiled for: the devices of the mesh that is set, which may be described only, or those of this machine."""

import jax

# Their compiler takes no kernel with products in half precision, and they have no memory on the chip for whole arrays.
OLD_TPUS = ("TPU v2", "TPU v3")


def platform_ahead() -> str:
    """Name the platform that is compiled for: that of the mesh, which may be described only, or else the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def tpu_ahead() -> bool:
    """Tell whether it is TPUs of v4 or later that is compiled for."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = jax.devices()[0].device_kind if device is None else device.device_kind
    return platform_ahead() == "tpu" and kind not in OLD_TPUS


def auto_devices() -> int:
    """Count the devices over which the compiler splits arrays by itself: those of the mesh, outside of a shard_map."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty or mesh.manual_axes else mesh.size
