"""Quality while a model trains: neighbours and effective rank of features, in the metrics of the run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import maejax
from maejax.data.part import spread
from maejax.data.sources import open_source
from maejax.evaluation.encoding import extract
from maejax.evaluation.rank import effective_rank
from maejax.tasks import quality
from maejax.training.log import read_metrics

from ..bounds import assert_close

RUN = Path("runs/pretrain")


@pytest.fixture
def labelled(tmp_path):
    """Write 40 images in two classes that pixels tell apart, 6 of them without a label."""
    rng, labels = np.random.default_rng(1), np.repeat([0, 1], 20)
    images = rng.integers(0, 60, (40, 16, 16, 3)) + 120 * labels[:, None, None, None]
    labels[3:9] = -1
    np.savez(tmp_path / "labelled.npz", images=images.astype(np.uint8), labels=labels)
    return tmp_path / "labelled.npz"


def test_features_are_judged_in_their_interval_and_at_the_end(train, labelled, monkeypatch):
    flags = ("--watch", labelled, "--watch-interval", 4, "--valid-batch-size", 16, "--test-crop-ratio", 1)
    code, printed = train(*flags, "--tensorboard")
    assert code == 0 and "watch    40 images, every 4 steps" in printed, printed
    ranks, scores = (dict(read_metrics(RUN / "metrics.jsonl", f"watch/{name}")) for name in ("rank", "knn"))
    assert list(ranks) == list(scores) == [4, 6] and "watch    rank" in printed
    with np.load(labelled) as file:
        images, labels = file["images"], file["labels"]
    features = extract(maejax.load(RUN), images)
    assert_close(ranks[6], effective_rank(features))
    known = features[labels >= 0] / np.linalg.norm(features[labels >= 0], axis=1, keepdims=True)
    similar = np.exp(known @ known.T / 0.07) * ~np.eye(34, dtype=bool)
    votes = [
        np.bincount(labels[labels >= 0][best], row[best], 2) for row in similar for best in [np.argsort(-row)[:20]]
    ]
    assert scores[6] == pytest.approx(100 * (np.argmax(votes, axis=1) == labels[labels >= 0]).mean())
    assert scores[6] > 80 and not (RUN / "best").exists()

    # Files too big to keep, split weights, and a run that goes on, find the same.
    monkeypatch.setattr(quality, "KEPT", 0)
    assert train(*flags, "--sharding", "fsdp", "--name", "split")[0] == 0
    assert_close(dict(read_metrics(Path("runs/split/metrics.jsonl"), "watch/rank")), ranks, 1e-4)
    lines = (RUN / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["step"] <= 4 and "watch/rank" not in line]
    (RUN / "metrics.jsonl").write_text("".join(f"{line}\n" for line in kept))
    shutil.rmtree(RUN / "checkpoints" / "6")
    assert train(*flags, "--tensorboard", "--resume", "must")[0] == 0
    assert dict(read_metrics(RUN / "metrics.jsonl", "watch/rank")) == ranks  # also that of step 4, which was lost


def test_images_without_labels_have_a_rank_and_a_look_costs_little(train, images, tmp_path, monkeypatch):
    with np.load(images) as file:
        np.savez(tmp_path / "bare.npz", images=file["images"])
    code, printed = train("--watch", tmp_path / "bare.npz", "--valid-dataset-shards", images, "--eval-interval", 3)
    assert code == 0 and "watch    24 images, every 196 steps" in printed, printed  # 1 % of the arithmetic of 196
    (last,) = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines() if "watch" in line]
    assert last["step"] == 6 and "val/loss" in last and "watch/knn" not in last
    assert maejax.load(RUN / "best")
    for flags, said in (
        (("--watch-interval", 5), "--watch-interval 5 is for the images of --watch: give them"),
        (("--watch", "none"), "not found: none"),
        (("--mode", "finetune", "--watch", images), "--mode finetune has its accuracy; leave it out"),
    ):
        code, printed = train(*flags, "--name", "bad")
        assert code == 2 and said in printed, printed


def test_a_part_of_a_source_is_spread_over_it(images):
    whole = open_source(str(images))
    part = spread(whole, 4)
    assert [part.keys[i] for i in range(4)] == [whole.keys[i] for i in (0, 8, 15, 23)]
    assert (part.read(2) == whole.read(15)).all() and part.labels.tolist() == [0, 2, 0, 2] and len(part) == 4
    assert spread(whole, 24) is whole


def test_the_rank_counts_directions():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(50, 2)) @ rng.normal(size=(2, 30))
    assert 1 < effective_rank(plane + 7) <= 2 + 1e-9
    assert effective_rank(np.eye(8)) == pytest.approx(7)  # centred
    assert effective_rank(np.ones((5, 3))) == 1
    assert_close(effective_rank(plane.T), effective_rank(plane.T @ np.linalg.qr(rng.normal(size=(50, 50)))[0]))
    with pytest.raises(ValueError, match="finite"):
        effective_rank(np.full((3, 2), np.nan))
