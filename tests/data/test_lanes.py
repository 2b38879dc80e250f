"""Streams: every image once an epoch, the same order for everybody, and going on where a run stopped."""

import fcntl
import gzip
import json
import logging
import os
import shutil
import threading
import time
from collections import Counter
from dataclasses import replace

import fsspec
import numpy as np
import pytest

from maejax.data import lanes, stream
from maejax.data.augment import Transform, build_eval
from maejax.data.faults import Faults
from maejax.data.lanes import merge_positions
from maejax.data.pipeline import check_readable
from maejax.data.sources import open_source, open_stream
from maejax.errors import InputError
from maejax.storage.retry import RetryPolicy
from tests.data.conftest import make_loader

PATIENT = RetryPolicy(backoff=0.02)  # for what succeeds, on a machine however busy
QUICK = RetryPolicy(connect=2, stall=2, total=1, backoff=0.02)  # for what is given up
SIZES = [9, 17, 4, 0, 12, 8, 25]  # images a shard: unequal, and one of none


@pytest.fixture
def serve(server, numbered, tmp_path):
    """Put shards of numbered images on the server: image i of shard s is filled with 10 * s + i. Returns the spec."""

    def serve(sizes, pack=bytes):
        for s, size in enumerate(sizes):
            data = numbered(tmp_path / "made.tar", size).read_bytes()
            server.files[f"/s-{s}.tar"] = pack(data)
        return f"{server.url}/s-{{0..{len(sizes) - 1}}}.tar"

    return serve


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(lanes, "LEAST", 2)
    monkeypatch.setattr(lanes, "MOST", 8)


def plain(image, rng):
    return image


def noisy(image, rng):
    return rng.integers(0, 256, image.shape).astype(np.uint8)


def train(stream, transform=plain, **arguments):
    return make_loader(
        stream, Transform(transform), **{"batch_size": 6, "channels": 1, "size": (6, 6), "seed": 3} | arguments
    )


def stream_of(spec, patience=PATIENT, **arguments):
    return open_stream(spec, patience=patience, **arguments)


def assert_same(a, b):
    for name in ("images", "labels", "valid", "index"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def fetch_threads():
    return [thread for thread in threading.enumerate() if thread.name == "maejax-fetch"]


def test_every_shard_and_image_once_an_epoch_in_windows(serve):
    stream = stream_of(serve(SIZES))
    loader = train(stream)
    assert loader._plans.count == 6 and loader.steps is None
    batches = loader.iterate()
    seen = [[] for _ in range(6)]  # what each lane gave
    for batch in (next(batches) for _ in range(60)):
        assert batch.valid.all()
        assert (batch.labels == (batch.index & 0xFFFFFFFF) % 3).all()
        assert (batch.images == (batch.index & 0xFFFFFFFF)[:, None, None, None]).all()
        for lane, index in enumerate(batch.index.tolist()):
            seen[lane].append(index)
    batches.close()
    sequence = [int(s) for epoch in range(9) for s in loader._plans.order(epoch)]
    assert all(sorted(sequence[e * 7 : e * 7 + 7]) == list(range(7)) for e in range(9))
    shuffled = 0
    for lane, images in enumerate(seen):
        for turn, shard in enumerate(sequence[lane::6]):
            part, images = [i - (shard << 32) for i in images[: SIZES[shard]]], images[SIZES[shard] :]
            start = 0
            for size in (8, 8, 8, 1) if turn else (2, 4, 8, 8, 3):
                window = part[start : start + size]
                if images or len(window) == size:
                    assert sorted(window) == list(range(start, start + len(window)))
                shuffled += window != sorted(window)
                start += size
            if not images:
                break
    assert shuffled > 30


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_processes_and_threads_change_nothing(serve, processes):
    spec = serve(SIZES)
    whole = list(train(stream_of(spec), noisy).iterate(stop=12))
    parts = [
        list(train(stream_of(spec), noisy, process_index=i, process_count=processes, workers=2).iterate(stop=12))
        for i in range(processes)
    ]
    for step, batch in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[step].images for part in parts]), batch.images)
        np.testing.assert_array_equal(np.concatenate([part[step].index for part in parts]), batch.index)


