"""Packing and verifying shards in front of a person: progress, speed, and what was left out."""

from rich.console import Console

from maejax.console import progress
from maejax.data.packing import pack
from maejax.data.verify import Verified, verify
from maejax.errors import Failed, InputError


def run(console: Console, src: str, dst: str, **options) -> dict:
    """Pack `src` into `dst` (see `maejax.data.pack`), telling how far it is; returns the index.

    Raises:
        InputError: the input is wrong.
        Failed: writing failed on the way.

    """
    try:
        with progress(console, "packing", "images") as tell:
            index = pack(src, dst, progress=tell, **options)
    except OSError as error:
        raise Failed(f"{dst}: {error.strerror}; make room, or mend it, and start the same command again") from None
    for problem in index.get("problems", ()):
        console.print(problem, highlight=False, markup=False, soft_wrap=True)
    for key, reason in index["skipped"].items():
        console.print(f"left out {key}: {reason}", highlight=False, markup=False, soft_wrap=True)
    return index


def check(console: Console, dst: str, *, deep: bool, workers: int | None) -> Verified:
    """Verify the shards of `dst` (see `maejax.data.verify`), naming all that is wrong."""
    with progress(console, "verifying", "MB", 1e-6) as tell:
        found = verify(dst, deep=deep, workers=workers, progress=tell)
    for name, reason in found.wrong:
        console.print(f"{name}: {reason}", highlight=False, markup=False, soft_wrap=True)
    return found


def destination(dst: str, deep: bool) -> str:
    """Return `dst`; raises InputError where it is missing, or where a flag of --verify is given without it."""
    if not dst:
        raise InputError("DST is missing: name the folder for the shards, as in `maejax pack SRC DST`")
    if deep:
        raise InputError("--deep belongs to --verify; packing decodes every image anyway")
    return dst


def verified_folder(src: str, dst: str) -> str:
    """Return the one folder that --verify takes; raises InputError where there are two."""
    if dst:
        raise InputError(f"--verify takes one folder, not {src} and {dst}; name that of the packed shards")
    return src


def show(console: Console, found: Verified) -> None:
    """Print in a line how a verification ended."""
    seen = f"{found.shards:,} shard{'s' * (found.shards != 1)}, {found.images:,} images, {found.bytes / 1e6:,.1f} MB"
    if found.wrong:
        console.print(f"[bold red]{len(found.wrong):,} wrong[/bold red] in {seen}", highlight=False)
    else:
        console.print(f"[green]all right:[/green] {seen}", highlight=False)
