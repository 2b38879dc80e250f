"""Probing and fine-tuning from the command line: what is trained, what stays, what is measured, how it goes on."""

import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import maejax
from maejax.data.errors import DataError
from maejax.data.shards import open_source
from maejax.interop import files
from maejax.interop.run import initial_model, read
from maejax.interop.transfer import load_for_classifier
from maejax.interop.weights import Weights, WeightsError, encoder_arguments
from maejax.models.arrays import named_arrays
from maejax.models.classifier import BATCH_NORM_EPS, Classifier
from maejax.tasks.classes import count_classes
from maejax.training.checkpoint import saved_steps
from maejax.training.classification import count_right
from maejax.training.log import read_metrics

from ..training import harness

PLAIN = ("--auto-augment", "none", "--random-erasing", 0)
ENCODER = encoder_arguments(
    image_size=[16, 16], patch_size=4, channels=3, dim=16, layers=2, heads=2, posemb="sincos2d", layerscale=False
)
DECODER = {
    "mask_ratio": 0.75, "norm_pix_loss": False, "dec_dim": 8, "dec_layers": 1, "dec_heads": 2, "dec_posemb": "sincos2d",
    "dec_layerscale": False, "dec_dropout": 0.0, "dec_droppath": 0.0,
}  # fmt: skip


def arrays_of(model):
    return {name: np.asarray(array) for name, array in named_arrays(model).items()}


def write(path, arguments, seed=0):
    """Write a fresh model as a file of weights, and return its arrays."""
    arrays = arrays_of(initial_model(arguments, seed, folded=False))
    rng = np.random.default_rng(seed)
    arrays = {name: (array + 0.1 * rng.normal(size=array.shape)).astype(np.float32) for name, array in arrays.items()}
    files.write(Weights(arrays, arguments, "maejax", "test"), path, "maejax")
    return arrays


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "mae.safetensors"
    write(path, {**ENCODER, **DECODER})
    return path


def metrics(run, name):
    return dict(read_metrics(Path(run) / "metrics.jsonl", name))


def test_fine_tuning_goes_on_bit_for_bit_and_keeps_the_best_average(train, images, pretrained):
    flags = ["--mode", "finetune", "--auto-augment", "none", "--pretrained-ckpt", pretrained,
             "--valid-dataset-shards", images, "--eval-interval", 2, "--valid-batch-size", 16, "--ema", 0.5,
             "--droppath", 0.3, "--clip-grad", 1, "--criterion", "bce", "--learning-rate", 1,
             "--training-steps", 4]  # fmt: skip
    code, printed = train(*flags)
    assert code == 0, printed
    assert "its decoder is left out; the norm of the pooled tokens is new; the head is new" in printed
    assert "gap, 3 classes" in printed
    run = Path("runs/finetune")
    before, whole = metrics(run, "train/loss"), arrays_of(maejax.load(run))
    (run / "checkpoints" / "4").rename("gone")
    code, printed = train(*flags)
    assert code == 0 and "continuing runs/finetune from step 2 of 4" in printed, printed
    assert metrics(run, "train/loss") == before and len(set(before.values())) == 4
    parts = arrays_of(maejax.load(run))
    assert all((whole[name] == parts[name]).all() for name in whole)

    # The best is that of the averaged weights, and its file gives the numbers that the run wrote.
    scores = metrics(run, "val/acc1")
    (step,) = saved_steps(run / "best")
    assert scores[step] == max(scores.values()) == metrics(run, "val/acc1/best")[4]
    best = arrays_of(maejax.load(run / "best"))
    assert any(
        (best[name] != np.asarray(array)).any() for name, array in read(run / "checkpoints" / str(step)).arrays.items()
    )
    code, printed = train("--mode", "finetune", "--eval-only", "--pretrained-ckpt", run / "best",
                          "--valid-dataset-shards", images, "--criterion", "bce", "--valid-batch-size", 8,
                          "--name", "numbers")  # fmt: skip
    assert code == 0, printed
    found = json.loads(Path("runs/numbers/evaluation.json").read_text())
    assert found["acc1"] == scores[step] and found["images"] == 24 and found["acc5"] == 100
    assert found["loss"] == pytest.approx(metrics(run, "val/loss")[step], rel=1e-5)


