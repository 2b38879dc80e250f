"""What a training command would do on other devices: the command behind `maejax plan`."""

import gzip
import multiprocessing
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from maejax.config import Config, with_flags
from maejax.errors import Failed, InputError
from maejax.models.description import MAE, Classifier
from maejax.models.flops import pretrain_flop
from maejax.plan import summary
from maejax.plan.compiled import Compiled, abstract_inputs, compile_for, waiting
from maejax.plan.target import Target, find_target
from maejax.tasks import classify, pretrain
from maejax.tasks.checks import compute_of
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


def run(
    console: Console, config: Config, topology: str, out: Path, *, images: int, sweep: bool, command: str
) -> dict[str, Any]:
    """Plan a training: compile its step for other devices, count, estimate; write all that to the folder OUT.

    Raises:
        InputError: the flags are wrong, there are no such devices, or there is no compiler for them.

    """
    try:
        target = find_target(topology)
    except ValueError as error:
        raise InputError(str(error)) from None
    config = checked(config, target)
    done: list[dict[str, Any]] = []
    facts, module = None, out / "module.hlo.gz"
    if sweep:
        choices = list(swept(config, target))
        console.print(f"{len(choices)} compilations; {out}/plan.html grows with each", highlight=False)
        for changes in choices:
            changed = with_flags(config, **changes)
            try:
                row = plan_one(console, changed, target, images, module if changed == config else None)
            except Failed as error:  # the other rows are worth having
                console.print(f"{as_flags(changes)}: {error}", highlight=False)
                continue
            facts = row if changed == config else facts
            row["choice"] = {
                "layers": "scanned" if changes["scan_layers"] else "unrolled",
                "remat": "every block" if changes["grad_ckpt"] else "none",
                "sharding": changes["sharding"],
            }
            done.append(row)
            console.print("  ".join(filter(None, summary.sweep_cells(row))), highlight=False, soft_wrap=True)
            summary.write(out, facts or row, done, command)
    facts = facts or plan_one(console, config, target, images, module)
    if not facts["fits"]:
        facts["remedy"] = remedy(console, config, target, images)
    summary.write(out, facts, done, command)
    return {**facts, "sweep": done} if done else facts


