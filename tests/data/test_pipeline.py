import itertools
import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from maejax.data.augment import Transform, build_eval, build_train
from maejax.data.faults import Faults
from maejax.data.order import epoch_order
from maejax.data.pipeline import check_readable
from maejax.data.sources import open_source
from maejax.errors import InputError
from tests.data.conftest import make_loader


@pytest.fixture
def source(tmp_path, numbered):
    return open_source(str(numbered(tmp_path / "s.tar", 25)))


def train(source, **arguments):
    transform = build_train((6, 6), "rrc", (0.2, 1.0), 0.0)
    return make_loader(source, transform, **{"batch_size": 10, "channels": 1, "size": (6, 6), "seed": 3} | arguments)


def evaluation(source, **arguments):
    arguments = {"batch_size": 10, "channels": 1, "size": (6, 6), "shuffle": False} | arguments
    return make_loader(source, build_eval((6, 6), 1.0), **arguments)


def assert_same(a, b):
    for name in ("images", "labels", "valid", "index"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_the_order_is_a_permutation_fixed_for_good():
    assert epoch_order(8, 0, 0).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(50)) for order in orders)


def test_threads_change_nothing_and_a_start_in_the_middle_continues(source):
    alone = list(train(source).iterate(stop=7))
    threaded = list(train(source, workers=3).iterate(stop=7))
    resumed = train(source, workers=2).iterate(start=4)
    for a, b in zip(alone, threaded, strict=True):
        assert_same(a, b)
    for a in alone[4:]:
        assert_same(a, next(resumed))
    assert_same(alone[2], train(source).batch(2))
    resumed.close()
    assert not np.array_equal(alone[0].images, train(source, seed=4).batch(0).images)


def test_every_image_once_per_epoch_over_two_processes(source):
    halves = [train(source, process_index=i, process_count=2) for i in (0, 1)]
    whole = train(source)
    seen = []
    for step in range(5):  # two epochs of 25 in five batches of 10
        parts = [half.batch(step) for half in halves]
        full = whole.batch(step)
        np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), full.images)
        seen += np.concatenate([part.index for part in parts]).tolist()
        assert full.valid.all()
        assert (full.labels == full.index % 3).all()
    assert sorted(seen[:25]) == sorted(seen[25:]) == list(range(25))
    assert seen[:25] != seen[25:]


def test_pixels_belong_to_their_index(source):
    for batch in itertools.chain(train(source, workers=2).iterate(stop=3), evaluation(source).iterate()):
        assert (batch.images[batch.valid] == batch.index[batch.valid, None, None, None]).all()


def test_an_image_is_augmented_anew_in_every_epoch(tmp_path, write_tar, encode, photo):
    source = open_source(str(write_tar(tmp_path / "p.tar", {"0.png": encode(photo)})))
    batches = train(source, batch_size=1, channels=3).iterate(stop=5)
    assert len({batch.images.tobytes() for batch in batches}) == 5


def test_repeats_enter_one_batch_augmented_differently(tmp_path, write_tar, encode, photo):
    path = write_tar(tmp_path / "p.tar", {f"{i}.png": encode(photo[i:]) for i in range(4)})
    batch = train(open_source(str(path)), repeats=3, batch_size=12, channels=3).batch(0)
    assert sorted(batch.index.tolist()) == sorted([0, 1, 2, 3] * 3)
    assert (batch.index.reshape(4, 3) == batch.index[::3, None]).all()
    assert len({image.tobytes() for image in batch.images}) == 12
    with pytest.raises(InputError, match="batch size of 10 does not divide by augment_repeats, 3; take 9"):
        train(open_source(str(path)), repeats=3)


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_is_one_padded_pass(source, processes):
    loaders = [evaluation(source, workers=1, process_index=i, process_count=processes) for i in range(processes)]
    passes = [list(loader.iterate()) for loader in loaders]
    assert [len(batches) for batches in passes] == [loader.steps for loader in loaders] == [3] * processes
    index = np.concatenate([np.concatenate([b.index for b in step]) for step in zip(*passes, strict=True)])
    valid = np.concatenate([np.concatenate([b.valid for b in step]) for step in zip(*passes, strict=True)])
    assert index.tolist() == [*range(25), -1, -1, -1, -1, -1]
    assert valid.tolist() == [True] * 25 + [False] * 5
    assert passes[-1][-1].labels[-1] == -1
    assert not passes[-1][-1].images[-1].any()


