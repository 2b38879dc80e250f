"""A look at a source before training on it: facts, contact sheet, and the loader's speed (`maejax data`)."""

import math
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table

from maejax.console import progress
from maejax.data.augment import RandomCrop, Size, build_train
from maejax.data.batch_plan import BatchConfig
from maejax.data.contact_sheet import draw_contact_sheet
from maejax.data.loader_speed import measure
from maejax.data.pipeline import Loader, check_readable
from maejax.data.sources import open_source
from maejax.data.survey import survey
from maejax.errors import InputError

HEAD, TAIL = 5, 3  # classes that are shown
LISTED = 5  # bad images, problems and duplicates that are shown
SHEET = 64  # images


def run(
    console: Console,
    spec: str,
    *,
    size: Size,
    channels: int,
    random_crop: RandomCrop,
    crop_scale: float,
    color_jitter: float,
    labels: str | None,
    sample: int | None,
    out: Path,
    consume: float | None,
    seed: int,
) -> dict[str, Any]:
    """Look at the source `spec` and write a contact sheet to `out`; returns all facts, as JSON can hold them.

    `sample` images are decoded (None: all). `consume` is what a model takes, images/s.

    Raises InputError where the source cannot be opened or no image of it can be read.
    """
    if sample is not None and sample < 1:
        raise InputError(f"--sample {sample}: give at least 1, or --all")
    if color_jitter and channels not in (1, 3):
        raise InputError(f"--color-jitter works on 1 or 3 channels, not {channels}")
    if consume is not None and consume <= 0:
        raise InputError(f"--consume {consume:g}: give more than 0 images/s")
    source = open_source(spec, labels=labels)
    check_readable(source, channels)
    with progress(console, "looking", "images") as tell:
        facts = {"source": spec, **survey(source, sample=sample, channels=channels, progress=tell)}
    augment = build_train(size, random_crop, (crop_scale, 1.0), color_jitter, flip=True)
    count = min(SHEET, len(source))
    batch = Loader(source, augment, BatchConfig(count, seed=seed), size=size, channels=channels).batch(0)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_contact_sheet(batch.images[batch.valid]).save(out)
    except (OSError, ValueError) as error:  # no such folder, or no picture's suffix
        raise InputError(f"--out {out}: cannot be written: {error}") from None
    facts["contact_sheet"] = str(out)
    facts["loader"] = measure(source, augment, size, channels)
    if consume is not None:
        facts["loader"] |= {"consume": consume, **keeps_up(facts["loader"], consume)}
    return facts


def keeps_up(loader: dict[str, Any], consume: float) -> dict[str, Any]:
    """Say whether the loader gives what a model takes, and on how many cores like these it would.

    Cores are counted at the rate a core has where all of them work, which is below that of one alone.
    """
    return {
        "keeps_up": bool(loader["all"] >= consume),
        "cores_needed": math.ceil(consume / (loader["all"] / loader["cores"])),
    }


