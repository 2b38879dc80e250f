"""Probing and fine-tuning from the command line: what they start from, what they learn, going on, exact accuracies."""

import json
import re
import tarfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from maejax.data.pipeline import Batch
from maejax.data.sources import open_source
from maejax.errors import InputError
from maejax.tasks.accuracy import score_batch
from maejax.tasks.transfer import check_labels, count_classes, match_classes
from maejax.training.log import read_metrics
from maejax.weights import files

from ..bounds import assert_close
from ..training import harness

CLASSIFY = """--mixup 0 --cutmix 0 --auto-augment none --random-erasing 0 --learning-rate 0.05
--test-crop-ratio 1""".split()


@pytest.fixture
def tune(train, images):
    """Fine-tune, or probe, on the tiny images."""

    def run(mode, *args):
        return train("--mode", mode, "--valid-dataset-shards", images, *CLASSIFY, *args)

    return run


def metrics(run, name):
    return dict(read_metrics(Path(run) / "metrics.jsonl", name))


def test_fine_tuning_starts_from_the_encoder_and_goes_on_bit_for_bit(tune, trained, maejax, images):
    flags = ["--pretrained-ckpt", trained, "--ema", 0.5, "--eval-interval", 2, "--label-smoothing", 0.1]
    code, printed = tune("finetune", "--name", "whole", *flags)
    assert code == 0, printed
    assert "its decoder is left out" in printed and "head of 3 classes on the mean of the patches" in printed
    assert tune("finetune", "--name", "parts", *flags)[0] == 0
    for step in (4, 6):
        Path(f"runs/parts/checkpoints/{step}").rename(f"{step}.gone")
    assert "continuing runs/parts from step 2 of 6" in tune("finetune", "--name", "parts", *flags)[1]
    assert metrics("runs/parts", "train/loss") == metrics("runs/whole", "train/loss")
    whole, parts = (files.read(f"runs/{name}").arrays for name in ("whole", "parts"))
    assert all((whole[name] == parts[name]).all() for name in whole)

    # What is judged, read and kept as best is the average of the weights; the weights themselves on request.
    newest, best = files.read("runs/whole").arrays, files.read("runs/whole/best").arrays
    raw = files.read("runs/whole", raw=True).arrays
    assert (newest["head.kernel"] != raw["head.kernel"]).any() and raw.keys() == newest.keys() == best.keys()
    best = max(metrics("runs/whole", "val/acc1").items(), key=lambda item: (item[1], item[0]))
    code, printed = maejax(
        "train", "--mode", "finetune", "--eval-only", "--pretrained-ckpt", "runs/whole/best",
        "--valid-dataset-shards", images, "--valid-batch-size", 16, "--name", "judged", "--test-crop-ratio", 1,
    )  # fmt: skip
    assert code == 0, printed
    judged = json.loads(Path("runs/judged/evaluation.json").read_text())
    assert judged["val/acc1"] == pytest.approx(best[1]) and judged["val/acc5"] == 100
    assert_close(judged["val/loss"], metrics("runs/whole", "val/loss")[best[0]])
    assert re.search(r"top-1 +\d+\.\d+ %, top-5 100.000 %, loss \d\.\d+ on 24 images", printed), printed
    # The same numbers from a file for another code; size and heads are read from it.
    assert maejax("inspect", "runs/whole/best")[0] == 0
    assert maejax("convert", "runs/whole/best", "timm.safetensors", "--to", "timm")[0] == 0
    code, printed = maejax(
        "train", "--mode", "finetune", "--eval-only", "--pretrained-ckpt", "timm.safetensors",
        "--valid-dataset-shards", images, "--valid-batch-size", 4, "--name", "timm", "--test-crop-ratio", 1,
    )  # fmt: skip
    assert code == 0, printed
    foreign = json.loads(Path("runs/timm/evaluation.json").read_text())
    assert_close(foreign["val/loss"], judged["val/loss"])
    assert foreign["images"] == 24


def test_a_probe_trains_its_head_alone_and_is_loaded_with_its_statistics(tune, trained, images, idle):
    code, printed = tune("linear", "--name", "probe", "--pretrained-ckpt", trained, "--learning-rate", 5)
    assert code == 0, printed
    before, after = files.read(trained).arrays, files.read("runs/probe").arrays
    assert all((after[name] == before[name]).all() for name in after if name.startswith("encoder."))
    assert after["head_norm.mean"].any() and (after["head_norm.var"] != 1).any() and after["head.kernel"].any()
    with np.load(images) as file:
        pictures, labels = file["images"], file["labels"]
    model = files.load("runs/probe")
    hits = np.asarray(model(model.normalize(jnp.asarray(pictures)))).argmax(1) == labels
    assert metrics("runs/probe", "val/acc1")[6] == pytest.approx(100 * hits.mean())
    # Its head, on the cls token, is nothing for another pooling.
    on = ["--pretrained-ckpt", "runs/probe", "--training-steps", 1]
    with idle():
        assert "its head is left out: it is for --pooling cls" in tune("finetune", "--name", "gap", *on)[1]
        # Fine-tuned, the probe begins with its BatchNorm in its head: the same logits.
        code, printed = tune("finetune", "--name", "on", "--pooling", "cls", *on)
    assert code == 0 and "its head of 3 classes is taken over" in printed, printed
    assert_close(metrics("runs/on", "val/loss")[1], metrics("runs/probe", "val/loss")[6])


