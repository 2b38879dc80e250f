"""Trackers get metrics and pictures besides metrics.jsonl: Weights & Biases and TensorBoard, each by a flag."""

import importlib.util
import logging
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from maejax.errors import InputError, install

_log = logging.getLogger("maejax.training")


class WandB:
    """Weights & Biases. It gets the flags and the metrics, nothing of the machine: no host, command, code or keys.

    `WANDB_MODE=offline` keeps everything in the run directory. A resumed run is the same run there.
    """

    def __init__(self, directory: Path, project: str, name: str, config: dict[str, Any]):
        import wandb

        known = directory / "wandb-run.txt"
        if not known.exists():
            known.write_text(uuid.uuid4().hex[:8] + "\n")
        machine: dict[str, Any] = {f"x_disable_{what}": True for what in ("meta", "stats", "machine_info")}
        settings = wandb.Settings(
            disable_git=True, disable_code=True, save_code=False, console="off", silent=True, host="-", **machine
        )
        project, run_id = project or "maejax", known.read_text().strip()
        self._run = wandb.init(
            project=project, name=name, dir=directory, config=config, id=run_id, resume="allow", settings=settings
        )
        self._run.define_metric("*", step_metric="step")  # its own counter does not go back when a run does
        self._image = wandb.Image

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Add the metrics of a step."""
        self._run.log({"step": step, **metrics})

    def picture(self, step: int, path: Path) -> None:
        """Add a picture of reconstructions, a PNG file."""
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
    """Check that the libraries of the trackers that a run uses are installed; raises InputError if one is not."""
    for flag, wanted, library in (("wandb", wandb, "wandb"), ("tensorboard", tensorboard, "tensorboardX")):
        if wanted and importlib.util.find_spec(library) is None:
            raise InputError(f"--{flag} needs a library that is not installed: {install(flag)}")
    if wandb:
        check_login()


def check_login() -> None:
    """Raise InputError if W&B has no login and cannot ask for one."""
    import wandb

    if sys.stdin.isatty() or wandb.setup().settings.mode != "online":
        return
    if not wandb.login(prompt=False, verify=False):
        raise InputError(
            "--wandb has no login: run `wandb login`, set WANDB_API_KEY, or keep the log here by WANDB_MODE=offline"
        )


def guarded(call, *args) -> None:
    """Call a tracker; a failure is only logged."""
    try:
        call(*args)
    except Exception as error:  # of a service or a disk: training must not depend on it
        _log.error("%s failed (%s); training goes on", call.__qualname__, error)
