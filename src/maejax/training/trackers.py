"""Trackers get metrics and pictures besides metrics.jsonl: Weights & Biases and TensorBoard, each by a flag."""

import importlib.util
import logging
import sys
import time
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from maejax.errors import InputError, install

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

        self._sent = sent
        known = directory / "wandb-run.txt"
        if not known.exists():
            known.write_text(uuid.uuid4().hex[:8] + "\n")
        off: dict[str, Any] = {f"x_disable_{what}": True for what in ("meta", "stats", "machine_info")}
        off |= {"disable_git": True, "disable_code": True, "save_code": False, "console": "off"}
        run: dict[str, Any] = {"project": project or "maejax", "name": name, "id": known.read_text().strip()}
        settings = wandb.Settings(silent=True, host="-", **off)
        self._run = wandb.init(dir=directory, config=config, settings=settings, resume="allow", **run)
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


Tracker = WandB | TensorBoard


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
