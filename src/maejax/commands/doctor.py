"""`maejax doctor`: whether this machine is ready to train: devices, versions, disks, buckets, the loader's speed."""

import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from maejax.commands.command import DONE, FAILED, Command, command_line
from maejax.commands.data import keeps_up
from maejax.errors import FetchError, InputError, install

DEVICE_SECONDS = 300  # the chips of a pod come up when all its hosts ask for them, which may be minutes apart
LOADER_SECONDS = 2.0
GB = 1e9
# In a process of its own, which gives the chips back; JAX that hangs must not hang the doctor.
LOOK = """
import json, jax, jax.numpy as jnp
here = jax.local_devices()
sums = [float(jax.jit(lambda x: (x @ x).sum())(jax.device_put(jnp.ones((128, 128)), device))) for device in here]
assert sums == [128.0**3] * len(here), f"ones times ones gave {sums}"
print(json.dumps({"platform": here[0].platform, "kind": here[0].device_kind, "here": len(here),
                  "all": jax.device_count(), "processes": jax.process_count()}))
"""
# The fast forms of this device beside plain products, at the sizes of ViT-B; in a process of its own too.
COMPARE = """
import json, jax, jax.numpy as jnp
from maejax.models.description import MAE
from maejax.ops.check import compare_fast_forms
from maejax.tasks.fast_forms import layer_sizes, worst_of_each
found = worst_of_each(compare_fast_forms(layer_sizes(MAE(), rows=64), jnp.bfloat16)).values()
print(json.dumps([jax.default_backend(), [[each.ok, str(each)] for each in found]]))
"""


class Check(NamedTuple):
    """A check of the machine: its name and status, what was found, and advice."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


@dataclass(frozen=True)
class DoctorCommand(Command):
    """Check whether this machine is ready to train, and leave nothing behind; exit code 1 if something fails."""

    output_dir: str = "runs"
    """Folder of runs, or its address: whether it takes all that a run writes."""
    bucket: str = ""
    """Address in a bucket, such as gs://mine/sets, below which a small file is written, read and deleted."""
    train_dataset_shards: str = ""
    """Images to measure the loader with. Empty: some are drawn."""
    consume: float | None = None
    """Images per second that the model takes from this host; the check then fails if the loader does not keep up."""
    constraints: str = ""
    """File of versions, as in constraints/, to compare the installed ones with."""

    def run(self, console: Console) -> dict[str, Any]:
        """Check this machine and return each check, and whether all passed."""
        from maejax.storage.cache import cache_folder

        folder, away = Path(self.output_dir), "://" in self.output_dir
        checks: list[Check] = []
        with console.status("") as status:
            for name, check in (
                ("versions", lambda: check_versions(self.constraints)),
                ("devices", lambda: check_devices(count_chips())),
                ("disk", lambda: check_disk(cache_folder() if away else folder)),
                ("run folder", lambda: check_bucket(self.output_dir, "run folder") if away else check_folder(folder)),
                *([("bucket", lambda: check_bucket(self.bucket))] if self.bucket else []),
                ("loader", lambda: check_loader(self.train_dataset_shards, self.consume)),
            ):
                status.update(f"checking {name}")
                checks.append(check())
                if name == "devices" and checks[-1].status != "fail":
                    checks += check_fast_forms()
        ok = all(check.status != "fail" for check in checks)
        return {"ok": ok, "checks": [check._asdict() for check in checks]}

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print the checks as a table."""
        colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for check in result["checks"]:
            status = check["status"]
            table.add_row(f"[{colours[status]}]{status}", f"[bold]{check['name']}", escape(check["found"]))
            if check["advice"]:
                table.add_row("", "", "[dim]" + escape(check["advice"]))
        console.print(table)

    def following(self, result: dict[str, Any]) -> str:
        """Return the training on the images that were named, or what needs none of one's own."""
        shards = self.train_dataset_shards
        return command_line("train", shards) if shards else f"{command_line('demo')}, {command_line('data', 'IMAGES')}"

    def exit_code(self, result: dict[str, Any]) -> int:
        """Return 1 if a check fails."""
        return DONE if result["ok"] else FAILED


