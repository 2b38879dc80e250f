"""Evaluation from Python gives the scores of the command."""

import json

import numpy as np
import pytest

from maejax import evaluate
from maejax.errors import InputError


def test_scores_are_those_of_the_command(maejax, trained, images, tmp_path):
    shards = "--train-dataset-shards", images, "--valid-dataset-shards", images
    assert maejax("evaluate", trained, *shards, "--protocol", "knn", "--out", "out")[0] == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    file, said = np.load(images), []
    pairs = list(zip(file["images"], file["labels"].tolist(), strict=True))
    found = evaluate(trained, str(images), pairs, protocol="knn", log=said.append)
    assert found.scores == report["scores"] and found.images == report["images"]
    assert "untrained: nearest neighbours" in said
    with pytest.raises(InputError, match="--protocol svm: choose knn"):
        evaluate(trained, images, images, protocol="svm")
    with pytest.raises(InputError, match="no image has a label"):
        evaluate(trained, file["images"], pairs)
    with pytest.raises(InputError, match="pool='map': this encoder has cls, mean"):
        evaluate(trained, images, images, pool="map")
