"""The devices that a plan is for: a slice of a TPU pod or GPUs, which need not exist, or this machine's."""

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from maejax.errors import install
from maejax.plan.gpus import GPUS, HOST, Gpu, describe, linked, read_gpus
from maejax.training.chips import CHIPS, Chip, chip_of

# Chips along the axes of a slice, by their number (docs.cloud.google.com/tpu/docs, the pages of each version).
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBE = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
V3 = {4: "2x2", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16", 512: "16x32", 1024: "32x32"}

# By gcloud's name: the version, how many units of the number in that name make a chip, and the shapes.
FAMILIES = {
    "v3": ("v3", 2, V3),
    "v4": ("v4", 2, CUBE),
    "v5litepod": ("v5e", 1, FLAT),
    "v5e": ("v5e", 1, FLAT),
    "v5p": ("v5p", 2, CUBE),
    "v6e": ("v6e", 1, FLAT),
}

# libtpu shall ask no metadata server, look for no other hosts, and take no lock, so that a second plan can start.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v4-8",
}
# CUDA's compiler shall look for no card and no driver, and leave alone those that are there.
NO_CARD = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}


class Target(NamedTuple):
    """Devices to compile for. `chip` is None if the table of chips does not hold them."""

    name: str
    chip: Chip | None
    devices: Sequence[Any]

    @property
    def hosts(self) -> int:
        """The number of hosts that these devices are attached to."""
        return len({device.process_index for device in self.devices})

    @property
    def memory(self) -> float | None:
        """The bytes of a device that a program may use; None if they are not known."""
        return self.chip and self.chip.memory * self.share

    @property
    def share(self) -> float:
        """The share of a device's memory that JAX takes: of a GPU its default, or what its variable says."""
        gpu = self.devices[0].platform == "gpu"
        return float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75)) if gpu else 1.0

    @property
    def mesh(self) -> Mesh:
        """The mesh that training makes of these devices."""
        return Mesh(np.array(self.devices), ("data",), axis_types=(AxisType.Auto,))


def find_target(name: str) -> Target:
    """Return the devices of a slice by gcloud's name, of GPUs such as h100-8, or this machine's ("cpu", "gpu").

    Raises ValueError if there are none.
    """
    if name in ("cpu", "gpu"):
        try:
            devices = jax.devices(name)
        except RuntimeError as error:
            raise ValueError(f"--topology {name}: JAX finds none on this machine ({error})") from None
        return Target(name, chip_of(devices[0].device_kind), devices)
    if (found := read_gpus(name)) is not None:
        return find_gpus(name, *found)
    if name.partition("-")[0] not in FAMILIES:
        raise ValueError(
            f"--topology {name} is no TPU slice and no GPU: give v4-8, {', '.join(f'{g}-1' for g in GPUS)} or cpu"
        )
    chip, described, options = read_name(name)
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise ValueError(
            f"--topology {name}: planning for a TPU needs its compiler: {install('tpu')} (libtpu, about 140 MB; it "
            "needs no TPU, and runs on 64-bit x86 Linux)"
        )
    for variable, value in ALONE.items():
        os.environ.setdefault(variable, value)
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=described, **options)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology {name}: the installed libtpu cannot compile for it: {error}") from None
    return Target(name, chip, topology.devices)


def find_gpus(name: str, gpu: Gpu, count: int) -> Target:
    """Return so many GPUs of a kind, which need not be here; raises ValueError without their compiler."""
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise ValueError(
            f"--topology {name}: planning for GPUs needs their compiler: {install('cuda')} (5.3 GB on disk; it needs "
            "no GPU and no driver, and runs on Linux)"
        )
    os.environ.update(NO_CARD)
    on_each = min(count, HOST)
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=describe(gpu), topology=f"1x{count // on_each}x{on_each}"
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"--topology {name}: the installed jax-cuda12-plugin cannot compile for it: {error}") from None
    return Target(name, linked(gpu, count), topology.devices)


def read_name(name: str, flag: str = "--topology") -> tuple[Chip, str, dict[str, Any]]:
    """Return chip, compiler's name and options of a slice by gcloud's name; raises ValueError if there is none."""
    version, _, count = name.partition("-")
    if version not in FAMILIES or not re.fullmatch(r"\d+", count):
        known = ", ".join(f"{version}-{min(shapes) * per}" for version, (_, per, shapes) in FAMILIES.items())
        raise ValueError(f"{flag} {name} is no TPU slice: give one such as {known}")
    chip_name, per_chip, shapes = FAMILIES[version]
    chips, rest = divmod(int(count), per_chip)
    if rest or chips not in shapes:
        sizes = ", ".join(str(number * per_chip) for number in shapes)
        raise ValueError(f"{flag} {name}: slices of {version} are of {sizes}")
    options: dict[str, Any] = {}
    if chip_name in ("v4", "v5p"):
        options["chip_config_name"] = "megacore"  # one device a chip, as these versions have; the default is two
    if shapes is FLAT and chips in (1, 8):  # on one host; larger slices have four chips a host
        options["chips_per_host_bounds"] = (1, 1, 1) if chips == 1 else (2, 4, 1)
    chip = next(chip for chip in CHIPS if chip.name == chip_name)
    return chip, f"{chip_name}:{shapes[chips]}", options
