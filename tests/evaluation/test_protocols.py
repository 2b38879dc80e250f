"""`maejax evaluate`: one table of all judges, with the untrained encoder beside the trained one."""

import io
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from maejax.data import pieces
from maejax.data.sources import open_source
from maejax.errors import InputError
from maejax.evaluation import labelled as labelled_images
from maejax.evaluation.labelled import Side, pair
from maejax.evaluation.protocols import untrained_like
from maejax.models.build import initial_model
from maejax.models.description import Compute, ViT
from maejax.models.trees import named_arrays

from ..data.server import Server


def labelled(path, classes, labels):
    """Write noise as dark pictures, but for dogs, which are bright."""
    images = np.random.default_rng(len(labels)).integers(0, 60, (len(labels), 16, 16, 3), np.uint8)
    images[np.array(classes)[labels] == "dog"] += 90
    np.savez(path, images=images, labels=labels, classes=np.array(classes))
    return path


@pytest.fixture
def splits(tmp_path):
    train = labelled(tmp_path / "train.npz", ["cat", "dog"], np.arange(40) % 2)
    test = labelled(tmp_path / "test.npz", ["dog", "cat"], (np.arange(18) + 1) % 2)
    return train, test


def test_all_protocols_in_one_report(trained, maejax, splits):
    flags = ["--train-dataset-shards", splits[0], "--valid-dataset-shards", splits[1], "--workers", 0]
    flags += ["--out", "judged"]
    code, printed = maejax("evaluate", trained, *flags)
    assert code == 0, printed
    report = json.loads(Path("judged/report.json").read_text())
    columns = {"knn_10", "knn_20", "fewshot_1", "fewshot_5", "fewshot_10", "linear", "attentive", "efficient"}
    for kind in ("pretrained", "untrained"):
        assert {name for name in report["scores"][kind] if not name.endswith("_std")} == columns
    assert report["images"] == {"train": 40, "test": 18}
    assert not any("…" in line or len(line) > 80 for line in printed.splitlines() if "│" in line), printed
    page = Path("judged/report.html").read_text()
    for text in (
        "Confusion",
        "Worst mistakes",
        "nearest training images",
        "A map of the features needs 20 test images",
        "same encoder, untrained",
        "attentive",
        "efficient",
        "10 shots",
        "data:image/png",
        report["explanation"][:20],
    ):
        assert text in page
    # The splits number the classes differently: who overlooks that gets all wrong.
    assert report["scores"]["pretrained"]["linear"] > 90
    code, printed = maejax("evaluate", trained, *flags, "--protocol", "knn", "--no-control", "--json")
    assert code == 0 and '"knn_20"' in printed and "untrained" not in printed


def test_unreadable_images_count_nowhere(trained, maejax, tmp_path):
    for split in ("train", "test"):
        for i in range(12):
            path = tmp_path / split / ("cat", "dog")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(path)
        (path.parent / "bad.png").write_bytes(b"no image")
    (path.parent / "worse.png").write_bytes(b"")
    flags = ["--train-dataset-shards", tmp_path / "train", "--valid-dataset-shards", tmp_path / "test", "--workers", 0]
    code, printed = maejax("evaluate", trained, *flags, "--protocol", "knn", "--no-control")
    report = json.loads(Path("evaluation/report.json").read_text())
    assert code == 0 and report["images"] == {"train": 12, "test": 12}, printed
    assert report["unreadable"] == {"train": 1, "test": 2}
    assert "left out: 1 of train, 2 of test" in Path("evaluation/report.html").read_text()


def test_bad_input_gets_one_sentence(trained, maejax, splits, tmp_path):
    both = ["--train-dataset-shards", splits[0], "--valid-dataset-shards", splits[1]]
    for flags, sentence in (
        ([], "--train-dataset-shards is missing"),
        ([*both, "--protocol", "svm"], "--protocol svm"),
        ([*both, "--pool", "max"], "--pool max"),
    ):
        code, printed = maejax("evaluate", trained, *flags)
        assert code == 2 and sentence in printed, printed
    bird = open_source(str(labelled(tmp_path / "bird.npz", ["bird", "cat"], np.arange(6) % 2)))
    with pytest.raises(InputError, match="lacks: bird"):
        pair(open_source(str(splits[0])), bird)
    unlabelled = tmp_path / "unlabelled.npz"
    np.savez(unlabelled, images=np.zeros((3, 16, 16, 3), np.uint8))
    with pytest.raises(InputError, match="--valid-dataset-shards: no image has a label"):
        pair(open_source(str(splits[0])), open_source(str(unlabelled)))


