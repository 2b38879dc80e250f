"""Speed of the input pipeline: images per second of one core, stage by stage and whole, against the original's.

    python benchmarks/loader.py --data shared/data/clothing-small.tar \
        --peer-python /tmp/plain/bin/python --peer-python /tmp/simd/bin/python --turbojpeg libturbojpeg.so.0

Everything is CPU time on one pinned core, medians over rounds in which all sides take turns; what counts is the ratio.
Data A are photos of the shard given, C the same photos with a long side of 500 pixels, encoded anew at quality 94,
4:2:0. The peers are described in loader_peer.py and
loader_peer_tf.py. `--soak N` runs N batches instead and prints the memory in use.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import simplejpeg
from PIL import Image

from maejax.data import augment, turbojpeg, workers
from maejax.data.augment import Size, Transform, build_eval, build_train, hflip, random_box, resize
from maejax.data.batch_plan import BatchConfig
from maejax.data.decode import decode, size_in_header
from maejax.data.listing import ByteRange
from maejax.data.order import augment_rng
from maejax.data.pipeline import Batch, Loader
from maejax.data.sources import ArraySource, Source, open_source
from maejax.data.workers import HELD

SIZE, BATCH, SCALE = (224, 224), 256, (0.2, 1.0)
Seconds = dict[str, float]


def main() -> None:
    options = parse()
    os.sched_setaffinity(0, {options.core})
    libraries = {"simplejpeg": ""}
    if found := use(options.turbojpeg):
        libraries["libjpeg-turbo 3"] = found
    photos = open_source(str(options.data))
    if options.soak:
        return soak(photos, options)
    with tempfile.TemporaryDirectory() as folder:
        shards = {
            "A": write(photos, Path(folder, "a.tar"), options.images),
            "C": write(photos, Path(folder, "c.tar"), options.images, long_side=500),
        }
        peers = [Peer(python, "loader_peer.py") for python in options.peer_python]
        if options.tf_python:
            peers += [Peer(options.tf_python, "loader_peer_tf.py", *more) for more in ((), ("bicubic",))]
        for name, shard in shards.items():
            print(f"\n== data {name}: {options.images} images, {options.rounds} rounds ==", flush=True)
            compare(shard, libraries, peers, options)
        use(list(libraries.values())[-1])
        scale(photos, options)
    return None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer-python", action="append", default=[], help="Python with the original's packages")
    parser.add_argument("--tf-python", help="Python with TensorFlow")
    parser.add_argument("--turbojpeg", help="library file of libjpeg-turbo 3; without it, what maejax finds by itself")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=1024, help="of a round; a multiple of 256")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--soak", type=int, default=0, metavar="N")
    parser.add_argument("--workers", type=int, default=2, help="of the soak")
    parser.add_argument("--processes", type=int, default=None, help="of the soak")
    return parser.parse_args()


def use(library: str | None) -> str:
    """Choose the libjpeg-turbo 3 of the next rounds: a file, "" for none, None for any; return its file."""
    os.environ.pop("MAEJAX_TURBOJPEG", None)
    if library is not None:
        os.environ["MAEJAX_TURBOJPEG"] = library
    turbojpeg.library.cache_clear()
    found = turbojpeg.library()
    return found._name if found else ""


def write(source: Source, to: Path, images: int, long_side: int = 0) -> Path:
    """Write photos spread over a source, with their labels; enlarged and encoded anew where a long side is given."""
    with tarfile.open(to, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in np.linspace(0, len(source) - 1, images).astype(int).tolist():
            data = source.read(i)
            if long_side:
                image, buffer = Image.fromarray(decode(data)), io.BytesIO()
                size = [round(side * long_side / max(image.size)) for side in image.size]
                resized = image.resize(size, Image.Resampling.BICUBIC)
                resized.save(buffer, "JPEG", quality=94, subsampling="4:2:0")
                data = buffer.getvalue()
            for suffix, content in (("jpg", data), ("cls", str(source.labels[i]).encode())):
                member = tarfile.TarInfo(f"{i:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return to


class Peer:
    """Another pipeline in a Python of its own."""

    def __init__(self, python: str, script: str, *options: str):
        command = [python, str(Path(__file__).with_name(script)), *options]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        hello = json.loads(self.process.stdout.readline())
        self.name = hello["name"]
        print(f"{self.name}: {hello['version']}, {python}")

    def ask(self, shard: Path, images: int, stages: bool = False, **changes):
        """Return CPU seconds per image of the whole, or of each stage; `changes` of the task, see loader_peer.py."""
        task = {"shard": str(shard), "images": images, "batch": BATCH, "size": SIZE[0]}
        task |= changes or {"stages": stages}
        print(json.dumps(task), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def compare(shard: Path, libraries: dict[str, str], peers: list[Peer], options: argparse.Namespace) -> None:
    source = open_source(str(shard))
    batches = {name: endless(source) for name in libraries}
    for _ in range(1 + HELD):  # after these, memory is used again
        for each in batches.values():
            next(each)
    totals: dict[str, list[float]] = {}
    parts: dict[str, list[Seconds]] = {}
    for turn in range(options.rounds + 1):  # the first warms up
        for name, library in libraries.items():
            use(library)
            total, part = ours_whole(batches[name], options.images), ours_stages(shard, source, options.images)
            if turn:
                totals.setdefault(name, []).append(total)
                parts.setdefault(name, []).append(part)
        for peer in peers:
            total, part = peer.ask(shard, options.images, False), peer.ask(shard, options.images, True)
            if turn:
                totals.setdefault(peer.name, []).append(total)
                parts.setdefault(peer.name, []).append(part)
    entropy = {name: statistics.median(part.pop("entropy", np.nan) for part in parts[name]) for name in libraries}
    least = np.nanmin([*entropy.values(), np.inf])
    for name, values in totals.items():
        median = statistics.median(values)
        print(f"\n{name}: {1 / median:,.0f} images/s per core, {median * 1e6:,.0f} us an image")
        for other in (peer.name for peer in peers if name in libraries):
            ratios = [theirs / mine for theirs, mine in zip(totals[other], values, strict=True)]
            line = f"  over {other}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            if "copy" in parts[other][0]:
                bare = [
                    (theirs - part["copy"]) / mine
                    for theirs, part, mine in zip(totals[other], parts[other], values, strict=True)
                ]
                line += f"; {statistics.median(bare):.2f} had it not copied the samples"
            print(line)
        if name in libraries and least < np.inf:
            print(
                f"  the limit, entropy decoding alone: {least * 1e6:,.0f} us; the whole is {median / least:.1f} of it"
            )
        for stage in parts[name][0]:
            value = statistics.median(part[stage] for part in parts[name] if stage in part)
            print(f"  {stage:20} {value * 1e6:7.1f} us  {value / median:5.1%}")


def endless(source: Source) -> Iterator[Batch]:
    """Return the batches of a training run, made by the calling thread."""
    transform = build_train(SIZE, "rrc", SCALE, 0.0)
    return Loader(source, transform, BatchConfig(BATCH), size=SIZE, channels=3).iterate()


def ours_whole(batches: Iterator[Batch], images: int) -> float:
    start = time.process_time()
    for _ in range(images // BATCH):
        next(batches)
    return (time.process_time() - start) / images


def ours_stages(shard: Path, source: Source, images: int) -> Seconds:
    """Measure the stages of the same images, one image after the other as in the loader."""
    start = time.process_time()
    listed = len(open_source(str(shard)))
    seconds = Counter({"index (once)": (time.process_time() - start) / listed})

    def timed(name: str, function: Callable, *arguments):
        start = time.process_time()
        result = function(*arguments)
        seconds[name] += (time.process_time() - start) / images
        return result

    batch = np.ones((BATCH, *SIZE, 3), np.uint8)  # memory that was written before
    for i in np.random.default_rng(0).permutation(listed)[:images].tolist():
        image = source.stored(i)
        assert isinstance(image, ByteRange)
        data = timed("tar read", image.read)
        size = timed("header", size_in_header, data)
        whole = None if size else timed("decode", decode, data)
        height, width = size or whole.shape[:2]
        rng = timed("random numbers", augment_rng, 0, i)
        box = timed("crop box", random_box, (height, width), rng, SIZE, SCALE)
        crop = timed("decode", decode, data if size else whole, 3, box)
        row = timed("resize", resize, crop, SIZE)
        row = timed("flip", hflip, row, rng)
        timed("collate", batch.__setitem__, i % BATCH, row)
        if turbojpeg.library():  # a corner at the end: all before it is read, and none of it transformed
            timed("entropy", turbojpeg.decode_region, data, (height - 8, width - 8, 8, 8), 3)
    seconds["holds the GIL"] = held(source)
    return dict(seconds)


def held(source: Source) -> float:
    """Measure what is left of an image without the calls that release the GIL: reading, decoding, resizing."""
    blank = np.zeros(1 << 24, np.uint8)
    file = source.stored(0).read()

    def whole(data, space):
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        return blank[: height * width * 3].reshape(height, width, 3)

    class Resizer:
        def resize(self, *_) -> None:
            """Do nothing."""

    with (
        mock.patch("maejax.data.decode.library", lambda: None),
        mock.patch.object(simplejpeg, "decode_jpeg", whole),
        mock.patch.object(augment.cykooz, "Resizer", Resizer),
        mock.patch.object(ByteRange, "read", lambda place: file),
    ):
        batches = endless(source)
        return min(ours_whole(batches, BATCH) for _ in range(HELD + 2))


def scale(source: Source, options: argparse.Namespace) -> None:
    """Print how the loader scales over threads and processes, by the clock, and what processes cost in transport."""
    cores = sorted(os.sched_getaffinity(os.getppid()))
    print(f"\n== scaling over {len(cores)} cores, images/s by the clock ==")
    os.sched_setaffinity(0, cores)
    one = 0.0
    for used, processes in ((1, 0), (len(cores), 0), (1, 1), (len(cores), len(cores))):
        rates = [rate(source, used, processes, options.images) for _ in range(3)]
        one = one or statistics.median(rates)
        kind = f"{processes} processes of 1 thread" if processes else f"{used} threads"
        print(f"  {kind:25} {statistics.median(rates):7,.0f}  {statistics.median(rates) / one:.2f} of one thread")
    tiny = ArraySource(["x"] * 10**5, np.zeros(10**5, np.int32), (), [], images=np.zeros((10**5, 8, 8, 3), np.uint8))
    costs = {processes: transport(tiny, processes) for processes in (0, 2)}
    print(f"  transport: {(costs[2] - costs[0]) * 1e6:.1f} us of CPU an image more in processes than in threads")


def with_processes(source: Source, transform: Transform, size: Size, cores: int, processes: int | None) -> Loader:
    """Return a loader of so many processes (None: as many as it takes; 0: threads of this one)."""
    if processes is not None:
        workers.loader_processes = lambda cores: min(cores, processes)
    return Loader(source, transform, BatchConfig(BATCH), size=size, channels=3, workers=cores)


def rate(source: Source, cores: int, processes: int, images: int) -> float:
    transform = build_train(SIZE, "rrc", SCALE, 0.0)
    batches = with_processes(source, transform, SIZE, cores, processes).iterate()
    for _ in range(3):  # those that were ready before the clock
        next(batches)
    start = time.perf_counter()
    for _ in range(images // BATCH):
        next(batches)
    seconds = time.perf_counter() - start
    batches.close()
    return images / seconds


def transport(source: Source, processes: int) -> float:
    """Measure CPU seconds per row of all processes together where a row takes no work; start and end cancel out."""

    def cpu(batches: int) -> float:
        def used() -> float:
            spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            return sum(each.ru_utime + each.ru_stime for each in spent)

        transform = build_eval((8, 8), 1.0)  # hands the pixels on
        loader = with_processes(source, transform, (8, 8), 2, processes)
        start = used()
        for _ in loader.iterate(stop=batches):
            pass
        return used() - start

    return statistics.median(cpu(120) - cpu(20) for _ in range(3)) / (100 * BATCH)


def soak(source: Source, options: argparse.Namespace) -> None:
    """Run the loader and print the memory in use, twenty times on the way."""
    os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
    use(options.turbojpeg)
    transform = build_train(SIZE, "rrc", SCALE, 0.0)
    loader = with_processes(source, transform, SIZE, options.workers, options.processes)
    print(loader.footprint)
    start = time.perf_counter()
    for i, _ in enumerate(loader.iterate(stop=options.soak)):
        if i % (options.soak // 20) == 0:
            tasks = Path("/proc/self/task").glob("*/children")
            pids = ["self", *(pid for task in tasks for pid in task.read_text().split())]
            sizes = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6 for pid in pids]
            print(
                f"  {time.perf_counter() - start:5.0f} s  batch {i:5}  {', '.join(f'{size:.0f}' for size in sizes)} MB"
            )


if __name__ == "__main__":
    main()
