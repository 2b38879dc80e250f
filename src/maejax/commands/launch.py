"""`maejax launch`: the file that makes an engine run a command on its hosts."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from rich.console import Console

from maejax.commands import engines
from maejax.commands.command import Command
from maejax.commands.engines import Job, find_slice
from maejax.commands.features import FeaturesCommand
from maejax.commands.pack import PackCommand
from maejax.commands.plan import preset_flags
from maejax.commands.train import TrainCommand
from maejax.errors import InputError
from maejax.storage.redact import redact

LAUNCHED = ("train", "features", "pack")
ADDED = ("--part", "--gather", "--coordinator", "--num-processes", "--process-id")  # by the engine's file, if at all
SUBMIT = {"slurm": "sbatch", "jobset": "kubectl apply -f", "xpk": "sh", "skypilot": "sky jobs launch", "docker": "sh"}
# The flags that say something to some engines alone.
SAYS = {
    "hosts": ("slurm", "jobset", "skypilot"),
    "parts": ("slurm", "jobset"),
    "gpus": ("slurm", "jobset", "skypilot", "docker"),
    "tpu": ("jobset", "xpk", "skypilot"),
    "cpus": ("slurm", "jobset", "skypilot", "docker"),
    "memory": ("slurm", "jobset", "skypilot", "docker"),
    "hours": ("slurm",),
    "secret": ("jobset",),
    "image": ("jobset", "xpk", "skypilot", "docker"),
    "mount": ("jobset", "skypilot", "docker"),
    "service_account": ("jobset",),
    "cluster": ("xpk",),
    "spot": ("xpk", "skypilot"),
    "restarts": ("jobset", "xpk"),
}


@dataclass(frozen=True)
class LaunchCommand(Job):
    """Print the file with which an engine runs a training, or the parts of `features` and `pack`; submit nothing.

    `maejax launch --to slurm --hosts 4 --gpus 8 train FLAGS`: COMMAND comes last, with flags of its own. A preset, such
    as config/pretrain/NAME.sh, is a training too. After exit code 75 (stopped after saving) the engine starts the
    command again, after 2 (wrong input) never. The file holds no value of a variable or secret.
    """

    to: Literal["slurm", "jobset", "xpk", "skypilot", "docker"] = field(kw_only=True)
    """slurm: a script for sbatch. jobset: for kubectl. xpk: its command line. skypilot: a task. docker: a script."""
    inner: Command | None = field(default=None, kw_only=True, metadata={"hidden": True})
    """The command as it was read."""

    def run(self, console: Console) -> dict[str, Any]:
        """Return the file; raises InputError for the first flag that does not fit the engine or the command."""
        self.check()
        hosts = max(self.hosts, 1)
        if self.tpu:
            chips, shape = find_slice(self.tpu)[1:]
            # Eight chips have one host on Compute Engine and two in GKE, where hosts have four.
            hosts = max(chips // (8 if (self.to, shape) == ("skypilot", "2x4") else 4), 1)
        words = tuple(word for word in self.command if word != "--distributed")
        if hosts > 1 and words[0] != "train":
            raise InputError(f"--tpu {self.tpu} has {hosts} hosts; `{words[0]}` takes a slice of one")
        name = self.name or f"maejax-{words[0]}"
        return {"to": self.to, "file": getattr(engines, self.to)(replace(self, name=name, hosts=hosts, command=words))}

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print the file as it is."""
        print(result["file"], end="", flush=True)

    def following(self, result: dict[str, Any]) -> str:
        """Return how the engine takes the file."""
        return f"save this as FILE, then {SUBMIT[self.to]} FILE"

    def check(self) -> None:
        """Check the flags with the engine and with one another; raises InputError for the first that is wrong."""
        for each in fields(Job):
            engines_of = SAYS.get(each.name, (self.to,))
            if self.to not in engines_of and getattr(self, each.name) != each.default:
                flag = f"--{each.name.replace('_', '-')}"
                raise InputError(f"{flag} is for {' and '.join(engines_of)}, not for {self.to}; leave it out")
        if min(self.hosts, self.parts, self.cpus, self.memory, self.hours, self.restarts) < 0:
            raise InputError("--hosts, --parts, --cpus, --memory, --hours and --restarts are at least 0")
        if not re.fullmatch("[a-z][a-z0-9-]{0,38}[a-z0-9]", self.name or "maejax"):
            raise InputError(f"--name {self.name}: take up to 40 of a to z, 0 to 9 and -, beginning with a letter")
        for name in self.env:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise InputError(f"--env {name.partition('=')[0]}: give names alone; no value shall stand in the file")
        kind = {"slurm": r"([\w-]+:)?", "skypilot": r"[\w-]+:"}.get(self.to, "")
        if self.gpus and not re.fullmatch(rf"{kind}[1-9]\d*", self.gpus):
            example = "H100:8" if self.to == "skypilot" else "8"
            raise InputError(f"--gpus {self.gpus}: for {self.to} give them as {example}")
        if self.gpus and self.tpu:
            raise InputError("--gpus and --tpu: a host has one or the other; leave one out")
        for text in self.mount:
            if not re.fullmatch(r".+:/.*", text):
                raise InputError(f"--mount {text}: give SOURCE:FOLDER, with FOLDER as an absolute path")
        for flag in ("image", "cluster"):
            if self.to in SAYS[flag] and not getattr(self, flag):
                raise InputError(f"--{flag} is missing: {self.to} needs it")
        self._check_hosts()
        self._check_command()

    def _check_hosts(self) -> None:
        """Check that it is clear where the command runs; raises InputError."""
        train, divides = isinstance(self.inner, TrainCommand), self.to in SAYS["parts"]
        if train and self.parts:
            raise InputError("--parts is for features and pack; a training takes --hosts")
        if not train and self.hosts:
            raise InputError(f"--hosts is for a training; {self.command[0]} takes --parts, with slurm or jobset")
        if not train and divides and not self.parts:
            raise InputError(f"--parts is missing: say in how many parts {self.command[0]} is to run")
        if self.tpu and self.hosts:
            raise InputError(f"--hosts: the slice {self.tpu} has hosts of its own; leave it out")
        if self.to == "xpk" and not self.tpu:
            raise InputError("--tpu is missing: --to xpk is for TPU slices")
        if train and self.to in SAYS["hosts"] and not (self.hosts or self.tpu):
            raise InputError("--hosts is missing: say on how many hosts to train")

    def _check_command(self) -> None:
        """Check that nothing of the command is lost or told; raises InputError."""
        for word in self.command:
            if word.partition("=")[0].replace("_", "-") in ADDED:
                raise InputError(f"{word}: leave it out; `maejax launch` adds what the hosts need")
            if "\n" in word:
                raise InputError(f"{word!r} has more than one line, which not every engine's file can hold")
            if redact(word) != word and "$" not in word:
                raise InputError(
                    f"{redact(word)} holds a secret, which would stand in the file; read it from a variable"
                )
        place = ""
        if isinstance(self.inner, TrainCommand):
            place = self.inner.config.run.output_dir
        elif isinstance(self.inner, FeaturesCommand):
            place = self.inner.out
        elif isinstance(self.inner, PackCommand):
            place = self.inner.dst
        kept = "://" in place or any(f"{place}/".startswith(f"{folder}/") for _, folder in self.mounts)
        if self.to != "slurm" and not kept:
            raise InputError(
                f"{place} would be lost with the container: write to an address, such as gs://BUCKET/..., or into a "
                "folder of --mount"
            )


def split(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the flags of `launch` and the command after them, a preset as the training that it stands for.

    Raises InputError if there is no command that can be launched.
    """
    at = next((i for i, word in enumerate(args) if word in LAUNCHED or word.endswith(".sh")), None)
    if at is None:
        if {"-h", "--help"} & set(args):
            return list(args), []
        raise InputError(f"COMMAND is missing: end with one of {', '.join(LAUNCHED)} and its flags")
    command = list(args[at:])
    if command[0] not in LAUNCHED:
        if "GCS_DATASET_DIR" not in os.environ:
            raise InputError(f"{command[0]} reads $GCS_DATASET_DIR: set it to the folder of the shards")
        command = ["train", *preset_flags(command)]
    return list(args[:at]), command