OPTIONS = {"posemb": "learnable", "layerscale": True, "final_norm": False, "gelu": "tanh"}


def static(module):
    """List the attributes of a module and of all modules in it that are no arrays."""
    found = {}
    for name, value in vars(module).items():
        if isinstance(value, nnx.Module):
            found |= {f"{name}.{inner}": attribute for inner, attribute in static(value).items()}
        elif not isinstance(value, nnx.Variable):
            found[name] = value
    return {name: value for name, value in found.items() if "_pytree" not in name and "_object" not in name}


@pytest.mark.parametrize("changes", [{}, {"gelu": "tanh"}, OPTIONS], ids=str)
def test_the_control_differs_from_the_encoder_in_its_arrays_alone(changes):
    config = ViT(**{"image_size": (8, 16), "patch_size": 4, "layers": 2, "dim": 16, "heads": 4} | changes)
    encoder = initial_model(config, Compute(attention="xla"))
    fresh = untrained_like(encoder, seed=1)
    ours, theirs = named_arrays(encoder), named_arrays(fresh)
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, theirs)
    assert jax.tree.structure(encoder) == jax.tree.structure(fresh)
    assert static(encoder) == static(fresh) and static(encoder)["transformer.blocks.activation"] == config.gelu
    assert np.abs(ours["embed.kernel"] - theirs["embed.kernel"]).max() > 0.01
    if config.posemb == "sincos2d":
        encoder.positions[...] = 7 * encoder.positions[...]  # such as another code's
        np.testing.assert_array_equal(untrained_like(encoder).positions[...], encoder.positions[...])


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