def count_chips() -> int:
    """Count the TPU chips that this machine shows as files."""
    devices = Path("/dev")
    return len(list(devices.glob("accel[0-9]*")) or list(devices.glob("vfio/[0-9]*")))


def check_versions(constraints: str) -> Check:
    """Compare what is installed with what the tests passed with."""
    check = partial(Check, "versions")
    have = {_plain(package.metadata["Name"]): package.version for package in metadata.distributions()}
    ours = (f"{name} {have[name]}" for name in ("maejax", "jax", "jaxlib", "libtpu", "flax") if name in have)
    found = ", ".join((f"Python {platform.python_version()}", *ours))
    if not constraints:
        if have.get("jax") != have.get("jaxlib"):
            return check("warn", found, "jax and jaxlib are to be of one version: install jax again")
        return check("ok", found)
    try:
        lines = Path(constraints).read_text().splitlines()
    except OSError as error:
        raise InputError(f"--constraints {constraints}: cannot be read: {error.strerror}") from None
    wanted = dict(line.split("#")[0].split(";")[0].strip().split("==") for line in lines if "==" in line.split("#")[0])
    wanted = {name: version for name, version in wanted.items() if _plain(name) in have}
    wrong = {name: version for name, version in wanted.items() if have[_plain(name)] != version}
    if other := [f"{name} {have[_plain(name)]} (tested: {version})" for name, version in wrong.items()]:
        found += f"; {len(other)} others than in {constraints}: {', '.join(other[:5])}"
        return check("warn", found, f"pip install --constraint {constraints} ...")
    return check("ok", f"{found}; {len(wanted)} packages as in {constraints}")


def run_apart(code: str) -> Any:
    """Run code in a process of its own; parse its last line. Raises TimeoutError, or RuntimeError if the code fails."""
    command = [sys.executable, "-c", code]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=DEVICE_SECONDS)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"JAX did not answer within {DEVICE_SECONDS} s") from None
    if ended.returncode:
        raise RuntimeError((ended.stderr.strip() or f"it ended with {ended.returncode}").splitlines()[-1][:300])
    return json.loads(ended.stdout.splitlines()[-1])


def check_devices(chips: int) -> Check:
    """Let JAX compute on every device of this machine, which shows `chips` TPU chips."""
    fail = partial(Check, "devices", "fail")
    try:
        seen = run_apart(LOOK)
    except TimeoutError as error:
        why = "another process may hold the chips, or not all hosts of the pod do this at the same time"
        return fail(str(error), why)
    except RuntimeError as error:
        return fail(f"JAX cannot compute: {error}", "another process may hold the chips")
    found = f"{seen['here']} x {seen['kind']}"
    if seen["processes"] > 1:
        found += f" of {seen['all']} in {seen['processes']} processes"
    if chips and seen["platform"] != "tpu":
        return fail(f"{found}, but there are {chips} TPU chips", install("tpu"))
    if seen["platform"] == "cpu" and shutil.which("nvidia-smi"):
        return Check("devices", "warn", f"{found}, but there is an NVIDIA driver", install("cuda"))
    return Check("devices", "ok", found)


def check_fast_forms() -> list[Check]:
    """Compare the fast forms of this machine's devices with plain products, in bfloat16."""
    check = partial(Check, "fast forms")
    try:
        platform, found = run_apart(COMPARE)
    except (RuntimeError, TimeoutError) as error:
        return [check("fail", f"they cannot be compared: {error}", "--attention xla does without")]
    if not found:
        return [check("ok", f"none on {platform}: plain products run")]
    return [check("ok", line) if ok else check("warn", line, "left out: plain products run") for ok, line in found]


