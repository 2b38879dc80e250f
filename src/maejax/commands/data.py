"""`maejax data`: a look at images before training on them: facts, contact sheet, and the loader's speed."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.filesize import decimal
from rich.panel import Panel
from rich.table import Table

from maejax.commands.command import Command, check_writable, command_line, flags_given
from maejax.config import image_shape
from maejax.console import literal, plain, progress
from maejax.errors import InputError
from maejax.pixels import PIXEL_FLAGS, Pixels
from maejax.storage.redact import redact

HEAD, TAIL = 5, 3  # classes that are shown
LISTED = 5  # bad images, problems and duplicates that are shown
SHEET = 64  # images
# Flags of `train` too, beside those of `Pixels`.
AS_IN_TRAINING = "image_size channels statistics random_crop crop_scale flip rotate color_jitter show_bands".split()


@dataclass(frozen=True)
class DataCommand(Command, Pixels):
    """Look at images before training on them: counts, faults, and how fast this host prepares them.

    Also draws 64 images as the model will see them, augmented by the same flags as in training. With --statistics it
    computes mean and deviation of every band instead.
    """

    shards: str = field(metadata={"positional": "SHARDS"})
    """Anything that --train-dataset-shards takes."""
    image_size: str = "224"
    """Image size in pixels: a number, or HxW."""
    channels: int = 3
    """Channels of an image: 1 grey, 3 colour, 4 with alpha. At 3, arrays of other numbers or types keep all theirs."""
    statistics: str = ""
    """Write mean and deviation of every band over all pixels to this file, for --statistics in training."""
    workers: int | None = None
    """Processes that compute --statistics. None: one for each core."""
    random_crop: Literal["rrc", "src", "none"] = "rrc"
    """rrc: RandomResizedCrop. src: SimpleResizedCrop of DeiT-III. none: resize and centre crop."""
    flip: Literal["horizontal", "vertical", "both", "none"] = "horizontal"
    """Mirrors every other image: left and right, top and bottom, or each of both."""
    rotate: Literal["none", "quarter"] = "none"
    """quarter: turns images by 0 to 3 quarters."""
    crop_scale: float = 0.2
    """Smallest share of the image's area that rrc takes."""
    color_jitter: float = 0.0
    """Factor for brightness, contrast and saturation jitter."""
    labels: str = ""
    """File with the class of each image: csv, tsv or json, file name (or stem) and class."""
    sample: int = 1000
    """Number of images to decode, drawn from all of them."""
    all: bool = False
    """Decode every image."""
    out: str = "contact-sheet.png"
    """File for the picture."""
    show_bands: str = ""
    """Three bands for its red, green and blue, or one. Empty: the first three of 3 or 4, else the first."""
    consume: float | None = None
    """Images per second that the model takes; the result then states whether the loader keeps up."""
    seed: int = 0
    """Seed of the order and of the augmentation, as --shuffle-seed in training."""

    def outputs(self) -> dict[str, bool]:
        """Name what is written."""
        return {"out": False, "statistics": False}

    def run(self, console: Console) -> dict[str, Any]:
        """Write the contact sheet and return the facts; raises InputError before any image is decoded."""
        size = image_shape(self.image_size)
        if self.sample < 1 and not self.all:
            raise InputError(f"--sample {self.sample}: give at least 1, or --all")
        if self.rotate == "quarter" and size[0] != size[1]:
            raise InputError(f"--rotate quarter turns square images, not {self.image_size}")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--workers {self.workers}: give at least 1")
        if self.consume is not None and self.consume <= 0:
            raise InputError(f"--consume {self.consume:g}: give more than 0 images/s")
        from PIL import Image

        from maejax.data import (
            augment,
            batch_plan,
            contact_sheet,
            display,
            form,
            loader_speed,
            pipeline,
            sources,
            survey,
        )
        from maejax.data.agreement import agree

        out = Path(self.out)
        if out.suffix.lower() not in Image.registered_extensions():
            raise InputError(f"--out {self.out}: give the name of a picture, such as contact-sheet.png")
        check_writable("--out", self.out)
        if self.statistics:
            check_writable("--statistics", self.statistics)
        asked = form.asked_form(self, self.channels)
        source = sources.open_source(self.shards, labels=self.labels or None)
        found = agree(source, asked)
        if self.color_jitter and not (found.of_pictures and found.channels in (1, 3)):
            raise InputError(f"--color-jitter works on 8-bit pictures of 1 or 3 channels, not {found.describe()}")
        pipeline.check_readable(source, found.channels)
        if self.statistics:
            return self._compute(console, source)
        show = display.shown_bands(self.show_bands, found.chosen, found.channels)
        sample = None if self.all else self.sample
        with progress(console, "looking", "images") as report:
            facts = survey.survey(source, sample=sample, channels=found.channels, progress=report)
        transform = augment.build_train(
            size,
            self.random_crop,
            (self.crop_scale, 1.0),
            self.color_jitter,
            flip=self.flip,
            rotate=self.rotate == "quarter",
            no_data=found.no_data,
        )
        plan = batch_plan.BatchConfig(min(SHEET, len(source)), seed=self.seed)
        batch = pipeline.Loader(source, transform, plan, size=size, channels=found.channels).batch(0)
        images = batch.images[batch.valid]
        limits = display.limits_of(images, show, found.no_data)
        out.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet.draw_contact_sheet(display.as_picture(images, show, limits, found.no_data)).save(out)
        speed = loader_speed.measure(source, transform, size, found.channels)
        if self.consume is not None:
            speed |= {"consume": self.consume, **keeps_up(speed, self.consume)}
        pixels = {"pixels": found.describe()}
        return {"source": redact(self.shards), **facts, **pixels, "contact_sheet": str(out), "loader": speed}

    def _compute(self, console: Console, source: Any) -> dict[str, Any]:
        """Write the statistics and return them."""
        from maejax.data import statistics

        with progress(console, "adding up", "images") as report:
            found = statistics.compute(source, self.workers, report)
        found = {"source": redact(self.shards), **found}
        statistics.write(Path(self.statistics).expanduser(), found)
        return found

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print the facts, or the statistics, as one short table."""
        if self.statistics:
            return self._show_statistics(console, result)
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold cyan", no_wrap=True)
        table.add_column()
        labels = result["classes"]
        suffixes = _counts({suffix or "no suffix": count for suffix, count in result["suffixes"].items()})
        table.add_row("images", f"{result['images']:,}  [dim]{suffixes}[/dim]")
        if shards := result["shards"]:
            sizes = " / ".join(decimal(int(value)) for value in shards["bytes"].values())
            images = " / ".join(f"{value:,}" for value in shards["images"].values())
            table.add_row("shards", f"{shards['count']:,}")
            if shards["count"] > 1:
                table.add_row("", f"{sizes}; {images} images  [dim]min / median / max[/dim]")
        table.add_row("classes", _classes(labels))
        if labels["images"]:
            table.add_row("", _bars(labels["images"]))
        every = result["looked_at"] == result["images"]
        share = "all" if every else f"a sample of {result['looked_at']:,}"
        table.add_row("decoded", f"{share}: {_counts(result['formats'])}; {_counts(result['modes'])}")
        table.add_row("pixels", literal(result["pixels"]))
        table.add_row("", _sizes(result))
        if bad := result["bad"]:
            of = "" if every else f" of {result['looked_at']:,} looked at"
            lines = [f"{key}: {reason}" for key, reason in bad.items()]
            _list(table, "[red]bad[/red]", f"[red]{len(bad):,}{of} cannot be read[/red]", lines)
        else:
            table.add_row("bad", "none" if every else "none in the sample; --all looks at every image")
        if duplicates := result["duplicates"]:
            lines = [f"{name} x {count}" for name, count in duplicates.items()]
            _list(table, "[yellow]duplicates[/yellow]", f"{len(lines):,} names occur more than once", lines)
        if problems := result["problems"]:
            _list(table, "[yellow]problems[/yellow]", f"{len(problems):,}", problems)
        table.add_row("loader", _speed(result["loader"]))
        table.add_row("pictures", str(result["contact_sheet"]))
        console.print(Panel(table, title=literal(result["source"]), title_align="left", expand=False))
        return None

    def _show_statistics(self, console: Console, result: dict[str, Any]) -> None:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for title in ("band", "mean", "deviation", "smallest", "largest", "missing"):
            table.add_column(title, justify="left" if title == "band" else "right")
        names = result["bands"] or [str(i) for i in range(len(result["mean"]))]
        for i, name in enumerate(names):
            numbers = (result[column][i] for column in ("mean", "std", "min", "max"))
            share = result["missing"][i] / (result["missing"][i] + result["pixels"][i])
            table.add_row(literal(name), *(f"{number:.5g}" for number in numbers), f"{share:.2%}")
        console.print(table)
        scale = "; mean and deviation on the 0..1 scale" if result["image_type"] == "uint8" else ""
        lost = f", {result['unreadable']:,} more could not be read" if result["unreadable"] else ""
        plain(console, f"{result['images']:,} images of {result['image_type']}{lost}{scale}")
        plain(console, f"written  {self.statistics}")

    def following(self, result: dict[str, Any]) -> str:
        """Return the training on these images, read in the same way."""
        pixels = flags_given(self, (*PIXEL_FLAGS, *AS_IN_TRAINING))
        return command_line("train", self.shards, *pixels)


def keeps_up(loader: dict[str, Any], consume: float) -> dict[str, Any]:
    """Compute whether the loader delivers what a model takes, and how many cores would at the rate of all of these."""
    cores = math.ceil(consume / (loader["all"] / loader["cores"]))
    return {"keeps_up": bool(loader["all"] >= consume), "cores_needed": cores}


def _list(table: Table, title: str, count: str, lines: list[str]) -> None:
    table.add_row(title, count)
    for line in lines[:LISTED]:
        table.add_row("", f"[dim]{literal(line)}[/dim]")
    if len(lines) > LISTED:
        table.add_row("", f"[dim]and {len(lines) - LISTED:,} more; --json lists them all[/dim]")


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
    largest, rows = max(counts[0][1], 1), []
    for name, count in counts:
        rows.append((literal(name), f"{count:,}", f"[cyan]{'━' * max(1, round(24 * count / largest))}[/cyan]"))
    if len(rows) > HEAD + TAIL + 1:
        rows[HEAD:-TAIL] = [("[dim]...[/dim]", "", "")]
    bars = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    bars.add_column(max_width=32, no_wrap=True)
    bars.add_column(justify="right")
    for row in rows:
        bars.add_row(*row)
    return bars


def _sizes(facts: dict[str, Any]) -> Table:
    sizes = Table(box=None, show_header=True, header_style="dim", padding=(0, 2, 0, 0))
    sizes.add_column("")
    for name in map(str, facts["width"]):
        sizes.add_column({"0%": "min", "50%": "median", "100%": "max"}.get(name) or name, justify="right")
    for fact, shown in (("width", "{:,}".format), ("height", "{:,}".format), ("bytes", decimal)):
        sizes.add_row(fact, *(shown(int(value)) for value in facts[fact].values()))
    return sizes


def _speed(loader: dict[str, Any]) -> str:
    text = f"{loader['one']:,.0f} images/s with 1 thread, [bold]{loader['all']:,.0f}[/bold] with {loader['cores']}"
    if "consume" not in loader:
        return text
    verdict, needs = ("[green]keeps up", ", on") if loader["keeps_up"] else ("[red]does not keep up", ": that needs")
    taken = f"with a model that takes {loader['consume']:,.0f}{needs} {loader['cores_needed']:,} cores like these"
    return f"{text}\n{verdict}[/] {taken}"