def test_an_unreadable_image_is_counted_and_named_once(tmp_path, write_tar, encode, caplog):
    images = {f"{i}.png": encode(np.full((6, 6), 9, np.uint8)) for i in range(5)} | {
        "5.png": b"",
        "6.jpg": b"\xff\xd8\xff",
    }
    source = open_source(str(write_tar(tmp_path / "s.tar", images)))
    loader = train(source, batch_size=7, workers=2)
    with caplog.at_level(logging.WARNING, "maejax.data"):
        batches = list(loader.iterate(stop=3))
    for batch in batches:
        assert (batch.valid == (batch.index < 5)).all()
        assert (batch.images.reshape(7, -1).max(axis=1) == np.where(batch.valid, 9, 0)).all()
    assert loader.bad.keys() == {"s.tar:5.png", "s.tar:6.jpg"}
    assert "empty" in loader.bad["s.tar:5.png"]
    assert len(caplog.records) == 2
    assert "s.tar:5.png" in caplog.text


def test_bad_images_beyond_the_share_are_an_error(tmp_path, write_tar, encode):
    good = {f"{i:03d}.png": encode(np.full((6, 6), 9, np.uint8)) for i in range(80)}
    bad = {f"b{i:02d}.png": b"" for i in range(12)}
    source = open_source(str(write_tar(tmp_path / "s.tar", good | bad)))

    def judge(**allowed):
        list(train(source, batch_size=23, workers=2, faults=Faults(**allowed)).iterate(stop=8))

    with pytest.raises(
        InputError, match=r"11 of \d+ images are unreadable, more than --max-bad-images 0.001.*b\d\d.png: "
    ):
        judge()
    judge(max_bad_images=0.5)
    with pytest.raises(InputError, match=r"1 of \d+ images are unreadable, more than --max-bad-images 0 "):
        judge(max_bad_images=0)
    with pytest.raises(InputError, match=r"unreadable image .*b.*png: .*--on-bad-data skip"):
        judge(on_bad_data="stop", max_bad_images=1)
    kept = open_source(str(write_tar(tmp_path / "t.tar", good | dict(list(bad.items())[:10]))))
    loader = train(kept, batch_size=30)
    assert sum(batch.valid.sum() for batch in loader.iterate(stop=3)) == 80
    assert len(loader.bad) == 10  # so many are always forgiven


def test_shards_that_are_cut_or_vanish_are_lost(tmp_path, numbered):
    paths = [numbered(tmp_path / f"s-{i}.tar", 10) for i in range(3)]
    paths[0].write_bytes(paths[0].read_bytes()[:5200])
    with pytest.raises(InputError, match=r"1 shard cannot be read to the end.*s-0\.tar: .*cut"):
        train(open_source([str(path) for path in paths]))
    loader = train(open_source([str(path) for path in paths]), faults=Faults(max_lost_shards=2), workers=2)
    paths[1].unlink()
    valid = np.concatenate([batch.valid for batch in loader.iterate(stop=4)])
    assert not valid.all() and valid.any()
    assert {Path(name).name for name in loader.lost} == {"s-0.tar", "s-1.tar"}
    with pytest.raises(
        InputError, match=r"3 shards cannot be read.*--max-lost-shards 2 allows.*s-2\.tar: No such file"
    ):
        paths[2].unlink()
        list(loader.iterate(stop=4))


def test_an_image_file_that_vanishes_is_a_bad_image(tmp_path, encode):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(encode(np.full((6, 6), i, np.uint8)))
    source = open_source(str(tmp_path))
    (tmp_path / "3.png").unlink()
    loader = evaluation(source, batch_size=6)
    assert [batch.valid.tolist() for batch in loader.iterate()] == [[True] * 3 + [False] + [True] * 2]
    assert list(loader.bad.values()) == ["No such file or directory"]


def test_all_images_unreadable_is_an_error(tmp_path, write_tar, source):
    broken = open_source(str(write_tar(tmp_path / "b.tar", {f"{i}.jpg": b"junk" for i in range(9)})))
    with pytest.raises(InputError, match=r"none of 5 images tried can be read; the first, b.tar:0.jpg: .*junk"):
        check_readable(broken, 1, at_most=5)
    check_readable(source, 1)


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("maejax-data")]


def test_errors_reach_the_caller_and_threads_end(source, monkeypatch):
    monkeypatch.setattr("maejax.data.pipeline.loader_processes", lambda *_: 0)

    def explode(image, rng):
        raise OSError("the disk is gone")

    batches = make_loader(source, Transform(explode), batch_size=10, channels=1, size=(6, 6), workers=2).iterate()
    with pytest.raises(OSError, match="disk is gone"):
        next(batches)
    assert data_threads() == []
    endless = train(source, workers=2).iterate()
    next(endless)
    assert len(data_threads()) == 2
    del endless
    assert data_threads() == []


def test_batches_do_not_share_memory(source):
    first, second = itertools.islice(train(source, workers=2).iterate(), 2)
    assert not np.shares_memory(first.images, second.images)


def test_the_processes_must_share_the_batch_evenly(source):
    with pytest.raises(InputError, match="the number of processes, 3; take 9"):
        train(source, process_count=3)