def test_fewer_shards_than_processes_and_lanes(serve):
    spec = serve([5, 3])
    whole = list(train(stream_of(spec), batch_size=8, repeats=2).iterate(stop=9))
    parts = [
        list(train(stream_of(spec), batch_size=8, repeats=2, process_index=i, process_count=4).iterate(stop=9))
        for i in range(4)
    ]
    for step, batch in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[step].images for part in parts]), batch.images)
        assert (batch.index[::2] == batch.index[1::2]).all()
    counts = Counter(np.concatenate([batch.index[::2] for batch in whole]).tolist())
    assert len(counts) == 8 and min(counts.values()) >= 3


def test_a_run_goes_on_where_it_stopped_and_reads_only_what_it_needs(serve, server):
    spec = serve(SIZES)
    whole = list(train(stream_of(spec)).iterate(stop=30))
    halves = [train(stream_of(spec), workers=1, process_index=i, process_count=2) for i in (0, 1)]
    for half in halves:
        running = half.iterate()
        for _ in range(17):
            next(running)
        running.close()
    position = merge_positions([half.position() for half in halves])
    server.seen.clear()
    resumed = train(stream_of(spec), workers=2)
    for a, b in zip(whole[17:], resumed.iterate(17, 30, position), strict=True):
        assert_same(a, b)
    end = resumed.position()["at"]
    needed = sum(end[lane][0] - shard + 1 for lane, (shard, _) in position["at"].items())
    assert needed <= len([seen for seen in server.seen if seen[0] != "/index.json"]) <= needed + 6 * 2  # and the next
    with pytest.raises(InputError, match="position"):
        next(train(stream_of(spec)).iterate(17))
    with pytest.raises(InputError, match="of another run"):
        next(train(stream_of(spec), batch_size=12).iterate(17, None, position))


def test_all_kinds_of_shards_mix(serve, server, numbered, tmp_path, encode):
    serve([6, 6])
    fsspec.filesystem("memory").pipe("/b/m.tar", numbered(tmp_path / "m.tar", 6).read_bytes())
    (tmp_path / "z.tar.gz").write_bytes(gzip.compress((tmp_path / "m.tar").read_bytes()))
    (tmp_path / "images").mkdir()
    for i in range(6):
        (tmp_path / f"images/{i}.png").write_bytes(encode(np.full((6, 6), i, np.uint8)))
    lines = ["# all", f"{server.url}/s-{{0,1}}.tar", "memory://b/*.tar", f"pipe:cat {tmp_path}/{{m..m}}.tar",
             f"pipe:cat {tmp_path}/m.tar", f"{tmp_path}/z.tar.gz", f"{tmp_path}/images"]  # fmt: skip
    (tmp_path / "list.txt").write_text("\n".join([*lines[:3], "", *lines[4:]]))
    for spec in (f"@{tmp_path}/list.txt", [*lines[1:3], *lines[4:]]):
        loader = train(stream_of(spec), batch_size=6)
        index = np.concatenate([batch.index for batch in loader.iterate(stop=6)])
        assert sorted(index.tolist()) == [s << 32 | i for s in range(6) for i in range(6)]
        whole = open_source(spec)
        assert len(whole) == 36
    server.files["/list.txt"] = f"{server.url}/s-0.tar\n".encode()
    assert len(open_source(f"@{server.url}/list.txt")) == 6
    fsspec.filesystem("memory").rm("/b", recursive=True)