def test_heads_are_taken_over_mapped_or_left_out(tune, trained, idle):
    # Half a block is the MLP of the last one: nothing else of the encoder moves.
    assert tune("finetune", "--name", "first", "--pretrained-ckpt", trained, "--finetune-blocks", 0.5)[0] == 0
    before, after = files.read(trained).arrays, files.read("runs/first").arrays
    moved = {name for name in before.keys() & after.keys() if (before[name] != after[name]).any()}
    assert moved == {f"encoder.transformer.blocks.{name}" for name in (
        "norm2.scale", "norm2.bias", "fc1.kernel", "fc1.bias", "fc2.kernel", "fc2.bias"
    )}  # fmt: skip
    assert all((before[name][0] == after[name][0]).all() for name in moved)

    head = after["head.kernel"]
    still = ["--pretrained-ckpt", "runs/first", "--training-steps", 1]
    Path("map.json").write_text("[2, -1, 0, 1]")
    mapped = ["--labels", 4, "--label-mapping", "map.json"]
    larger = ["--name", "larger", "--image-size", 32, "--pooling", "cls", "--training-steps", 1]
    with idle():
        assert "its head of 3 classes is taken over" in tune("finetune", "--name", "same", *still)[1]
        assert "its head of 3 classes is left out" in tune("finetune", "--name", "more", "--labels", 4, *still)[1]
        assert "3 of 4 classes start from its head" in tune("finetune", "--name", "mapped", *mapped, *still)[1]
        # Another image size, and the cls token, whose norm only the autoencoder has.
        assert tune("finetune", "--pretrained-ckpt", trained, *larger)[0] == 0
    np.testing.assert_array_equal(files.read("runs/same").arrays["head.kernel"], head)
    found = files.read("runs/mapped").arrays["head.kernel"]
    np.testing.assert_array_equal(found, np.stack([head[:, 2], 0 * head[:, 0], head[:, 0], head[:, 1]], 1))
    code, printed = tune("finetune", "--name", "cls", "--pooling", "cls", *still)
    assert code == 2 and "has no final norm: give --pooling gap" in printed


def test_probing_on_cached_features_gives_what_live_probing_gives(tune, trained):
    flags = ["--pretrained-ckpt", trained, "--learning-rate", 5]
    assert tune("linear", "--name", "live", *flags)[0] == 0
    cached = ["--cache-features", 2, "--sweep-rates", 0.05, 5, 50]
    code, printed = tune("linear", "--name", "cached", *cached, *flags)
    assert code == 0, printed
    sweep = json.loads(Path("runs/cached/sweep.json").read_text())
    assert [row["learning_rate"] for row in sweep["rates"]] == [0.05, 5, 50]
    assert sweep["speed"]["heads"]["images_per_second"] > 0
    assert_close(sweep["rates"][1]["val/loss"], metrics("runs/live", "val/loss")[6])
    assert "log10 of the base learning rate" in Path("runs/cached/report.html").read_text()
    top = max(row["val/acc1"] for row in sweep["rates"])
    assert metrics("runs/cached", "val/acc1") == metrics("runs/cached", "val/acc1/best") == {6: top}
    assert files.read("runs/cached/best").arrays.keys() == files.read("runs/cached").arrays.keys()
    live, found = (files.read(f"runs/{name}").arrays for name in ("live", "cached"))
    for name in ("head_norm.mean", "head_norm.var"):  # the same for every rate
        assert live[name].any()
        assert_close(found[name], live[name])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--labels", 2], "--labels 2: the training images have 3 classes"),
        (["--finetune-blocks", 3], "--finetune-blocks 3: give 0"),
        (["--norm-pix-loss"], "--mode finetune masks and reconstructs nothing"),
        (["--label-mapping", "m.json"], "--label-mapping re-uses the head of a --pretrained-ckpt"),
        (["--dim", 32, "--pretrained-ckpt", "{encoder}"], "of another geometry than the flags say: give --dim 16"),
        (["--heads", 4, "--pretrained-ckpt", "{encoder}"], "than the flags say: give --heads 2"),
        (["--mode", "linear", "--droppath", 0.1], "a linear probe trains its head alone"),
        (["--eval-only", "--pretrained-ckpt", "{encoder}"], "has no head; train one"),
    ],
)
def test_what_does_not_fit_is_said(tune, trained, flags, sentence):
    flags = [trained if flag == "{encoder}" else flag for flag in flags]
    code, printed = tune("finetune", *flags)
    assert code == 2, printed
    assert re.search(sentence, printed.replace("\n", " ")), printed


