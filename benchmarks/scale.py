"""Sets that are larger than this machine, simulated: parts planned, shards that fail, a folder of a million files.

    python benchmarks/scale.py plan            # 100 million keys in 10,000 shards
    python benchmarks/scale.py read --minutes 30
    python benchmarks/scale.py list            # 1 million files

`plan` opens each of 8 parts as `maejax features --part` does, and the stream of a training, and prints seconds and
the largest memory of the process. `read` serves 1,024 shards from this machine, fails 5 % of the requests, and reads
them by four processes; it checks that each epoch has every image once, and prints memory and open files. `list` opens
a tree of folders as every command does.
"""

import argparse
import http.server
import io
import itertools
import json
import random
import resource
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from maejax.data.augment import build_eval
from maejax.data.batch_plan import BatchConfig
from maejax.data.faults import Faults
from maejax.data.lanes import Lanes
from maejax.data.pieces import Part, open_pieces
from maejax.data.pipeline import Loader
from maejax.data.sources import open_source, open_stream

KEYS, SHARDS, PARTS = 10_000, 10_000, 8  # keys of a shard
FAILING, READ_SHARDS, READ_IMAGES, READERS, BATCH = 0.05, 1_024, 64, 4, 256


def serve(files: dict[str, bytes], failing: float = 0.0) -> str:
    """Serve files from this process, by the ends of their paths; return the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        """Answers with a file, or fails: at once, or after half of it."""

        protocol_version = "HTTP/1.1"

        def do_GET(self):
            data = next((data for name, data in files.items() if self.path.endswith(name)), None)
            fails = random.random() < failing
            if data is None or (fails and random.random() < 0.5):
                self.send_response(404 if data is None else 503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            asked = self.headers.get("Range", "bytes=0-")
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", '"1"')
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            self.wfile.write(data[start : start + (len(data) - start) // 2] if fails else data[start:])
            self.close_connection = fails

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients that hang up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def peak() -> float:
    """Return the largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def plan() -> None:
    """Plan all parts of a set of 100 million keys, and the order of a training on it."""
    names = [f"train-{n:05d}.tar" for n in range(SHARDS)]
    index = {"shards": [{"name": name, "samples": KEYS} for name in names], "classes": []}
    spec = serve({"index.json": json.dumps(index).encode()}) + f"/train-{{00000..{SHARDS - 1:05d}}}.tar"
    before, start = peak(), time.monotonic()
    shards = [shard.address for number in range(PARTS) for shard in open_pieces(spec, part=Part(number, PARTS)).shards]
    assert len(set(shards)) == len(shards) == SHARDS
    seconds = time.monotonic() - start
    print(f"{PARTS:,} parts of {SHARDS:,} shards: {seconds:.1f} s, {seconds / PARTS:.1f} s a part")
    start = time.monotonic()
    whole = open_pieces(spec)
    print(f"all as one: {whole.total:,} keys by index.json, {time.monotonic() - start:.2f} s")
    start = time.monotonic()
    stream = open_stream(spec)
    lanes = Lanes(stream, BatchConfig(4096), Faults())
    orders = [lanes.order(epoch) for epoch in range(3)]
    assert all(len(np.unique(order)) == SHARDS for order in orders)
    print(f"a stream of {stream.total:,} keys, three epochs ordered: {time.monotonic() - start:.2f} s")
    print(f"memory: {peak():,.0f} MB at most, {before:,.0f} before")


def shard_of(images: int) -> bytes:
    """Return a tar of small pictures."""
    buffer, picture = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (16, 16), (90, 60, 30)).save(picture, "PNG")
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(images):
            member = tarfile.TarInfo(f"{i:04d}.png")
            member.size = len(picture.getvalue())
            tar.addfile(member, io.BytesIO(picture.getvalue()))
    return buffer.getvalue()


def read(minutes: float, pause: float) -> None:
    """Serve shards, fail some requests, and read them by several processes."""
    spec = serve({".tar": shard_of(READ_IMAGES)}, FAILING) + f"/s-{{0000..{READ_SHARDS - 1}}}.tar"
    command = [sys.executable, __file__, "reader", spec, str(minutes), str(pause)]
    readers = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in range(READERS)]
    epochs, start = 0, time.monotonic()
    for epoch in itertools.count():
        told = [json.loads(line) for line in (reader.stdout.readline() for reader in readers) if line]
        if len(told) < READERS:
            break
        seen = np.sum([each["seen"] for each in told], axis=0)
        assert (seen == epoch + 1).all(), f"epoch {epoch}: images were seen {seen.min()} to {seen.max()} times"
        epochs += 1
        memory, files = ([each[name] for each in told] for name in ("memory", "files"))
        print(f"{(time.monotonic() - start) / 60:5.1f} min, epoch {epoch}: every image once; "
              f"{max(memory):.0f} MB, {max(files)} open files", flush=True)  # fmt: skip
    assert epochs and not any(reader.wait() for reader in readers)


def be_reader(spec: str, minutes: float, pause: float, number: int) -> None:
    """Read the share of one process, and print after each epoch how often it saw the images of each shard."""
    stream = open_stream(spec)
    config = BatchConfig(BATCH, process_index=number, process_count=READERS)
    loader = Loader(stream, build_eval((16, 16), 1.0), config, size=(16, 16), channels=3, workers=1)
    seen, each = np.zeros((READ_SHARDS, READ_IMAGES), np.int32), READ_SHARDS * READ_IMAGES // BATCH
    end = time.monotonic() + 60 * minutes
    for step, batch in enumerate(loader.iterate(), 1):
        np.add.at(seen, (batch.index >> 32, batch.index & 0xFFFFFFFF), batch.valid)
        time.sleep(pause)
        if step % each == 0:
            memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
            files = sum(1 for _ in Path("/proc/self/fd").iterdir())
            assert (seen.min(axis=1) == seen.max(axis=1)).all(), "an image of a shard was seen more often than another"
            print(json.dumps({"seen": seen[:, 0].tolist(), "memory": memory, "files": files}), flush=True)
            if time.monotonic() > end:
                break


def list_files(count: int) -> None:
    """Open a tree of folders with so many files."""
    with tempfile.TemporaryDirectory() as name:
        for number in range(count):
            if number % 1000 == 0:
                folder = Path(name, f"{number // 100_000:02d}", f"{number // 1000:04d}")
                folder.mkdir(parents=True)
            (folder / f"{number:07d}.jpg").touch()
        before, start = peak(), time.monotonic()
        source = open_source(name)
        print(f"{len(source):,} files: {time.monotonic() - start:.1f} s, {peak() - before:,.0f} MB more at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plan", "read", "list"))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between batches of a process")
    parser.add_argument("--files", type=int, default=1_000_000)
    given = parser.parse_args()
    if given.what == "plan":
        plan()
    elif given.what == "read":
        read(given.minutes, given.pause)
    else:
        list_files(given.files)


if __name__ == "__main__":
    if sys.argv[1:2] == ["reader"]:
        be_reader(sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