def check_disk(output_dir: Path) -> Check:
    """Compare what is free where runs, fetched shards and the loader's batches go with what they need."""
    folder, room, low = output_dir.absolute(), [], []
    for what, place, least in (
        ("runs", next(p for p in (folder, *folder.parents) if p.exists()), 20),
        ("temporary files", Path(tempfile.gettempdir()), 5),
        ("shared memory", Path("/dev/shm"), 1),
    ):
        if place.exists():
            free = shutil.disk_usage(place).free / GB
            room.append(f"{what} {free:,.0f} GB" if free >= 10 else f"{what} {free:.1f} GB")
            low += [f"{place} has less than {least} GB"] if free < least else []
    return Check("disk", "warn" if low else "ok", "free: " + ", ".join(room), "; ".join(low))


def check_folder(output_dir: Path) -> Check:
    """Do in the folder of runs all that a run does there; a mounted bucket may not allow it."""
    advice = "a bucket needs a hierarchical namespace; docs/tpu.md says how it is created and mounted"
    made = next((p for p in [*reversed(output_dir.absolute().parents), output_dir.absolute()] if not p.exists()), None)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=".doctor-", dir=output_dir))
    except OSError as error:
        return Check("run folder", "fail", f"{output_dir} cannot be written: {error.strerror}", "choose another one")
    doing, log = "append to a file", place / "metrics.jsonl"
    try:
        for text in ("one\n", "two\n"):
            with log.open("a") as file:
                file.write(text)
        _same(log.read_text(), "one\ntwo\n")
        doing = "replace a file by another"
        (place / "new").write_text("new")
        (place / "new").replace(log)
        _same(log.read_text(), "new")
        doing = "rename a folder"
        (place / "half").mkdir()
        (place / "half/array").write_bytes(b"\0" * 1024)
        (place / "half").rename(place / "whole")
        _same([path.name for path in (place / "whole").iterdir()], ["array"])
        doing = "delete a folder"
        shutil.rmtree(place)
    except OSError as error:
        shutil.rmtree(place, ignore_errors=True)
        why = f"{output_dir} does not let a run {doing}: {error.strerror or error}"
        return Check("run folder", "fail", why, advice)
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
    return Check("run folder", "ok", f"{output_dir} takes all that a run writes")


def check_bucket(address: str, name: str = "bucket") -> Check:
    """Write, read and delete a small file in a bucket."""
    from maejax.storage.bucket import try_bucket

    try:
        seconds = try_bucket(address)
    except FetchError as error:
        return Check(name, "fail", f"{address}: {error}", "gcloud auth application-default login; or ask for access")
    return Check(name, "ok", f"{address}: written, read and deleted in {seconds:.1f} s")


def check_loader(shards: str, consume: float | None) -> Check:
    """Measure the training loader on this machine, at 224 pixels."""
    from maejax.data import augment, loader_speed, pipeline, sources

    with tempfile.TemporaryDirectory(prefix="maejax-doctor-") as folder:
        source = sources.open_source(shards or draw_images(Path(folder)))
        pipeline.check_readable(source, 3)
        transform = augment.build_train((224, 224), "rrc", (0.2, 1.0), 0.0)
        rates = loader_speed.measure(source, transform, (224, 224), 3, LOADER_SECONDS)
    of = "" if shards else " of drawn images of ImageNet's size"
    found = f"{rates['all']:,.0f} images/s{of} with {rates['cores']} threads"
    if consume is None:
        return Check("loader", "ok", found)
    verdict, found = keeps_up(rates, consume), f"{found}; the model takes {consume:,.0f}"
    if not verdict["keeps_up"]:
        advice = f"that needs {verdict['cores_needed']:,} cores like these; docs/notes/loader.md"
        return Check("loader", "fail", found, advice)
    if rates["all"] < 1.2 * consume:
        return Check("loader", "warn", found, "less than a fifth to spare")
    return Check("loader", "ok", found)


def draw_images(folder: Path) -> str:
    """Write JPEG images of about ImageNet's size in pixels and bytes: 500 x 375, some 100 kB."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(64):
        blots = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        shapes = np.asarray(blots.resize((500, 375), Image.Resampling.BICUBIC))
        pixels = np.clip(shapes + rng.normal(0, 14, (375, 500, 1)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
    return str(folder)


def _same(found: Any, expected: Any) -> None:
    if found != expected:
        raise OSError("afterwards something else is there")


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
