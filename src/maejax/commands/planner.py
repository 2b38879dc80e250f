"""The plan of a training: its step compiled for other devices, counted, estimated, and made to fit."""

import gzip
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from maejax.commands.plan import PlanCommand
from maejax.config import Config, with_flags
from maejax.console import plain
from maejax.errors import Failed, InputError
from maejax.models.description import MAE, Classifier
from maejax.models.flops import pretrain_flop
from maejax.plan import summary
from maejax.plan.compiled import Compiled, abstract_inputs, compile_for, waiting
from maejax.plan.target import Target, find_target
from maejax.storage.atomic import write_whole
from maejax.tasks import classify, pretrain
from maejax.tasks.checks import check_least, check_step, compute_of, image_type
from maejax.tasks.predicted import NAMES
from maejax.training.state import abstract_state

# In the order of what they cost: a message a layer, a third more arithmetic, smaller products. Unrolled layers keep the
# weights that they gathered until the backward pass; scanned ones gather them anew.
_SMALLEST = {"sharding": "fsdp", "grad_ckpt": True, "scan_layers": True}
REMEDIES: tuple[dict[str, Any], ...] = (
    {"sharding": "fsdp"},
    {"grad_ckpt": True},
    _SMALLEST,
    {**_SMALLEST, "grad_accum": 2},
    {**_SMALLEST, "grad_accum": 4},
)