def served(server, images, labels, rows, names=None, stem="s"):
    """Serve shards of these rows of images as STEM-N.tar, write them here too, and return how they are named."""
    for s, chosen in enumerate(rows):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for i in chosen:
                picture = io.BytesIO()
                Image.fromarray(images[i]).save(picture, "PNG")
                for suffix, data in (
                    ("png", picture.getvalue()),
                    ("cls", (names[labels[i]] if names else str(labels[i])).encode()),
                ):
                    member = tarfile.TarInfo(f"{i:03}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        server.files[f"/{stem}-{s}.tar"] = buffer.getvalue()
        Path(f"{stem}-{s}.tar").write_bytes(buffer.getvalue())
    return f"{stem}-{{0..{len(rows) - 1}}}.tar"


def test_shards_elsewhere_are_judged_as_here_and_two_are_fetched_at_a_time(trained, maejax, server, monkeypatch):
    """Classes are known after the last shard alone: "bird" is in the last two."""
    labels, names, most = np.arange(36) % 3, ["cat", "dog", "bird"], []
    labels[2:4] = 0  # no bird in the first shard
    noise = np.random.default_rng(0).integers(0, 60, (36, 16, 16, 3))
    images = (noise + 90 * labels[:, None, None, None]).astype(np.uint8)
    rows = [np.arange(2), *(np.flatnonzero(labels == c)[1:] for c in range(3))]
    shards = served(server, images, labels, rows, names)
    opened = pieces.Spool.__init__

    def counted(self, *given, **more):
        opened(self, *given, **more)
        most.append(len(list(Path(self.path).parent.iterdir())))

    monkeypatch.setattr(pieces.Spool, "__init__", counted)
    flags = ["--workers", 0, "--protocol", "knn,fewshot,efficient"]
    reports = {}
    for name, place in (("here", shards), ("there", f"{server.url}/{shards}")):
        code, printed = maejax(
            "evaluate", trained, "--train-dataset-shards", place, "--valid-dataset-shards", place, "--out", name, *flags
        )
        assert code == 0, printed
        reports[name] = json.loads(Path(name, "report.json").read_text())
        assert "Worst mistakes" in Path(name, "report.html").read_text() and Path(name, "attention.png").exists()
    assert max(most) <= 2
    for measure in ("scores", "images", "classes", "unreadable"):
        assert reports["there"][measure] == reports["here"][measure], measure
    assert reports["here"]["classes"] == sorted(names) and reports["here"]["scores"]["pretrained"]["knn_10"] > 60

    server.seen.clear()
    both = ["--train-dataset-shards", f"{server.url}/{shards}", "--valid-dataset-shards", "s-{0,1}.tar"]
    code, printed = maejax("evaluate", trained, *both, *flags, "--cache-dir", "kept", "--out", "kept-too")
    fetched = [path for path, *_ in server.seen if path.endswith(".tar")]
    assert code == 0 and sorted(fetched) == [f"/s-{s}.tar" for s in range(4)], (printed, fetched)
    known = ["--train-dataset-shards", "s-{1,2}.tar", "--valid-dataset-shards", f"{server.url}/{shards}", *flags]
    code, printed = maejax("evaluate", trained, *known)
    assert code == 2 and "--valid-dataset-shards has classes that --train-dataset-shards lacks: bird" in printed, (
        printed
    )
    del server.files["/s-3.tar"]
    code, printed = maejax("evaluate", trained, *known)
    assert code == 1 and "s-3.tar: " in printed and "404" in printed and "start the same command again" in printed


def test_classes_of_shards_elsewhere_are_numbered_as_those_here(trained, maejax, server):
    """By names that differ from shard to shard, by numbers, and by numbers that an index.json names."""
    labels, names = np.arange(36) % 3, ["cat", "dog", "owl"]
    noise = np.random.default_rng(0).integers(0, 30, (36, 16, 16, 3))
    images = (noise + 90 * labels[:, None, None, None]).astype(np.uint8)
    np.savez("numbers.npz", images=images, labels=labels)
    np.savez("names.npz", images=images, labels=labels, classes=np.array(names))
    two = [np.flatnonzero(labels < 2), np.flatnonzero(labels > 0)]  # cat and dog, dog and owl
    named, numbered = (served(server, images, labels, two, n, stem) for n, stem in ((names, "n"), (None, "i")))
    for train, test in (
        ("numbers.npz", named),
        ("numbers.npz", numbered),
        ("names.npz", named),
        (named, "names.npz"),
        (numbered, "numbers.npz"),
    ):
        found = []
        for place in ("", f"{server.url}/"):
            both = [spec if spec.endswith(".npz") else place + spec for spec in (train, test)]
            args = [
                "--train-dataset-shards",
                both[0],
                "--valid-dataset-shards",
                both[1],
                "--workers",
                0,
                "--no-control",
            ]
            code, printed = maejax("evaluate", trained, *args, "--protocol", "knn")
            assert code == 0, printed
            found.append(json.loads(Path("evaluation/report.json").read_text())["scores"]["pretrained"])
        assert found[0] == found[1] and found[0]["knn_10"] == 100, (train, test, found)

    def refused(train, test, said):
        server.seen.clear()
        code, printed = maejax("evaluate", trained, "--train-dataset-shards", train, "--valid-dataset-shards", test)
        assert code == 2 and said in printed, printed
        assert not [path for path, *_ in server.seen if path.endswith(".tar")], server.seen

    one = np.flatnonzero(labels == 0)
    np.savez("one.npz", images=images[one], labels=labels[one])
    refused("one.npz", f"{server.url}/{named}", "images of one class only")
    shards = [{"name": f"i-{s}.tar", "samples": len(rows)} for s, rows in enumerate(two)]
    server.files["/index.json"] = json.dumps({"shards": shards, "classes": ["cat", "dog", "bat"]}).encode()
    refused("names.npz", f"{server.url}/{numbered}", "has classes that --train-dataset-shards lacks: bat")
    server.files["/index.json"] = json.dumps({"shards": shards, "classes": ["owl", "dog", "cat"]}).encode()
    args = ["--train-dataset-shards", "names.npz", "--valid-dataset-shards", f"{server.url}/{numbered}"]
    code, printed = maejax("evaluate", trained, *args, "--workers", 0, "--no-control", "--protocol", "knn")
    scores = json.loads(Path("evaluation/report.json").read_text())["scores"]["pretrained"]
    assert code == 0 and scores["knn_10"] == 50, printed  # dogs, of whom half are, have the same number alone


def test_images_that_no_class_takes_are_left_out_of_tokens_on_the_disk(tmp_path):
    tokens = np.memmap(tmp_path / "t", np.float16, "w+", shape=(600, 2, 3))
    tokens[:] = np.arange(600)[:, None, None]
    side = Side(None, None, [600], np.zeros((600, 1)), np.zeros(600), np.arange(600), tokens, 0, [], [])
    kept = labelled_images._labelled(side, [-1 if i % 2 else 0 for i in range(600)])
    assert isinstance(kept.tokens, np.memmap) and kept.tokens.shape == (300, 2, 3)
    assert (kept.tokens[:, 0, 0] == kept.rows).all() and (kept.rows == np.arange(0, 600, 2)).all()
