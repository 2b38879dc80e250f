"""`maejax pack`: packing images into shards and verifying shards, with progress and what was left out."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rich.console import Console

from maejax.commands.command import DONE, WRONG_INPUT, Command, check_writable, command_line, flags_given
from maejax.commands.early_stop import early_stop
from maejax.console import plain, progress
from maejax.errors import Failed, InputError
from maejax.pixels import PIXEL_FLAGS, Pixels


@dataclass(frozen=True)
class PackCommand(Command, Pixels):
    """Pack images into balanced, shuffled tar shards with an index and checksums, or verify packed shards.

    The same command continues a pack that was interrupted. Shards at an address are packed one after another, each
    shuffled by itself.
    """

    src: str = field(metadata={"positional": "SRC"})
    """Image folder (labelled or flat), tar shards, a Hugging Face `datasets` folder, arrow or parquet files, or an .npz
    file with `images` and `labels`. With --verify: the folder of packed shards."""
    dst: str = field(default="", metadata={"positional": "DST"})
    """Folder for the shards, which take its name. Left out with --verify."""
    shard_size: int = 1000
    """Largest number of images in a shard."""
    shuffle_seed: int | None = 0
    """Seed of the order; None keeps the order of the source."""
    image_size: int | None = None
    """Resize larger images to this short side, in pixels."""
    quality: int | None = None
    """1 to 100: JPEG and WebP become JPEG of this quality if that is smaller. None: resized images alone do, at 95."""
    labels: str = ""
    """File with the class of each image: csv, tsv or json, file name (or stem) and class."""
    workers: int | None = None
    """Threads; each writes a shard. None: one for each core. Never changes what is written."""
    part: str = ""
    """I/N: pack part I of N alone, counted from 0; slurm or kubernetes: as the variables of an array or an indexed
    job say; slurm/N: where the array has some parts of N alone. Shards of the source are then
    packed one by one, each shuffled by itself."""
    gather: bool = False
    """Check that DST has all parts, and write its index.json; pack nothing."""
    verify: bool = False
    """Read all shards of a folder again and compare them with its index.json; exit code 2 if one is wrong."""
    deep: bool = False
    """With --verify: decode every image too."""

    def outputs(self) -> dict[str, bool]:
        """Name what is written."""
        return {} if self.verify else {"dst": True}

    def run(self, console: Console) -> dict[str, Any]:
        """Pack and return the index; with --verify return what was found.

        SIGTERM and Ctrl-C end the process with exit code 75: the same command goes on.
        """
        with early_stop():
            return self._run(console)

    def _run(self, console: Console) -> dict[str, Any]:
        """Do what `run` says."""
        if self.verify:
            if self.dst:
                raise InputError(f"--verify takes one folder, not {self.src} and {self.dst}; name that of the shards")
            from maejax.data.verify import verify

            with progress(console, "verifying", "MB", 1e-6) as report:
                found = verify(self.src, deep=self.deep, workers=self.workers, progress=report)
            for name, reason in found.wrong:
                plain(console, f"{name}: {reason}")
            return found._asdict()
        if not self.dst:
            raise InputError("DST is missing: name the folder for the shards, as in `maejax pack SRC DST`")
        check_writable("DST", self.dst, folder=True)
        if self.deep:
            raise InputError("--deep belongs to --verify; packing decodes every image anyway")
        from maejax.data.form import asked_form
        from maejax.data.packing import pack
        from maejax.data.packing_parts import gather_shards, lie_elsewhere, pack_part, pack_shards
        from maejax.data.pieces import read_part

        if self.gather and self.part:
            raise InputError("--gather is for all parts: leave --part out")
        if self.gather:
            return gather_shards(self.dst)
        part = read_part(self.part) if self.part else None
        do = pack_shards if lie_elsewhere(self.src) else pack
        do = do if part is None else partial(pack_part, part=part)
        options = ("shard_size", "shuffle_seed", "image_size", "quality", "workers")
        given: dict[str, Any] = {name: getattr(self, name) for name in options}
        asked = asked_form(self, 3)
        try:
            with progress(console, "packing", "images") as report:
                index = do(self.src, self.dst, labels=self.labels or None, progress=report, asked=asked, **given)
        except OSError as error:
            remedy = "make room, or mend it, and start the same command again"
            raise Failed(f"{self.dst}: {error.strerror}; {remedy}") from None
        for problem in index.get("problems", ()):
            plain(console, problem)
        for key, reason in index["skipped"].items():
            plain(console, f"left out {key}: {reason}")
        return index

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print in one line what was packed, or how the verification ended."""
        if not self.verify:
            count = len(result["shards"])
            plain(console, f"{result['total']:,} images in {count} shard{'s' * (count != 1)} in {self.dst}")
            return
        shards, images, size = result["shards"], result["images"], result["bytes"] / 1e6
        seen = f"{shards:,} shard{'s' * (shards != 1)}, {images:,} images, {size:,.1f} MB"
        wrong = result["wrong"]
        verdict = f"[bold red]{len(wrong):,} wrong[/bold red] in" if wrong else "[green]all right:[/green]"
        console.print(f"{verdict} {seen}", highlight=False)

    def following(self, result: dict[str, Any]) -> str:
        """Return the training on the shards; of a part, what is to be done after the last."""
        if self.part:
            return f"{command_line('pack', self.src, self.dst, '--gather')} (after the last part)"
        place = self.src if self.verify else self.dst
        return command_line("train", place, *flags_given(self, PIXEL_FLAGS))

    def exit_code(self, result: dict[str, Any]) -> int:
        """Return 2 if a shard is wrong."""
        return WRONG_INPUT if result.get("wrong") else DONE
