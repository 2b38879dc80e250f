import collections
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from maejax.data.augment import Transform, build_train
from maejax.data.fill import RowSpec, packed, unpacked
from maejax.data.listing import ByteRange
from maejax.data.sources import open_source
from maejax.data.workers import HELD, describe_workers, loader_processes
from maejax.errors import Failed
from tests.data.conftest import make_loader

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def source(tmp_path, numbered, write_tar):
    numbered(tmp_path / "s.tar", 30)
    write_tar(tmp_path / "t.tar", {"0.jpg": b"\xff\xd8\xff"})
    return open_source(str(tmp_path / "*.tar"))


@pytest.fixture
def loader(monkeypatch):
    """A loader with two processes, or as many as `processes` says."""

    def loader(source, finish=None, processes=2, **arguments):
        monkeypatch.setattr("maejax.data.pipeline.loader_processes", lambda cores, *_: min(cores, processes))
        transform = build_train((6, 6), "rrc", (0.2, 1.0), 0.0) if finish is None else Transform(finish)
        arguments = {"workers": 2, "batch_size": 10, "channels": 1, "size": (6, 6)} | arguments
        return make_loader(source, transform, **arguments)

    return loader


def children():
    """Our processes below this one; what has ended but was not waited for counts."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # A thread may end while we look.
            found.update(int(pid) for pid in (task / "children").read_text().split())
    return {pid for pid in found if b"maejax.data.loader_process" in command(pid)}


def command(pid):
    """The command line of a process; empty for one that has gone meanwhile."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    wait_for(lambda: not children())


@pytest.mark.parametrize("repeats", [1, 2])
def test_processes_change_nothing(source, loader, repeats):
    alone = list(loader(source, workers=0, repeats=repeats).iterate(stop=9))
    ours = loader(source, repeats=repeats)
    # All nine are kept, more than there are slots.
    for a, b in zip(alone, list(ours.iterate(stop=9)), strict=True):
        for name in ("images", "labels", "valid", "index"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert list(ours.bad) == ["t.tar:0.jpg"]
    for processes in (0, 2):  # in memory that was used before
        padded = loader(source, processes=processes, shuffle=False, batch_size=4)
        last = collections.deque(padded.iterate(), maxlen=1)[0]
        assert last.valid.tolist() == [True, True, False, False]
        assert not last.images[~last.valid].any()
    threaded = loader(source, workers=3, processes=0, repeats=repeats)
    np.testing.assert_array_equal(next(threaded.iterate()).images, alone[0].images)


@pytest.mark.parametrize("processes", [0, 2])
def test_a_batch_stays_as_it_is_while_anybody_holds_a_part_of_it(source, loader, processes):
    jax = pytest.importorskip("jax")  # here: the processes import this module
    batches = loader(source, processes=processes).iterate()
    first = next(batches)
    view, expected = first.images[3:4].reshape(-1)[5:], first.images[3:4].reshape(-1)[5:].copy()
    on_device = jax.device_put(first.images[:8])  # on CPU it takes over the memory as it is
    addresses = set()
    del first
    for _ in range(30):
        batch = next(batches)
        addresses.add(batch.images.ctypes.data)
        np.testing.assert_array_equal(view, expected)
    assert len(addresses) <= 2 + 1 + HELD  # memory is used again
    batches.close()
    np.testing.assert_array_equal(view, expected)
    np.testing.assert_array_equal(np.asarray(on_device)[3:4].reshape(-1)[5:], expected)
    assert on_device.unsafe_buffer_pointer() in addresses | {view.ctypes.data - 3 * 36 - 5}


def without_jax(image, rng):
    return np.full((6, 6, 1), "jax" in sys.modules, np.uint8)


def test_processes_never_import_jax(source, loader):
    assert not next(loader(source, without_jax).iterate()).images.any()


def killing(image, rng, folder, times):
    """Kill the process that this runs in, the first `times` times."""
    for i in range(times):
        try:
            Path(folder, str(i)).touch(exist_ok=False)
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)
    return np.ones((6, 6, 1), np.uint8)


def test_a_process_that_is_killed_is_replaced_once(source, loader, tmp_path):
    batches = loader(source, partial(killing, folder=tmp_path, times=1), workers=1, processes=1).iterate(stop=5)
    images = [batch.images[batch.valid] for batch in batches]
    assert len(images) == 5
    assert all(image.all() for image in images)
    (tmp_path / "0").unlink()
    batches = loader(source, partial(killing, folder=tmp_path, times=2), workers=1, processes=1).iterate()
    with pytest.raises(Failed, match=r"loader process 0 \(pid \d+\) died, killed by SIGKILL"):
        list(batches)


