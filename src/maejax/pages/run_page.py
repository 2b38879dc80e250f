"""report.html of a run: its curves, reconstructions over time, cost, and what to do next; renewed while it trains."""

import json
import logging
import shlex
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any, Literal

from maejax.config import flags
from maejax.models.description import MAE
from maejax.models.flops import classify_flop, pretrain_flop
from maejax.models.stored import from_json
from maejax.pages.advice import next_commands, remarks_on
from maejax.pages.frames import FRAMES, draw_slider, read_frames
from maejax.pages.history import History
from maejax.pages.page import command_line, details, section, table, tiles, write_page
from maejax.pages.run_charts import charts, draw_sweep, numbers
from maejax.recipes import recipe
from maejax.storage import mirror

REPORT = "report.html"
State = Literal["trains", "done", "stopped"]


MODES = {"pretrain": "Pre-training", "linear": "Linear probe", "finetune": "Fine-tuning"}
EVALUATIONS = ("val/", "watch/")
_EVERY, _SHARE = 30.0, 0.01  # seconds between two renewals without an evaluation, and their share of the time at most

_log = logging.getLogger("maejax.pages")


class RunPage:
    """Keeps report.html of a run up to date, as a tracker of `RunLog`; a failure is logged once and stops nothing."""

    def __init__(self, directory: Path, start: int):
        self._directory, self._history = directory, History.read(directory, start)
        self._due, self._failed = 0.0, False

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of a step; renew the page if they are of an evaluation, or if it is old."""
        self._history.add({"step": step, **metrics})
        if time.monotonic() >= self._due or any(name.startswith(EVALUATIONS) for name in metrics):
            self._renew("trains")

    def picture(self, step: int, path: Path) -> None:
        """Do nothing: the page has pictures of its own."""

    def close(self) -> None:
        """Write the page of a run that is done or stopped."""
        self._renew("done" if self._history.step >= self._history.stop else "stopped")

    def _renew(self, state: State) -> None:
        begun = time.monotonic()
        try:
            write_run_page(self._directory, self._history, state)
        except Exception as error:  # whatever it is: training must not depend on a page
            if not self._failed:
                _log.error("%s cannot be written (%s); training goes on", self._directory / REPORT, error)
            self._failed = True
        ended = time.monotonic()
        self._due = ended + max(_EVERY, (ended - begun) / _SHARE)


def write_run_page(directory: Path, history: History, state: State) -> None:
    """Write report.html into a run directory."""
    parts, shown = run_parts(directory, history, state), mirror.shown(directory)
    written = f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC from the files in {shown}."
    write_page(directory / REPORT, directory.name, parts, [written])


def run_parts(directory: Path, history: History, state: State) -> list[str]:
    """Return the parts of the page of a run, from its description to its numbers."""
    shown, given = mirror.shown(directory), history.config["flags"]
    slider = draw_slider({"reconstructed": (read_frames(directory), history.step)})
    note = f"The same validation images with the same patches hidden; {FRAMES} validations at most are kept."
    remarks = "".join(f"<li>{escape(sentence)}</li>" for sentence in remarks_on(history))
    remarks = f'<ul class="plain">{remarks}</ul>' if remarks else ""
    commands = "\n".join(next_commands(given.get("mode", "pretrain"), shown))
    cost = [f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in cost_of(history).items()]
    usual = flags(recipe(given.get("mode", "pretrain")))
    changed = history.changed(usual)
    rows = [
        f"<tr><th>--{name.replace('_', '-')}</th><td>{escape(shown_value(value))}</td>"
        f"<td>{escape(shown_value(usual.get(name)))}</td></tr>"
        for name, value in changed.items()
    ]
    settings = f'<div class="words">{table(("flag", "this run", "published recipe"), rows)}</div>' if rows else ""
    every = details("All flags", f"<pre>{escape(json.dumps(given, indent=2))}</pre>")
    return [
        f'<p class="lead">{escape(describe(history, state))}</p>',
        progress_bar(history, state),
        tiles(facts_of(history)),
        section("Curves", charts(history)),
        section("Rates tried", draw_sweep(directory / "sweep.json")),
        section("Reconstructions over time", slider and f'<p class="quiet">{note}</p>{slider}'),
        section("What to do next", remarks + command_line(commands)),
        section("Cost", f'<div class="words">{table((), cost)}</div>'),
        section("Settings", settings + command_line(repeat(changed)) + every),
        section("Numbers", numbers(history)),
    ]


def describe(history: History, state: State) -> str:
    """Describe what a run trains, on how much, and how far it is, in sentences."""
    config, given = history.config, history.config["flags"]
    mode = MODES[given.get("mode", "pretrain")]
    model, sizes = config.get("model", {}), ""
    encoder = model.get("encoder", model)
    if "dim" in encoder:
        sizes = f" of {encoder['layers']} x {encoder['dim']}"
        sizes += f" on {given['image_size']} px in patches of {given['patch_size']}"
    of = f", {config['images']:,} images" if config.get("images") else ""
    left = history.last("train/eta_seconds")[1]
    how = {
        "trains": f"It trains: step {history.step:,} of {history.stop:,}"
        + (f", about {duration(left)} left" if left == left else ""),
        "done": f"It is done, after {history.step:,} steps",
        "stopped": f"It stopped at step {history.step:,} of {history.stop:,}; the same command goes on",
    }[state]
    return f"{mode}{sizes}{of}. {how}."


def progress_bar(history: History, state: State) -> str:
    """Return a bar of how far a run is; while it trains, the page looks for a newer one every minute."""
    share = min(1.0, history.step / max(1, history.stop))
    renew = ' data-renew="60"' * (state == "trains")
    return f'<div class="bar"{renew}><i style="width:{share:.1%}"></i></div>' if state != "done" else ""


def facts_of(history: History) -> list[tuple[str, str, str]]:
    """Return the figures of a run that matter most: name, value, remark."""
    facts, last, curves = [], history.last, history.curves
    names = {"val/loss": "validation loss", "train/loss": "training loss"}
    if name := next((name for name in names if name in curves), None):
        step, best = curves[name].least
        remark = f"lowest {best:.4f}, step {step:,}" if name == "val/loss" else f"at step {last(name)[0]:,}"
        facts.append((names[name], f"{last(name)[1]:.4f}", remark))
    if "val/acc1" in curves:
        step, best = curves["val/acc1"].most
        facts.append(("top-1 accuracy", f"{last('val/acc1')[1]:.1f} %", f"highest {best:.1f} %, step {step:,}"))
    if "watch/knn" in curves:
        step, best = curves["watch/knn"].most
        facts.append(("nearest neighbours", f"{last('watch/knn')[1]:.1f} %", f"highest {best:.1f} %, step {step:,}"))
    if "train/images_per_second" in curves:
        rate = history.device_seconds and seen_of(history) / history.seconds
        devices = f"on {history.devices} device{'s' * (history.devices > 1)}, on average"
        facts.append(("images/s", f"{rate:,.0f}", devices))
        facts.append(("training time", duration(history.seconds), f"{history.step:,} steps"))
    return facts


def cost_of(history: History) -> dict[str, str]:
    """Return what a run has cost so far, in words by name."""
    given, config, images = history.config["flags"], history.config, seen_of(history)
    found = {"images seen": f"{images:,.0f}"}
    if config.get("images"):
        epochs = images / given.get("augment_repeats", 1) / config["images"]
        found["images seen"] += f" = {epochs:,.1f} epochs of {config['images']:,}"
    if history.seconds:
        found["training steps"] = f"{duration(history.seconds)}; compiling, evaluating and saving not counted"
        found["device-hours"] = (
            f"{history.device_seconds / 3600:,.2f}, on {history.devices} device{'s' * (history.devices > 1)}"
        )
    if flop := flop_of(config):
        found["arithmetic"] = f"{flop * images:.3g} FLOP, {flop:.3g} an image"
    for name, title in (("device/peak_memory", "memory of a device"), ("host/peak_memory", "memory of the first host")):
        if name in history.curves:
            found[title] = f"{history.curves[name].most[1] / 2**30:.2f} GiB at most"
    return found


def flop_of(config: Mapping[str, Any]) -> float:
    """Count the FLOP of a step on one image, 0 if the model is not known."""
    try:
        model = from_json(config["model"])
    except (KeyError, ValueError):
        return 0
    if isinstance(model, MAE):
        return pretrain_flop(model)
    return (1 if config["flags"]["mode"] == "linear" else 3) * classify_flop(model)  # type: ignore[arg-type]


def repeat(changed: Mapping[str, Any]) -> str:
    """Return the command that starts the same run again, from the flags that differ from the recipe's."""
    words = ["maejax", "train"]
    for name, value in changed.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def seen_of(history: History) -> float:
    """Return how many images a run has seen."""
    return history.step * history.config["flags"].get("train_batch_size", 0)


def shown_value(value: Any) -> str:
    """Format the value of a flag."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) or "none"
    return "none" if value in ("", None) else str(value)


def duration(seconds: float) -> str:
    """Format a time to two units."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    left = timedelta(seconds=round(seconds))
    hours, minutes = left.seconds // 3600, left.seconds // 60 % 60
    if left.days:
        return f"{left.days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left.seconds % 60} s"