def show(console: Console, facts: dict[str, Any]) -> None:
    """Print the facts as one short table."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column()
    labels = facts["classes"]
    table.add_row("images", f"{facts['images']:,}{_suffixes(facts['suffixes'])}")
    if facts["shards"]:
        shards = facts["shards"]
        sizes = " / ".join(_bytes(value) for value in shards["bytes"].values())
        images = " / ".join(f"{value:,}" for value in shards["images"].values())
        table.add_row("shards", f"{shards['count']:,}")
        if shards["count"] > 1:
            table.add_row("", f"{sizes}; {images} images  [dim]min / median / max[/dim]")
    table.add_row("classes", _classes(labels))
    if labels["images"]:
        table.add_row("", _bars(labels["images"]))
    every = facts["looked_at"] == facts["images"]
    share = "all" if every else f"a sample of {facts['looked_at']:,}"
    table.add_row("decoded", f"{share}: {_counts(facts['formats'])}; {_counts(facts['modes'])}")
    table.add_row("", _sizes(facts))
    bad = facts["bad"]
    if bad:
        of = "" if every else f" of {facts['looked_at']:,} looked at"
        table.add_row("[red]bad[/red]", f"[red]{len(bad):,}{of} cannot be read[/red]")
        _list(table, [f"{key}: {reason}" for key, reason in bad.items()])
    else:
        table.add_row("bad", "none" if every else "none in the sample; --all looks at every image")
    duplicates = facts["duplicates"]
    if duplicates:
        table.add_row("[yellow]duplicates[/yellow]", f"{len(duplicates):,} names occur more than once")
        _list(table, [f"{name} x {count}" for name, count in duplicates.items()])
    if facts["problems"]:
        table.add_row("[yellow]problems[/yellow]", f"{len(facts['problems']):,}")
        _list(table, facts["problems"])
    table.add_row("loader", _speed(facts["loader"]))
    table.add_row("pictures", str(facts["contact_sheet"]))
    console.print(Panel(Group(table), title=_plain(facts["source"]), title_align="left", box=box.ROUNDED, expand=False))


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def _list(table: Table, lines: list[str]) -> None:
    for line in lines[:LISTED]:
        table.add_row("", f"[dim]{_plain(line)}[/dim]")
    if len(lines) > LISTED:
        table.add_row("", f"[dim]and {len(lines) - LISTED:,} more; --json lists them all[/dim]")


def _suffixes(suffixes: dict[str, int]) -> str:
    return "  [dim]" + _counts({suffix or "no suffix": count for suffix, count in suffixes.items()}) + "[/dim]"


def _counts(counts: dict[str, int], at_most: int = 6) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:at_most]]
    return ", ".join(shown) + (", ..." if len(counts) > at_most else "")


def _classes(labels: dict[str, Any]) -> str:
    none = labels["unlabelled"]
    if not labels["images"]:
        return "no labels"
    counts = [count for _, count in labels["images"]]
    missing = f", [yellow]{none:,} images without a label[/yellow]" if none else ""
    return f"{labels['count']:,}, {min(counts):,} to {max(counts):,} images each{missing}"


def _bars(counts: list[list[Any]]) -> Table:
    """Draw the most and the least frequent classes."""
    shown: list[list[Any] | None] = list(counts)
    if len(counts) > HEAD + TAIL + 1:
        shown = [*counts[:HEAD], None, *counts[-TAIL:]]
    bars = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    bars.add_column(max_width=32, no_wrap=True)
    bars.add_column(justify="right")
    bars.add_column()
    largest = max(counts[0][1], 1)
    for entry in shown:
        if entry is None:
            bars.add_row("[dim]...[/dim]", "", "")
        else:
            name, count = entry
            bars.add_row(_plain(name), f"{count:,}", f"[cyan]{'━' * max(1, round(24 * count / largest))}[/cyan]")
    return bars


def _sizes(facts: dict[str, Any]) -> Table:
    sizes = Table(box=None, show_header=True, header_style="dim", padding=(0, 2, 0, 0))
    sizes.add_column("")
    for name in map(str, facts["width"]):
        sizes.add_column({"0%": "min", "50%": "median", "100%": "max"}.get(name) or name, justify="right")
    sizes.add_row("width", *(f"{value:,}" for value in facts["width"].values()))
    sizes.add_row("height", *(f"{value:,}" for value in facts["height"].values()))
    sizes.add_row("bytes", *(_bytes(value) for value in facts["bytes"].values()))
    return sizes


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _speed(loader: dict[str, Any]) -> str:
    text = f"{loader['one']:,.0f} images/s with 1 thread, [bold]{loader['all']:,.0f}[/bold] with {loader['cores']}"
    if "consume" not in loader:
        return text
    cores = f"{loader['cores_needed']:,} cores like these"
    if loader["keeps_up"]:
        return f"{text}\n[green]keeps up[/green] with a model that takes {loader['consume']:,.0f}, on {cores}"
    return f"{text}\n[red]does not keep up[/red] with a model that takes {loader['consume']:,.0f}: that needs {cores}"
