"""One run on any topology: the same samples and masks at every step, the same numbers, on any number of hosts."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from maejax.training.checkpoint import saved_steps

from ..bounds import assert_close, rounding
from . import harness

SGD = ["--optimizer", "sgd", "--learning-rate", 0.5]  # Adam would blow up the rounding of gradients near zero
EPOCH = 3  # batches of 8 of 24 images


def run_on(folder, images, processes, devices, *flags, stop_at=-1, notes="rows"):
    """Run on a topology to the end or until stopped before a step."""
    options = {"NOTES": notes, "STOP_AT": stop_at}
    if processes == 1:
        started = [harness.start(folder, images, *flags, devices=devices, **options)]
    else:
        started = harness.start_several(folder, images, *flags, count=processes, devices=devices, **options)
    ended = [harness.finish(process) for process in started]
    assert {code for code, _ in ended} == {0 if stop_at < 0 else 75}, ended
    return ended[0][1]


def noted(folder, processes, notes="rows"):
    """Read what each step was given: {step: (numbers of the samples, their masks)}, whole batches in order."""
    rows = [map(json.loads, (folder / f"{notes}-{i}.jsonl").read_text().splitlines()) for i in range(processes)]
    return {
        parts[0]["step"]: tuple([row for part in parts for row in part[name]] for name in ("index", "order"))
        for parts in zip(*rows, strict=True)
    }


def assert_near(ours, theirs, rtol, *names):
    for name in names:
        a, b = harness.losses(ours, name), harness.losses(theirs, name)
        assert a.keys() == b.keys() and a
        print(name, "differs by", max(abs(a[step] / b[step] - 1) for step in a))
        assert_close(list(a.values()), list(b.values()), rtol, name=name)


@pytest.mark.slow
def test_every_topology_goes_on_with_what_another_left(tmp_path, images):
    """1 x 4, 2 x 2 and 4 x 1 processes x devices, replicated or split, one after the other in one run."""
    flags = ["--training-steps", 24, "--save-interval", 100, *SGD]
    alone, chain = tmp_path / "alone", tmp_path / "chain"
    for folder in (alone, chain):
        folder.mkdir()
    run_on(alone, images, 1, 4, *flags)
    whole, seen = noted(alone, 1), {}
    relay = [(1, 4, "fsdp"), (2, 2, "replicated"), (4, 1, "fsdp"), (2, 2, "fsdp"), (4, 1, "replicated"),
             (1, 4, "replicated")]  # fmt: skip
    for leg, (processes, devices, sharding) in enumerate(relay):
        last = leg == len(relay) - 1
        said = run_on(
            chain, images, processes, devices, *flags, "--sharding", sharding,
            stop_at=-1 if last else 4 * leg + 2, notes=f"leg{leg}",
        )  # fmt: skip
        assert f"{sharding}" in said and (leg == 0 or f"continuing runs/pretrain from step {max(seen) + 1}" in said)
        given = noted(chain, processes, f"leg{leg}")
        saved = max(harness.losses(chain / "runs/pretrain"))
        seen |= {step: rows for step, rows in given.items() if step < saved}
    assert seen == whole and list(seen) == list(range(24))
    for epoch in range(24 // EPOCH):
        steps = range(epoch * EPOCH, (epoch + 1) * EPOCH)
        assert sorted(number for step in steps for number in seen[step][0]) == list(range(24))
    assert_near(chain / "runs/pretrain", alone / "runs/pretrain", 1e-5, "train/loss", "train/grad_norm")


def write_shards(folder, images, sizes):
    """Write tar shards of these numbers of images; return a spec that streams them."""
    with np.load(images) as file:
        pictures = iter(file["images"])
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"s-{shard}.tar", "w") as tar:
            for i in range(size):
                buffer = io.BytesIO()
                Image.fromarray(next(pictures)).save(buffer, "PNG")
                member = tarfile.TarInfo(f"{i}.png")
                member.size = buffer.tell()
                tar.addfile(member, io.BytesIO(buffer.getvalue()))
    return f"pipe:cat {folder}/s-{{0..{len(sizes) - 1}}}.tar"


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(9, 4, 7), (2, 7, 3, 1, 5, 4)], ids=["fewer shards than hosts", "unequal shares"])
def test_four_processes_are_one_run_on_uneven_shards(tmp_path, images, sizes):
    """Streams of unequal shards, and a last validation batch that leaves two processes without an image."""
    shards = write_shards(tmp_path, images, sizes)
    flags = ["--valid-dataset-shards", shards, "--valid-batch-size", 16, "--eval-interval", 4, "--training-steps", 12,
             "--train-loader-workers", 1, "--watch", shards, "--watch-interval", 6, *SGD]  # fmt: skip
    folders = {processes: tmp_path / str(processes) for processes in (1, 4)}
    for processes, folder in folders.items():
        folder.mkdir()
        run_on(folder, shards, processes, 4 // processes, *flags)
    assert noted(folders[4], 4) == noted(folders[1], 1)
    runs = [folders[processes] / "runs/pretrain" for processes in (4, 1)]
    # At each of 12 steps, the sums over four devices are taken in another order.
    names = ("train/loss", "train/grad_norm", "train/param_norm", "val/loss", "val/loss/best", "watch/rank")
    assert_near(*runs, rounding(4 * 12), *names)
    assert_same_files(*runs)


def assert_same_files(ours, theirs):
    """Compare what two runs left: names, configuration, what is logged, pictures up to rounding, and all arrays."""
    names = [
        {
            str(path.relative_to(run))
            for path in run.rglob("*")
            if "checkpoints/" not in str(path) and "best/" not in str(path)
        }
        for run in (ours, theirs)
    ]
    assert names[0] == names[1]
    configs = [json.loads((run / "config.json").read_text()) for run in (ours, theirs)]
    assert configs[0] == configs[1]

    def read(run):
        return (run / "metrics.jsonl").read_text().splitlines()

    logged = [
        [sorted(json.loads(line).keys() - {"hosts/slowest", "hosts/lag"}) for line in read(run)]
        for run in (ours, theirs)
    ]
    assert logged[0] == logged[1]
    for name in sorted(name for name in names[0] if name.endswith(".png")):
        pixels = [np.asarray(Image.open(run / name), np.int16) for run in (ours, theirs)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1, name
    for part in ("checkpoints", "best"):
        assert saved_steps(ours / part) == saved_steps(theirs / part)
        arrays = [harness.arrays_of(run / part) for run in (ours, theirs)]
        assert arrays[0].keys() == arrays[1].keys()
        assert_close(*arrays, 1e-5)