def test_the_size_comes_from_the_index_or_from_reading(serve, server):
    spec = serve([3, 5])
    loader = train(stream_of(spec), batch_size=4)
    assert loader.source.total is None
    for _ in loader.iterate(stop=4):
        pass
    assert loader.source.total == 8
    entries = [{"name": f"s-{i}.tar", "samples": n} for i, n in enumerate([3, 5, 7])]
    server.files["/index.json"] = json.dumps({"shards": entries, "classes": ["a", "b"]}).encode()
    stream = stream_of(spec)
    assert (stream.total, stream.classes, train(stream, batch_size=4).steps) == (8, ("a", "b"), 2)
    server.files["/index.json"] = json.dumps({"shards": entries[:1], "classes": []}).encode()
    assert stream_of(spec).total is None


def test_a_cache_serves_later_epochs_and_runs(serve, server, tmp_path):
    spec = serve([6, 6, 6])
    kept = stream_of(spec, cache_dir=str(tmp_path / "cache"))
    batches = list(train(kept).iterate(stop=9))
    wait_for(lambda: not fetch_threads())
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3
    server.seen.clear()
    again = list(train(stream_of(spec, cache_dir=str(tmp_path / "cache"))).iterate(stop=9))
    for a, b in zip(batches, again, strict=True):
        assert_same(a, b)
    assert {seen[0] for seen in server.seen} <= {"/index.json"}
    assert not list((tmp_path / "cache").glob("*.part"))
    assert len(open_source(spec, cache_dir=str(tmp_path / "cache"))) == 18
    assert {seen[0] for seen in server.seen} <= {"/index.json"}


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_a_cache_nothing_stays(serve, tmp_path):
    stream = stream_of(serve([6] * 12))
    most = 0
    for _ in train(stream, workers=1).iterate(stop=24):
        most = max(most, len(list(stream.folder.iterdir())))
    assert 6 <= most <= 6 * 2 + 6
    wait_for(lambda: not list(stream.folder.iterdir()))
    shutil.rmtree(stream.folder)


def test_passing_faults_change_nothing(serve, server):
    spec = serve(SIZES)
    whole = list(train(stream_of(spec)).iterate(stop=10))
    server.plans = {f"/s-{i}.tar": [503, "reset", "stall"] for i in range(7)}
    loader = train(stream_of(spec, replace(PATIENT, stall=0.5)))
    for a, b in zip(whole, loader.iterate(stop=10), strict=True):
        assert_same(a, b)
    assert not loader.lost and not loader.bad


@pytest.mark.parametrize("fault", ["404", "cut", "page", "empty"])
def test_a_lost_shard_is_an_error_unless_allowed(serve, server, fault, caplog):
    spec = serve([6, 6, 6, 6])
    whole = server.files["/s-2.tar"]
    del server.files["/s-2.tar"]
    if fault != "404":
        server.files["/s-2.tar"] = {"cut": whole[:5200], "page": b"<html>" + whole, "empty": b""}[fault]
    words = {"404": "HTTP 404", "cut": "it may have been cut", "page": "web page", "empty": "not a tar"}[fault]
    with pytest.raises(InputError, match=rf"1 shard cannot be read.*--max-lost-shards 0.*s-2\.tar: .*{words}"):
        list(train(stream_of(spec, QUICK)).iterate(stop=6))
    loader = train(stream_of(spec, QUICK), faults=Faults(max_lost_shards=1))
    caplog.clear()
    with caplog.at_level(logging.WARNING, "maejax.data"):
        index = np.concatenate([batch.index for batch in loader.iterate(stop=12)])
    assert set((index >> 32).tolist()) - {2} == {0, 1, 3}
    assert [name.rpartition("/")[2] for name in loader.lost] == ["s-2.tar"]
    assert len(caplog.records) == 1
    with pytest.raises(InputError, match="--on-bad-data stop"):
        list(train(stream_of(spec, QUICK), faults=Faults("stop", max_lost_shards=1)).iterate(stop=6))
    with pytest.raises(InputError, match="1 shard cannot be read"):  # also where all is fetched at once
        make_loader(open_source(spec, patience=QUICK), build_eval((6, 6), 1.0), batch_size=4, channels=1, size=(6, 6))


