"""`maejax plan`: what a training command would do on devices that need not be here."""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import dropwhile
from pathlib import Path
from typing import Any

from rich.console import Console

from maejax.commands.command import Command, check_writable, prepare_devices
from maejax.commands.recipe import find_script, scripts
from maejax.config import Config, with_flags
from maejax.console import plain
from maejax.errors import FetchError, InputError
from maejax.storage.redact import redact


@dataclass(frozen=True)
class PlanCommand(Command):
    """Plan a training command on devices that need not be here: memory, traffic, messages, days.

    Takes the flags of `maejax train`, or a preset and flags: `maejax plan config/pretrain/NAME.sh --topology v4-64`;
    NAME.sh alone is one of `maejax recipe list`.
    The training step is compiled for the devices, and nothing is run; a TPU's compiler is in the extra `tpu`, that of
    GPUs in `cuda`. Writes OUT/plan.json, OUT/plan.html and the compiled module, OUT/module.hlo.gz.
    """

    config: Config = field(default_factory=Config, metadata={"title": ""})
    topology: str = "v4-8"
    """TPU slice by gcloud's name, such as v3-8, v4-64, v5litepod-16, v5p-32, v6e-64; GPUs and their number, such as
    h100-8, h200-8, b200-8, a100-40-1, a100-80-8, l4-1, l40s-4, rtx4090-1; cpu or gpu: devices here."""
    sweep: bool = False
    """Also compare unrolled and scanned layers, --grad-ckpt, --sharding and other batch sizes in one table."""
    largest_batch: bool = False
    """Also find the largest --train-batch-size that fits: two or three more compilations."""
    out: str = "plan"
    """Folder for the plan."""
    images: int = 1_281_167
    """Images of an epoch; ImageNet-1k has 1,281,167."""
    given: frozenset[str] = field(default=frozenset(), metadata={"hidden": True})
    """Names of the flags on the command line; the file of --pretrained-ckpt decides about some of the others."""

    def outputs(self) -> dict[str, bool]:
        """Name what is written."""
        return {"out": True}

    def run(self, console: Console) -> dict[str, Any]:
        """Compile, count and estimate, write the plan and return its facts."""
        check_writable("--out", self.out, folder=True)
        os.environ.setdefault("JAX_PLATFORMS", "" if self.topology == "gpu" else "cpu")
        prepare_devices(keep=False)
        from maejax.commands.planner import Planner

        completed = replace(self, config=self.with_weights(console))
        return Planner(console, completed).plan(redact(shlex.join(["maejax", *sys.argv[1:]])))

    def with_weights(self, console: Console) -> Config:
        """Return the flags, completed by the file of --pretrained-ckpt as in training if it is here."""
        from maejax.tasks.transfer import with_facts_of_file

        try:
            config, lines = with_facts_of_file(self.config, self.given)
        except (InputError, FetchError) as error:
            config, lines = self.config, [f"not read, so the flags alone give the sizes: {error}"]
        for line in lines:
            plain(console, f"weights  {line}")
        return config

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print the facts of the plan as a table."""
        from maejax.plan import summary

        summary.show(console, result)

    def following(self, result: dict[str, Any]) -> str:
        """Return the training that was planned, if it fits."""
        from maejax.tasks.chosen import command_of

        images = self.config.data.train_dataset_shards or "IMAGES"
        return command_of(with_flags(self.config, train_dataset_shards=images)) if result["fits"] else ""


def preset_flags(args: Sequence[str]) -> list[str]:
    """Return the arguments with a preset (a shell script among them) replaced by its flags, which come first.

    Bash runs the script with `python3`, `python` and `maejax` replaced by programs that print their arguments.
    Raises InputError if it does not exist, cannot be run, or trains nothing.
    """
    given, flags = [arg for arg in args if not arg.endswith(".sh")], []
    for preset in (arg for arg in args if arg.endswith(".sh")):
        path = Path(preset).resolve()
        if not path.is_file():
            if preset.removesuffix(".sh") not in scripts():
                raise InputError(f"{preset} does not exist: name a script, or NAME.sh of `maejax recipe list`")
            path = find_script(preset)
        with tempfile.TemporaryDirectory() as folder:
            for name in ("python3", "python", "maejax"):
                stand_in = Path(folder, name)
                stand_in.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
                stand_in.chmod(0o755)
            places = {"GCS_DATASET_DIR": "gs://bucket", **os.environ, "PATH": f"{folder}:{os.environ.get('PATH', '')}"}
            command = ["bash", str(path)]
            ended = subprocess.run(command, capture_output=True, text=True, env=places)
        found = list(dropwhile(lambda arg: not arg.startswith("-"), filter(None, ended.stdout.split("\0"))))
        if ended.returncode or not found:
            raise InputError(f"{preset} gives training no flags: {ended.stderr.strip() or 'it trains nothing'}")
        flags += found
    return flags + given