def shared_memory(pid):
    """List the files of shared memory that a process maps."""
    return [line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/dev/shm" in line]


def test_a_process_that_waits_is_replaced_too(source, loader):
    held = shared_memory(os.getpid())  # of other tests
    batches = loader(source).iterate(stop=20)
    next(batches)
    before = children()
    assert len(before) == 2
    assert shared_memory(os.getpid()) == held and not any(map(shared_memory, before))  # no file can be left there
    os.kill(before.pop(), signal.SIGKILL)
    assert len(list(batches)) == 19


def failing(image, rng):
    raise OSError("the disk is gone")


def failing_oddly(image, rng):
    class Odd(Exception):
        pass

    raise Odd("cannot be sent")


def test_errors_reach_the_caller(source, loader):
    with pytest.raises(OSError, match="the disk is gone"):
        next(loader(source, failing).iterate())
    with pytest.raises(RuntimeError, match="Odd in a loader process: cannot be sent"):
        next(loader(source, failing_oddly).iterate())
    with pytest.raises(Exception, match="local object"):
        next(loader(source, lambda image, rng: image).iterate())


SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a script ignores Ctrl-C
from maejax.data.augment import build_train
from maejax.data.batch_plan import BatchConfig
from maejax.data.pipeline import Loader
from maejax.data.sources import open_source
transform = build_train((6, 6), "rrc", (0.2, 1.0), 0.0)
loader = Loader(open_source(sys.argv[1]), transform, BatchConfig(10), size=(6, 6), channels=1, workers=2)
batches = loader.iterate()
next(batches)
print("ready", flush=True)
if sys.argv[2] == "wait":
    for _ in batches:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, None])
def test_processes_end_with_their_parent(source, end):
    path = source.stored(0).path
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, path, "wait" if end else "leave"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True,
    )  # fmt: skip
    assert run.stdout.readline()
    below = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    if end:
        pids = below.read_text().split()
        assert len(pids) == 2
        os.killpg(run.pid, end)  # as Ctrl-C does: to the whole group
        try:
            run.wait(timeout=300)
        finally:
            run.kill()
        for pid in pids:
            wait_for(
                lambda pid=pid: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text()
            )
    _, errors = run.communicate(timeout=300)
    assert "serve" not in errors  # no word from the processes
    assert (errors == "") == (end in (signal.SIGKILL, signal.SIGTERM, None))


def test_the_memory_is_stated():
    shape = (256, 224, 224, 3)
    assert (
        describe_workers(8, 0, shape, np.dtype(np.uint8), 2) == "8 loader threads; 7 batches of 38.5 MB, 270 MB in all"
    )
    assert describe_workers(40, 3, shape, np.dtype(np.uint8), 2) == (
        "3 loader processes of 14 + 13 + 13 threads; 7 batches of 38.5 MB, 270 MB in all"
    )


def test_small_images_in_training_have_processes_and_others_threads():
    """Two threads fill fewer small images than one."""
    assert loader_processes(2, (32, 32), True) == 2 and loader_processes(8, (64, 64), True) == 8
    assert {
        loader_processes(*case) for case in ((1, (32, 32), True), (2, (32, 32), False), (16, (224, 224), True))
    } == {0}
    assert loader_processes(17, (224, 224), True) == 2 and loader_processes(240, (224, 224), True) == 15
    assert loader_processes(240, (32, 32), True) == 16  # with threads: what they are made of may be large


@pytest.mark.parametrize("shapes", [[(4, 4, 3)] * 3, [(4, 4, 3), (5, 4, 3)], []])
def test_rows_arrive_as_they_were_sent(shapes):
    rng = np.random.default_rng(0)
    rows = [RowSpec(i, i + 7, i * 2, rng.integers(0, 256, shape, np.uint8), f"k{i}") for i, shape in enumerate(shapes)]
    got = unpacked(pickle.loads(pickle.dumps(packed(rows))))
    assert len(got) == len(rows)
    for one, other in zip(got, rows, strict=True):
        assert one._replace(image=0) == other._replace(image=0) and (one.image == other.image).all()
    files = [RowSpec(i, i, i, ByteRange("a.tar", 512, i), "") for i in range(3)]
    assert unpacked(pickle.loads(pickle.dumps(packed(files)))) == files
