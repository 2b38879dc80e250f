"""Trackers get metrics and pictures besides metrics.jsonl: Weights & Biases and TensorBoard, each by a flag."""

import importlib.util
import logging
import struct
import sys
import time
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from maejax.errors import InputError, install

BLOCK = 1 << 15  # bytes, of a record of W&B

_log = logging.getLogger("maejax.training")


class WandB:
    """Weights & Biases. It gets the flags and the metrics, nothing of the machine: no host, command, code or keys.

    `WANDB_MODE=offline` keeps everything in the run directory. A resumed run is the same run there: it does not send
    again what the process before `sent`, names of metrics by step.
    """

    def __init__(
        self, directory: Path, project: str, name: str, config: dict[str, Any], sent: Mapping[int, Collection[str]]
    ):
        import wandb

        # Online, the service has what was sent; offline, a process that was killed lost what it had not written.
        self._sent = recorded(directory / "wandb") if wandb.setup().settings.mode == "offline" else sent
        known = directory / "wandb-run.txt"
        if not known.exists():
            known.write_text(uuid.uuid4().hex[:8] + "\n")
        off: dict[str, Any] = {f"x_disable_{what}": True for what in ("meta", "stats", "machine_info")}
        off |= {"disable_git": True, "disable_code": True, "save_code": False, "console": "off"}
        off["x_service_wait"] = 120.0  # its service starts slowly on a busy host
        run: dict[str, Any] = {"project": project or "maejax", "name": name, "id": known.read_text().strip()}
        settings = wandb.Settings(silent=True, host="-", **off)
        # Whole: a service that a parent of this process started writes from a folder of its own.
        self._run = wandb.init(dir=directory.absolute(), config=config, settings=settings, resume="allow", **run)
        self._run.define_metric("*", step_metric="step")  # its own counter does not go back when a run does
        self._image = wandb.Image

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a step."""
        if new := {name: metrics[name] for name in metrics.keys() - self._sent.get(step, ())}:
            self._run.log({"step": step, **new})

    def picture(self, step: int, path: Path) -> None:
        """Add a picture of reconstructions, a PNG file; it is sent before the scores of its step."""
        if not any(name.startswith("val/") for name in self._sent.get(step, ())):
            self._run.log({"step": step, "reconstructions": self._image(str(path))})

    def close(self) -> None:
        """Write the rest."""
        self._run.finish()


def recorded(folder: Path) -> dict[int, set[str]]:
    """Read which metrics of which steps the offline records of W&B hold; a killed process has not written its last.

    They are logs of LevelDB after 7 bytes: in blocks of 32 KiB, pieces with a sum, a length and a kind (1 whole, 2
    first, 3 middle, 4 last).
    """
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]  # chosen at import

    found: dict[int, set[str]] = {}
    for path in folder.glob("offline-run-*/*.wandb"):
        data, at, message = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if (left := BLOCK - at % BLOCK) < 7:
                at += left
                continue
            size, kind = struct.unpack_from("<HB", data, at + 4)
            if not kind:
                break
            message, at = message + data[at + 7 : at + 7 + size], at + 7 + size
            if at <= len(data) and kind in (1, 4):
                items = Record.FromString(message).history.item
                values = {item.key or ".".join(item.nested_key): item.value_json for item in items}
                if "step" in values:
                    found.setdefault(int(float(values["step"])), set()).update(values)
                message = b""
    return found


class TensorBoard:
    """Event files in `<directory>/tensorboard`; of a resumed run, TensorBoard hides steps beyond `start`."""

    def __init__(self, directory: Path, start: int):
        from tensorboardX import SummaryWriter

        folder = directory / "tensorboard"
        before = set(folder.glob("events.*"))
        self._writer = SummaryWriter(str(folder), purge_step=start + 1)
        for path in set(folder.glob("events.*")) - before:  # open, and named after this machine
            path.rename(path.with_name(f"events.out.tfevents.{time.time_ns()}.maejax"))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a step."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, path: Path) -> None:
        """Add a picture of reconstructions, a PNG file."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image("reconstructions", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Write the rest."""
        self._writer.close()


class Tracker(Protocol):
    """Whatever gets the metrics and the pictures of a run."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a step."""
        ...

    def picture(self, step: int, path: Path) -> None:
        """Add a picture of reconstructions, a PNG file."""
        ...

    def close(self) -> None:
        """Write the rest."""
        ...


def check_installed(*, wandb: bool, tensorboard: bool) -> None:
    """Check the trackers that a run uses; raises InputError if a library is not installed, or W&B has no login."""
    for flag, wanted, library in (("wandb", wandb, "wandb"), ("tensorboard", tensorboard, "tensorboardX")):
        if wanted and importlib.util.find_spec(library) is None:
            raise InputError(f"--{flag} needs a library that is not installed: {install(flag)}")
    if wandb and not sys.stdin.isatty():  # which could not ask for a login
        from wandb import login, setup

        if setup().settings.mode == "online" and not login(prompt=False, verify=False):
            remedy = "run `wandb login`, set WANDB_API_KEY, or keep the log here by WANDB_MODE=offline"
            raise InputError(f"--wandb has no login: {remedy}")


def guarded(call, *args) -> None:
    """Call a tracker; a failure is only logged."""
    try:
        call(*args)
    except Exception as error:  # of a service or a disk: training must not depend on it
        _log.error("%s failed (%s); training goes on", call.__qualname__, error)