def test_a_stream_without_labels_trains_nothing(tune):
    Path("name.cls").write_text("shoe")
    with tarfile.open("s.tar", "w") as folders, tarfile.open("n.tar", "w") as names:
        for i in range(16):  # class folders, whose names no process knows before all of them came
            Image.new("RGB", (16, 16), (i, i, i)).save(f"{i}.png")
            folders.add(f"{i}.png", f"{'shoe' if i % 2 else 'hat'}/{i}.png")
            names.add(f"{i}.png")
            names.add("name.cls", f"{i}.cls")
    for tar, words in (("s.tar", "no image of the first batch has a label"), ("n.tar", "has the class 'shoe'")):
        code, printed = tune("finetune", "--train-dataset-shards", f"pipe:cat {tar}", "--labels", 3, "--name", "none")
        assert code == 2 and words in printed.replace("\n", " ") and "`maejax pack`" in printed, printed
        assert "step 1/" not in printed


def test_a_loss_that_is_not_finite_names_the_layer_and_the_images(tune):
    code, printed = tune("finetune", "--optimizer", "sgd", "--learning-rate", 1e30, "--warmup-steps", 0)
    assert code == 1, printed
    said = r"the loss is (nan|inf) at step \d, .*; first not finite: .*; on images\.npz:\d.*; the batch is in .*-0\.npz"
    assert re.search(said, printed), printed
    with np.load(next(Path("runs/finetune/bad").glob("*-0.npz"))) as file:
        assert file["images"].shape == (8, 16, 16, 3) and file["labels"].shape == (8,)


def test_accuracies_are_exact_and_padding_does_not_count():
    class Constant:
        def normalize(self, images):
            return images

        def __call__(self, x):
            return x

    nan = float("nan")
    logits = jnp.array([[0.0, 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0], [5, 4, 3, 2, 1, 0], [nan] * 6, [9, 0, 0, 0, 0, 0]])
    valid = jnp.array([True, True, True, True, False])
    batch = Batch(logits, jnp.array([1, 4, 5, 0, 0]), valid, None)
    sums = score_batch(Constant(), batch, "ce")
    # All equal: class 1 comes second. Then the fifth, the sixth of six, and one that is no number.
    assert [float(sums[name]) for name in ("top1", "top5", "count")] == [0, 2, 4]


def source(name, labels, classes=None):
    more = {} if classes is None else {"classes": np.array(classes)}
    np.savez(name, images=np.zeros((len(labels), 4, 4, 3), np.uint8), labels=labels, **more)
    return open_source(name)


def test_classes_come_from_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named, numbers = source("a.npz", [0, 2, 1], ["a", "b", "c"]), source("b.npz", [0, 7, -1])
    assert count_classes(0, named, "") == count_classes(3, named, "") == 3
    assert count_classes(-1, numbers, "") == 8 and count_classes(1000, numbers, "") == 1000
    valid = source("c.npz", [0, 1, 0], ["c", "a"])
    match_classes(valid, named.classes, 3, "")
    assert valid.labels.tolist() == [2, 0, 2]
    for held_out, classes, sentence in (
        (source("e.npz", [0, 1], ["a", "c"]), (), "has 2 classes by their names, training has 3 by their numbers"),
        (source("f.npz", [0, 1]), named.classes, "has 2 classes by their numbers, training has 3 by their names"),
    ):
        with pytest.raises(InputError, match=sentence):
            match_classes(held_out, classes, 3, "")
    for labels, given, sentence in (
        (4, named, "--labels 4: the training images have 3 classes"),
        (7, numbers, "--labels 7: the training images have 8 classes"),
        (0, source("d.npz", [-1, -1]), "have no labels"),
    ):
        with pytest.raises(ValueError, match=sentence):
            count_classes(labels, given, "")
    with pytest.raises(InputError, match="the label 3 of 3: give --labels"):
        check_labels(np.array([0, 3]), 3)


@pytest.mark.slow
def test_two_processes_give_the_probe_of_one(tmp_path, train, trained, images):
    """The BatchNorm of a probe and the accuracy over a padded last batch are those of all devices of all hosts."""
    flags = ["--mode", "linear", *CLASSIFY, "--pretrained-ckpt", trained, "--valid-dataset-shards", images,
             "--valid-batch-size", 16, "--optimizer", "sgd", "--ema", 0.5]  # fmt: skip
    code, printed = train(*flags, "--name", "alone")
    assert code == 0, printed
    processes = harness.start_several(tmp_path, images, *flags, "--name", "two")
    for code, printed in map(harness.finish, processes):
        assert code == 0, printed
    alone, two = files.read("runs/alone").arrays, files.read("runs/two").arrays
    assert_close(two, alone)
    for name in ("val/acc1", "val/acc5", "val/loss"):
        assert_close(metrics("runs/two", name), metrics("runs/alone", name), name=name)