def checked(config: Config, target: Target) -> Config:
    """Check the flags as for a run on those devices, and choose what would be chosen there.

    Raises:
        InputError: a flag is wrong.

    """
    if config.run.cache_features:
        raise InputError("--cache-features: a step of heads alone is small on any device; plan without it")
    parts, repeats, devices = config.optimization.grad_accum, config.augment.augment_repeats, len(target.devices)
    here = jax.device_count() * max(1, parts) * max(1, repeats)
    # The data, and timm's policies for them, need not be here; the batch is for other devices than this machine's.
    elsewhere = {"train_dataset_shards": "none", "valid_dataset_shards": "", "auto_augment": "none"}
    task_of(config).check_flags(with_flags(config, **elsewhere, train_batch_size=here))
    unit, size = int(np.lcm(devices * parts, repeats)), config.data.train_batch_size
    if size < 1 or size % unit:
        near = sorted({max(unit, size // unit * unit), (size // unit + 1) * unit})
        raise InputError(
            f"--train-batch-size {size} does not divide by the {devices} devices of {target.name} x {parts} parts "
            f"(--grad-accum) and --augment-repeats {repeats}; take {' or '.join(map(str, near))}"
        )
    if config.run.precision == "auto":
        config = with_flags(config, precision="float32" if target.name == "cpu" else "bfloat16")
    model_config(config)
    return config


def plan_one(
    console: Console, config: Config, target: Target, images: int, module: Path | None = None
) -> dict[str, Any]:
    """Compile the step of a configuration for a target and collect what there is to say; keep the compiled module."""
    with waiting(console, f"compiling for {target.name} (some minutes for a large model)"):
        compiled = compile_step(config, target) if target.name in ("cpu", "gpu") else compile_apart(config, target)
    if module is not None and compiled.text:
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_bytes(gzip.compress(compiled.text.encode(), 1))
    shape = config.image_shape
    work = summary.Work(
        batch_size=config.data.train_batch_size,
        image_bytes=shape[0] * shape[1] * config.data.channels,
        image_flop=image_flop(config),
        steps=config.optimization.training_steps,
        images=images * config.augment.augment_repeats,
    )
    return summary.facts_of(compiled, target, work)


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
    if target.name == "gpu" and compute.attention == "auto":
        compute = replace(compute, attention="cudnn")  # as a run chooses, if the form passes its comparison there
    with jax.set_mesh(mesh):
        init, optimizer, step = task_of(config).build_step(config, model_config(config), compute)  # type: ignore[arg-type]
    state = abstract_state(init, optimizer, mesh, config.machine.sharding)
    inputs = abstract_inputs(mesh, config.data.train_batch_size, (*config.image_shape, config.data.channels))
    return compile_for(mesh, step, (state, *inputs))


def compile_apart(config: Config, target: Target) -> Compiled:
    """Compile in a process of its own: the TPU's compiler ends its process where it meets what it cannot do.

    Raises:
        Failed: it did.

    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(compile_for_name, config, target.name).result()
        except BrokenProcessPool:
            raise Failed(
                f"the TPU's compiler broke off on this step for {target.name}, which is a fault of its own (or of too "
                "little memory on this machine); its words stand above; another slice, --sharding or version of libtpu "
                "may do"
            ) from None


def compile_for_name(config: Config, topology: str) -> Compiled:
    """Compile the step for a target of that name."""
    return compile_step(config, find_target(topology))


def remedy(console: Console, config: Config, target: Target, images: int) -> tuple[str, str, str]:
    """Find the smallest change of flags that makes a step fit, by compiling with one after the other."""
    tried = []
    for changes in REMEDIES:
        if changes.get("sharding") == config.machine.sharding and len(changes) == 1:
            continue
        if config.data.train_batch_size % (len(target.devices) * changes.get("grad_accum", 1)):
            continue
        flags = as_flags(changes)
        console.print(f"it does not fit; trying {flags}", highlight=False)
        facts = plan_one(console, with_flags(config, **changes), target, images)
        if facts["fits"]:
            return flags, summary.FIRM, f"compiled: peak {summary.size(facts['memory']['peak'])}"
        tried.append(flags)
    half = config.data.train_batch_size // 2
    return f"--train-batch-size {half} or less", summary.ESTIMATE, f"none of these is enough: {'; '.join(tried)}"


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


def preset_flags(args: Sequence[str]) -> list[str]:
    """Put the flags that a preset (a shell script among the arguments) gives to training in its place, first of all.

    The script is run by bash with `python3`, `python` and `maejax` replaced by what prints their arguments.

    Raises:
        InputError: it does not exist, cannot be run, or trains nothing.

    """
    given = [arg for arg in args if not arg.endswith(".sh")]
    flags: list[str] = []
    for preset in (arg for arg in args if arg.endswith(".sh")):
        if not Path(preset).is_file():
            raise InputError(f"{preset} does not exist: name a preset such as config/pretrain/*.sh")
        stand_in = """python3() { printf '%s\\0' "$@"; }; python() { python3 "$@"; }; maejax() { python3 "$@"; }
            : "${GCS_DATASET_DIR:=gs://bucket}"; source """
        ended = subprocess.run(
            ["bash", "-c", stand_in + shlex.quote(str(Path(preset).resolve()))], capture_output=True, text=True
        )
        found = [arg for arg in ended.stdout.split("\0") if arg]
        while found and not found[0].startswith("-"):
            found.pop(0)
        if ended.returncode or not found:
            raise InputError(f"{preset} gives training no flags: {ended.stderr.strip() or 'it calls no src/main.py'}")
        flags += found
    return flags + given