def test_probing_trains_the_head_alone(train, maejax, images, pretrained):
    flags = ["--mode", "linear", "--pretrained-ckpt", pretrained, "--valid-dataset-shards", images]
    code, printed = train(*flags)
    assert code == 0, printed
    assert "2 x 16 encoder, frozen, cls, 3 classes" in printed
    run = Path("runs/linear")
    after, before = read(run).arrays, files.read(pretrained).arrays
    encoder = [name for name in after if name.startswith("encoder.")]
    assert len(encoder) > 15 and all((after[name] == before[name]).all() for name in encoder)
    assert np.abs(after["head.kernel"]).max() > 0 and (after["head_norm.var"] != 1).all()
    # The run's last numbers are those of its checkpoint, whose BatchNorm is folded into the head on loading.
    code, printed = maejax(
        "train", "--mode", "linear", "--eval-only", "--pretrained-ckpt", run, "--valid-dataset-shards", images,
        "--image-size", 16, "--valid-batch-size", 8, "--name", "numbers",
    )  # fmt: skip
    assert code == 0, printed
    found = json.loads(Path("runs/numbers/evaluation.json").read_text())
    assert found["acc1"] == metrics(run, "val/acc1")[6]
    assert found["loss"] == pytest.approx(metrics(run, "val/loss")[6], rel=1e-5)
    assert re.search(r"top-1 \d+\.\d+ %, top-5 100.000 %, loss", printed)
    assert maejax("inspect", run)[0] == 0
    # The encoder in parts, the head's BatchNorm over all of them.
    code, printed = train(*flags, "--name", "parts", "--grad-accum", 2, "--optimizer", "lars")
    parts = read("runs/parts").arrays
    for name in ("head.kernel", "head.bias", "head_norm.mean", "head_norm.var"):
        np.testing.assert_allclose(parts[name], after[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_cached_features_give_what_live_ones_give(train, images, pretrained):
    # 24 images in batches of 16: the first two epochs, cached with their augmentation, are all that is trained on.
    flags = ["--mode", "linear", "--pretrained-ckpt", pretrained, "--valid-dataset-shards", images,
             "--optimizer", "sgd", "--train-batch-size", 16, "--training-steps", 3, "--eval-interval", 2,
             "--label-smoothing", 0.1, "--learning-rate", 0.5]  # fmt: skip
    assert train(*flags)[0] == 0
    cached = [*flags, "--name", "cached", "--cache-features", "--cached-epochs", 2, "--sweep", 0.005, 0.5]
    code, printed = train(*cached)
    assert code == 0, printed
    live, run = read("runs/linear").arrays, Path("runs/cached")
    report = json.loads((run / "sweep.json").read_text())
    assert [entry["learning_rate"] for entry in report["rates"]] == [0.005, 0.5]
    entry = report["rates"][1]
    assert entry["acc1"] == pytest.approx(metrics("runs/linear", "val/acc1")[3])
    assert entry["loss"] == pytest.approx(metrics("runs/linear", "val/loss")[3], rel=1e-5)
    assert report["rates"][0]["loss"] != entry["loss"]
    # The same command with the live run's rate alone reads the features again, and leaves the live run's classifier.
    (run / "checkpoints" / "3").rename("gone")
    code, printed = train(*cached[:-3], "--sweep", 0.5)
    assert code == 0 and "encoding" not in printed.replace("encoding took", ""), printed
    arrays = read(run).arrays
    assert arrays.keys() == live.keys()
    for name in live:
        np.testing.assert_allclose(arrays[name], live[name], rtol=1e-5, atol=1e-6, err_msg=name)
    with Image.open(run / "sweep.png") as picture:
        assert picture.size == (720, 400)
    assert metrics(run, "val/acc1") == pytest.approx(metrics("runs/linear", "val/acc1"))


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(tmp_path, train, images, pretrained):
    """The BatchNorm of a probe and the accuracy over a padded last batch are those of all devices of all hosts."""
    flags = ["--mode", "linear", "--pretrained-ckpt", pretrained, "--valid-dataset-shards", images,
             "--valid-batch-size", 16, "--optimizer", "sgd", "--learning-rate", 1, "--ema", 0.5]  # fmt: skip
    code, printed = train(*flags, "--name", "alone")
    assert code == 0, printed
    processes = harness.start_several(tmp_path, images, *flags, "--name", "two")
    for code, printed in map(harness.finish, processes):
        assert code == 0, printed
    alone, two = read("runs/alone").arrays, read("runs/two").arrays
    for name in alone:
        np.testing.assert_allclose(two[name], alone[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for name in ("val/acc1", "val/acc5", "val/loss"):
        assert metrics("runs/two", name) == pytest.approx(metrics("runs/alone", name), rel=1e-5)


def test_blocks_that_are_not_tuned_stay(train, pretrained):
    code, printed = train("--mode", "finetune", *PLAIN, "--pretrained-ckpt", pretrained, "--finetune-blocks", 0.5,
                          "--training-steps", 2, "--warmup-steps", 0, "--clip-grad", 1)  # fmt: skip
    assert code == 0 and "0.5 of its blocks trained" in printed, printed
    after, before = read("runs/finetune").arrays, files.read(pretrained).arrays
    changed = {
        f"{name}[{layer}]" if "blocks" in name else name
        for name in after.keys() & before.keys()
        for layer in (range(2) if "blocks" in name else [...])
        if (after[name][layer] != before[name][layer]).any()
    }
    blocks = "encoder.transformer.blocks"
    assert changed == {f"{blocks}.{part}[1]" for part in (
        "norm2.scale", "norm2.bias", "fc1.kernel", "fc1.bias", "fc2.kernel", "fc2.bias")}  # fmt: skip


def test_top_one_and_five_count_valid_rows_only():
    logits = jnp.array([[3.0, 2, 1, 0, -1, -2], [0, 1, 2, 3, 4, 5], [0, 9, 0, 0, 0, 0]])
    valid = jnp.array([True, True, False])
    count, top1, top5, loss = count_right(logits, jnp.array([0, 0, 1]), valid, "ce")
    assert (count, top1, top5) == (2, 1, 1)
    labels = np.array([0, 0])
    expected = -np.log(np.exp(np.asarray(logits)[:2]) / np.exp(np.asarray(logits)[:2]).sum(1, keepdims=True))
    assert float(loss) == pytest.approx(expected[[0, 1], labels].sum(), rel=1e-5)
    assert count_right(logits[:, :2], jnp.array([1, 0, 0]), valid, "ce")[2] == 2


def source(tmp_path, name, labels, classes=None):
    more = {} if classes is None else {"classes": np.array(classes)}
    np.savez(tmp_path / f"{name}.npz", images=np.zeros((len(labels), 4, 4, 3), np.uint8), labels=labels, **more)
    return open_source(str(tmp_path / f"{name}.npz"))


def test_classes_come_from_the_data(tmp_path):
    train = source(tmp_path, "train", [0, 2, 1], ["a", "b", "c"])
    valid = source(tmp_path, "valid", [0, 1, 0], ["c", "a"])
    assert count_classes(0, train, valid) == count_classes(3, train, None) == 3
    assert valid.labels.tolist() == [2, 0, 2]
    numbers = source(tmp_path, "numbers", [0, 7, -1])
    assert count_classes(-1, numbers, None) == 8 and count_classes(1000, numbers, None) == 1000
    for labels, given, judge, sentence in (
        (4, train, None, "--labels 4: the data has 3 classes"),
        (7, numbers, None, "--labels 7: --train-dataset-shards has the label 7, so there are at least 8"),
        (0, source(tmp_path, "none", [-1, -1]), None, "no image has a label"),
        (0, train, source(tmp_path, "other", [0], ["d"]), "classes that --train-dataset-shards lacks: d"),
        (0, source(tmp_path, "few", [0, 1]), numbers, "has the label 7, which --train-dataset-shards lacks"),
    ):
        with pytest.raises((ValueError, DataError), match=sentence):
            count_classes(labels, given, judge)


def test_a_classifier_takes_what_fits(tmp_path, pretrained):
    gap = {**ENCODER, "labels": 3, "pooling": "gap"}
    taken = load_for_classifier(str(pretrained), {**gap, "image_size": [24, 16]})
    assert not any(name.startswith(("dec", "predict", "mask", "encoder.norm", "head")) for name in taken.arrays)
    assert taken.arrays["encoder.positions"].shape == (1, 1 + 6 * 4, 16)
    cls = load_for_classifier(str(pretrained), {**gap, "pooling": "cls"})
    assert "encoder.norm.scale" in cls.arrays
    with pytest.raises(WeightsError, match="of another geometry than the flags say; give --patch-size 4 --layers 2"):
        load_for_classifier(str(pretrained), {**gap, "patch_size": 8, "layers": 3})

    arrays = write(tmp_path / "tuned.safetensors", gap)
    path = str(tmp_path / "tuned.safetensors")
    same = load_for_classifier(path, gap)
    assert "its head of 3 classes is kept" in same.said
    assert (same.arrays["head.kernel"] == arrays["head.kernel"]).all() and "norm.scale" in same.arrays
    other = load_for_classifier(path, {**gap, "labels": 4})
    assert "head.kernel" not in other.arrays and "left out" in other.said
    mapped = load_for_classifier(path, {**gap, "labels": 4}, mapping=np.array([2, -1, 0, 0]))
    np.testing.assert_array_equal(mapped.arrays["head.kernel"][:, [0, 2]], arrays["head.kernel"][:, [2, 0]])
    assert (mapped.arrays["head.kernel"][:, 1] == 0).all() and mapped.arrays["head.bias"].shape == (4,)
    for mapping, sentence in (([3, 0, 0, 0], "names the old class 3, but"),):
        with pytest.raises(WeightsError, match=sentence):
            load_for_classifier(path, {**gap, "labels": 4}, mapping=np.array(mapping))
    with pytest.raises(WeightsError, match="give --pooling gap"):
        load_for_classifier(path, {**gap, "pooling": "cls"})

    # A probe's head goes into a classifier with its BatchNorm folded: the same logits.
    probe = {**ENCODER, "labels": 3, "pooling": "cls", "head_norm": BATCH_NORM_EPS}
    write(tmp_path / "probe.safetensors", probe)
    folded = load_for_classifier(str(tmp_path / "probe.safetensors"), {**ENCODER, "labels": 3, "pooling": "cls"})
    assert folded.arrays.keys() == named_arrays(initial_model({**ENCODER, "labels": 3, "pooling": "cls"})).keys()
    again = load_for_classifier(str(tmp_path / "probe.safetensors"), probe)
    assert "head_norm.var" in again.arrays


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--mode", "linear", "--droppath", "0.1"], "--droppath 0.1: a linear probe trains no encoder"),
        (["--mode", "finetune", "--finetune-blocks", "3"], "--finetune-blocks 3: give 0, .5, all, or 1 to 2 blocks"),
        (["--mode", "finetune", "--ema", "1"], "--ema 1.0: give a decay"),
        (["--mode", "finetune", "--image-mask-ratio", ".5"], "--image-mask-ratio 0.5: classifiers see all patches"),
        (["--mode", "finetune", "--labels", "2"], "--labels 2: --train-dataset-shards has the label 2"),
        (["--mode", "finetune", "--pretrained-ckpt", "{mae}", "--dim", "32"], "give --dim 16"),
        (["--mode", "finetune", "--pretrained-ckpt", "{mae}", "--label-mapping", "m.json"], "m.json: cannot be read"),
        (["--mode", "finetune", "--eval-only"], "--eval-only needs --pretrained-ckpt"),
        (["--mode", "finetune", "--eval-only", "--pretrained-ckpt", "{mae}", "--valid-dataset-shards", "{images}"],
         "has no classifier's head"),
        (["--mode", "linear", "--sweep", ".1"], "--sweep .*: it belongs to --mode linear --cache-features"),
        (["--mode", "linear", "--cache-features"], "--cache-features needs --valid-dataset-shards"),
        (["--mode", "linear", "--cache-features", "--mixup", "1"], "--mixup 1.0: features that are made beforehand"),
        (["--mode", "finetune", "--cache-features"], "--cache-features True: fine-tuning changes the encoder"),
        (["--ema", ".9"], "--ema 0.9: pre-training has no classifier"),
    ],
    ids=lambda value: "-".join(value[1:4]) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_flags_get_one_sentence(train, images, pretrained, monkeypatch, flags, sentence):
    def refuse(*_):
        raise AssertionError("the model was run")

    monkeypatch.setattr(Classifier, "__call__", refuse)
    named = {"{mae}": pretrained, "{images}": images}
    plain = PLAIN if "finetune" in flags else ()
    code, printed = train(*plain, *[named.get(flag, flag) for flag in flags])
    assert code == 2, printed
    assert re.search(sentence, printed), printed


def test_an_average_begins_at_the_weights_that_are_loaded():
    import optax

    from maejax.training.average import as_evaluated, restart_average, with_average
    from maejax.training.state import TrainState

    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    optimizer = with_average(optax.sgd(1.0), 0.75)
    other = nnx.Linear(2, 2, rngs=nnx.Rngs(1))
    state = restart_average(TrainState(jnp.zeros((), jnp.int32), other, optimizer.init(model)))  # type: ignore[arg-type]
    grads = nnx.clone(other)
    updates, slots = optimizer.update(grads, state.opt_state, state.model)  # type: ignore[arg-type]
    moved = TrainState(state.step, optax.apply_updates(state.model, updates), slots)  # type: ignore[arg-type]
    old, new, found = (np.asarray(m.kernel[...]) for m in (other, moved.model, as_evaluated(moved).model))  # type: ignore
    np.testing.assert_allclose(new, old - old)
    np.testing.assert_allclose(found, 0.75 * old, rtol=1e-6)