class Planner:
    """Plans the training of a command: its target devices, its checked flags, and where progress and files go.

    Raises InputError if the flags are wrong, there are no such devices, or there is no compiler for them.
    """

    def __init__(self, console: Console, command: PlanCommand):
        try:
            self.target = find_target(command.topology)
        except ValueError as error:
            raise InputError(str(error)) from None
        self.config = checked(command.config, self.target)
        self.console, self.images, self.out = console, command.images, Path(command.out)
        self.sweep, self.largest = command.sweep, command.largest_batch
        if self.largest and not self.target.memory:
            raise InputError(f"--largest-batch: the memory of {command.topology} is not known; name a slice or GPUs")

    def plan(self, command: str) -> dict[str, Any]:
        """Compile the step, or those of a sweep, find a remedy if it does not fit, and write the plan to the folder."""
        facts, rows = self._sweep(command) if self.sweep else (None, [])
        facts = facts or self._plan(self.config, keep=True)
        if not facts["fits"]:
            facts["remedy"] = self._remedy()
        if self.largest:
            facts["largest"] = self._largest(facts)
        summary.write(self.out, facts, rows, command)
        return {**facts, "sweep": rows} if rows else facts

    def _sweep(self, command: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """Plan every choice of a sweep; returns the facts of the command's own choice and those of all."""
        choices, rows, facts = list(swept(self.config, self.target)), [], None
        self.console.print(f"{len(choices)} compilations; {self.out}/plan.html grows with each", highlight=False)
        for changes in choices:
            changed = with_flags(self.config, **changes)
            try:
                row = self._plan(changed, keep=changed == self.config)
            except Failed as error:  # the other rows are worth having
                plain(self.console, f"{as_flags(changes)}: {error}")
                continue
            facts = row if changed == self.config else facts
            row["choice"] = {
                "layers": "scanned" if changes["scan_layers"] else "unrolled",
                "remat": "every block" if changes["grad_ckpt"] else "none",
                "sharding": changes["sharding"],
            }
            rows.append(row)
            self.console.print("  ".join(filter(None, summary.sweep_cells(row))), highlight=False, soft_wrap=True)
            summary.write(self.out, facts or row, rows, command)
        return facts, rows

    def _plan(self, config: Config, *, keep: bool = False) -> dict[str, Any]:
        """Compile the step of a configuration and collect its facts; `keep` the compiled module in the folder."""
        with waiting(self.console, f"compiling for {self.target.name} (some minutes for a large model)"):
            here = self.target.name in ("cpu", "gpu")
            compiled = compile_step(config, self.target) if here else compile_apart(config, self.target)
        if keep and compiled.text:
            self.out.mkdir(parents=True, exist_ok=True)
            write_whole(self.out / "module.hlo.gz", gzip.compress(compiled.text.encode(), 1))
        height, width = config.image_shape
        work = summary.Work(
            batch_size=config.data.train_batch_size,
            image_bytes=height * width * config.data.channels * np.dtype(image_type(config)).itemsize,
            image_flop=image_flop(config),
            steps=config.optimization.training_steps,
            images=self.images * config.augment.augment_repeats,
        )
        return summary.facts_of(compiled, self.target, work)

    def _remedy(self) -> tuple[str, str, str]:
        """Find the smallest change of flags that makes a step fit, by compiling with one after the other."""
        tried, batch = [], self.config.data.train_batch_size
        for changes in REMEDIES:
            if changes.get("sharding") == self.config.machine.sharding and len(changes) == 1:
                continue
            if batch % (len(self.target.devices) * changes.get("grad_accum", 1)):
                continue
            self.console.print(f"it does not fit; trying {as_flags(changes)}", highlight=False)
            facts = self._plan(with_flags(self.config, **changes))
            if facts["fits"]:
                return as_flags(changes), summary.FIRM, f"compiled: peak {summary.size(facts['memory']['peak'])}"
            tried.append(as_flags(changes))
        remedy = f"--train-batch-size {batch // 2} or less"
        return remedy, summary.ESTIMATE, f"none of these is enough: {'; '.join(tried)}"

    def _largest(self, facts: dict[str, Any]) -> tuple[str, str, str]:
        """Find the largest batch that fits: on a line through two compiled ones, and then compiled itself."""
        size, memory = facts["batch_size"], self.target.memory or 0.0
        unit = 8 * len(self.target.devices) * self.config.optimization.grad_accum
        other = size // 2 // unit * unit or size + unit
        peaks = [
            each["memory"].get("peak") or each["memory"]["needed_at_least"]
            for each in (facts, self._plan(with_flags(self.config, train_batch_size=other)))
        ]
        of_image = (peaks[0] - peaks[1]) / (size - other)
        largest = int(other + (memory - peaks[1]) / of_image) // unit * unit if of_image > 0 else 0
        for batch in (largest, largest * 15 // 16 // unit * unit):
            self.console.print(f"trying --train-batch-size {batch}", highlight=False)
            if batch > 0 and (found := self._plan(with_flags(self.config, train_batch_size=batch)))["fits"]:
                return f"{batch:,} images", summary.FIRM, f"compiled: peak {summary.size(found['memory']['peak'])}"
        return f"about {max(largest, 0):,} images", summary.ESTIMATE, f"{summary.size(of_image)} an image"


def checked(config: Config, target: Target) -> Config:
    """Check the flags as for a run on those devices, and resolve --precision for them.

    Raises InputError with the first flag that is wrong.
    """
    if config.run.cache_features:
        raise InputError("--cache-features: a step of heads alone is small on any device; plan without it")
    if config.mae.target not in NAMES:
        raise InputError(
            f"--target {config.mae.target}: plan reads no weights; plan --target ema, whose teacher is as the encoder"
        )
    check_least(config)
    task_of(config).check_flags(config)
    check_step(config, len(target.devices), f" of {target.name}")
    if config.run.precision == "auto":
        config = with_flags(config, precision="float32" if target.name == "cpu" else "bfloat16")
    model_config(config)
    return config


def task_of(config: Config):
    """Return the module of what is planned, `pretrain` or `classify`: its flags, model, step and arithmetic."""
    return pretrain if config.run.mode == "pretrain" else classify


def model_config(config: Config) -> MAE | Classifier:
    """Describe the model of the flags; without `--labels` a classifier has the 1000 classes of ImageNet."""
    if config.run.mode == "pretrain":
        return pretrain.model_config(config)
    return classify.model_config(config, config.encoder.labels if config.encoder.labels > 0 else 1000)


def image_flop(config: Config) -> int:
    """Count the FLOP of one step on one image, of the published algorithm."""
    model = model_config(config)
    return pretrain_flop(model) if isinstance(model, MAE) else classify.step_flop(model, config.run.mode)


def compile_step(config: Config, target: Target) -> Compiled:
    """Compile the step that training would run on the target."""
    mesh = target.mesh
    compute = compute_of(config)
    if target.devices[0].platform == "gpu" and compute.attention == "auto":
        compute = replace(compute, attention="cudnn")  # as a run chooses, if the form passes its comparison there
    with jax.set_mesh(mesh):
        init, optimizer, step = task_of(config).build_step(config, model_config(config), compute)  # type: ignore[arg-type]
    state = abstract_state(init, optimizer, mesh, config.machine.sharding)
    shape = *config.image_shape, config.data.channels
    inputs = abstract_inputs(mesh, config.data.train_batch_size, shape, image_type(config))
    return compile_for(mesh, step, (state, *inputs))


def compile_apart(config: Config, target: Target) -> Compiled:
    """Compile in a process of its own: a compiler may end its process on a step that it cannot compile.

    Raises Failed if it does.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(compile_for_name, config, target.name).result()
        except BrokenProcessPool:
            raise Failed(
                f"the compiler broke off on this step for {target.name}, which is a fault of its own (or of too little "
                "memory on this machine); its message is above; another topology, --sharding or version of it may do"
            ) from None


def compile_for_name(config: Config, topology: str) -> Compiled:
    """Compile the step for a target of that name."""
    return compile_step(config, find_target(topology))


def swept(config: Config, target: Target) -> Iterator[dict[str, Any]]:
    """List the choices that a sweep compares: layers x remat x sharding, then smaller and larger batches."""
    size, devices = config.data.train_batch_size, len(target.devices)
    for scan in (False, True):
        for remat in (False, True):
            for sharding in ("replicated", "fsdp") if devices > 1 else ("replicated",):
                yield {"scan_layers": scan, "grad_ckpt": remat, "sharding": sharding}
    for batch in (size // 2, size * 2):
        if batch and batch % (devices * config.optimization.grad_accum) == 0:
            yield {
                "scan_layers": config.encoder.scan_layers,
                "grad_ckpt": config.encoder.grad_ckpt,
                "sharding": config.machine.sharding,
                "train_batch_size": batch,
            }


def as_flags(changes: dict[str, Any]) -> str:
    """Spell changes as on a command line."""
    return " ".join(
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in changes.items()
        if value is not False
    )