def test_dead_shards_end_no_run_while_others_give_images(serve, server):
    spec = serve([6, 6, 6, 6])
    del server.files["/s-1.tar"], server.files["/s-3.tar"]
    for seed in range(4):
        server.seen.clear()
        loader = train(stream_of(spec, QUICK), seed=seed, batch_size=4, faults=Faults(max_lost_shards=2))
        index = np.concatenate([batch.index for batch in loader.iterate(stop=200)])
        assert sorted(set(index.tolist())) == [s << 32 | i for s in (0, 2) for i in range(6)]
        asked = Counter(path for path, *_ in server.seen)
        assert 2 <= asked["/s-1.tar"] <= 12 < asked["/s-0.tar"], "once in 1, 2, 4, 8, ... epochs"


def test_shards_that_differ_in_their_secrets_alone_are_counted_apart(server):
    spec = [f"{server.url}/gone.tar?token=secret-{i}" for i in range(2)]
    stream = stream_of(spec, QUICK)
    assert len({shard.name for shard in stream.shards}) == len({shard.stem for shard in stream.shards}) == 2
    assert "secret" not in stream.shards[1].name
    with pytest.raises(InputError, match="2 shards cannot be read"):
        list(train(stream, batch_size=2, faults=Faults(max_lost_shards=1)).iterate(stop=1))


def test_a_damaged_shard_that_was_fetched_is_named_by_its_address(serve, server):
    spec = serve([6, 6])
    server.files["/s-1.tar"] = server.files["/s-1.tar"][:5200]
    source = open_source(spec)
    assert list(source.lost) == [f"{server.url}/s-1.tar"] and source.problems[0].startswith(f"{server.url}/s-1.tar: ")


def test_nothing_usable_is_said_at_once(serve, server, tmp_path):
    spec = serve([6, 6])
    for path in list(server.files):
        server.files[path] = b"<html>Sign in</html>"
    with pytest.raises(InputError, match=r"none of 2 images and shards.*s-0\.tar: is a web page"):
        check_readable(stream_of(spec, QUICK), 1)
    with pytest.raises(InputError, match=r"no image found.*is a web page"):
        open_source(spec)
    assert max(Counter(path for path, *_ in server.seen).values()) == 2, "by each of the two, and no second time"
    secret = "pipe:curl -s -f -H 'Authorization:Bearer hf_abcdefgh' " + server.url + "/no-{0..3}.tar"
    with pytest.raises(InputError) as caught:
        check_readable(stream_of(secret, QUICK), 1)
    assert "hf_abcdefgh" not in str(caught.value) and "exit code 22" in str(caught.value)
    with pytest.raises(InputError, match="no image in any of 2 shards"):
        list(train(stream_of(serve([0, 0]))).iterate(stop=1))


def test_an_evaluation_is_over_all_images_in_order(serve):
    source = open_source(serve(SIZES))
    loader = make_loader(source, build_eval((6, 6), 1.0), batch_size=10, channels=1, size=(6, 6), shuffle=False)
    values = np.concatenate([batch.images[batch.valid, 0, 0, 0] for batch in loader.iterate()])
    assert values.tolist() == [i for size in SIZES for i in range(size)]
    with pytest.raises(InputError, match="cannot be evaluated"):
        train(stream_of(serve(SIZES)), shuffle=False)


def test_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, held, new = (tmp_path / f"maejax-shards-{name}" for name in ("left", "held", "new"))
    for folder in (left, held, new):
        folder.mkdir()
        (folder / "s.part").write_bytes(b"x")
    for folder in (left, held):
        os.utime(folder, (1, 1))
    handle = os.open(held, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    own = stream._open_folder("")
    os.close(handle)
    assert sorted(tmp_path.iterdir()) == sorted([held, new, own])
