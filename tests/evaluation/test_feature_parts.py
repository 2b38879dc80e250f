"""Features in parts and from shards elsewhere: the same bytes whatever the parts, also after a kill."""

import io
import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from maejax.data import pieces
from maejax.data.form import form_for
from maejax.data.pieces import Part, open_pieces, read_part
from maejax.errors import Failed, InputError
from maejax.evaluation import feature_file
from maejax.evaluation.feature_file import part_path, write_features
from maejax.evaluation.feature_parts import gather
from maejax.models.build import initial_model
from maejax.models.description import MAE, Decoder, ViT
from maejax.pixels import Pixels
from tests.data.server import Server

CONFIG = MAE(
    encoder=ViT(image_size=(16, 16), patch_size=4, dim=16, layers=1, heads=2), decoder=Decoder(dim=8, layers=1, heads=2)
)
SIZES = (5, 1, 7, 4)  # images of the shards; each holds one class folder


@pytest.fixture(scope="module")
def model():
    return initial_model(CONFIG)


@pytest.fixture(scope="module")
def shards():
    rng, made = np.random.default_rng(0), {}
    for s, size in enumerate(SIZES):
        with tarfile.open(fileobj=(whole := io.BytesIO()), mode="w") as tar:
            for i in range(size):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(picture := io.BytesIO(), "PNG")
                member = tarfile.TarInfo(f"{'cat dog cat eel'.split()[s]}/{i}.png")
                member.size = picture.tell()
                tar.addfile(member, io.BytesIO(picture.getvalue()))
        made[f"/s-{s}.tar"] = whole.getvalue()
    return made


@pytest.fixture
def here(shards, tmp_path):
    (tmp_path / "shards").mkdir()
    for name, data in shards.items():
        (tmp_path / "shards" / name[1:]).write_bytes(data)
    return f"{tmp_path}/shards/s-{{0..3}}.tar"


@pytest.fixture
def there(shards):
    server = Server()
    server.files |= shards
    yield server
    server.stop()


def write(model, spec, path, part=None, **options):
    form, opened = form_for(CONFIG.encoder, Pixels()), open_pieces(spec, part=part or Part(0, 1))
    return write_features(model, opened, path, form, part=part, batch_size=4, **options)


def features(path):
    return path.read_bytes()[feature_file.HEADER :]


def table(path):
    return pyarrow.parquet.read_table(path).to_pydict()


@pytest.mark.parametrize("count", [1, 3, 8])
def test_parts_are_the_whole_cut_up(model, here, there, tmp_path, count):
    write(model, here, whole := tmp_path / "whole.npy")
    labels = table(whole.with_suffix(".parquet"))
    assert labels["class"] == ["cat"] * 5 + ["dog"] + ["cat"] * 7 + ["eel"] * 4 and labels["label"][5] == 1
    for spec, name in ((here, "near.npy"), (f"{there.url}/s-{{0..3}}.tar", "far.npy")):
        path = tmp_path / name
        for number in reversed(range(count)):
            before = len(there.seen)
            write(model, spec, path, Part(number, count))
            fetched = {seen[0] for seen in there.seen[before:]} - {"/index.json"}
            assert len(fetched) <= -(-4 // count), fetched  # its own shards alone
        files = [part_path(path, Part(number, count)) for number in range(count)]
        assert b"".join(map(features, files)) == features(whole)
        index = gather(path)
        assert (index["images"], index["classes"], index["shape"]) == (17, ["cat", "dog", "eel"], [16])
        assert table(path.with_suffix(".parquet")) == labels
        for entry in index["parts"]:
            rows = np.load(path.parent / entry["features"], mmap_mode="r")
            np.testing.assert_array_equal(rows, np.load(whole)[entry["first"] : entry["first"] + entry["images"]])
        # Once more does nothing.
        times = [file.stat().st_mtime_ns for file in files]
        assert write(model, spec, path, Part(0, count)).seconds == 0
        assert times == [file.stat().st_mtime_ns for file in files]


def test_many_shards_are_listed_some_at_a_time(model, here, tmp_path, monkeypatch):
    write(model, here, tmp_path / "whole.npy")
    monkeypatch.setattr(pieces, "TOGETHER", 2)
    assert len(opened := open_pieces(here)) == 2 and opened.total is None
    write(model, here, tmp_path / "some.npy")
    assert features(tmp_path / "some.npy") == features(tmp_path / "whole.npy")
    tables = [pyarrow.parquet.read_table(tmp_path / name) for name in ("some.parquet", "whole.parquet")]
    assert tables[0].equals(tables[1])
    index = {"shards": [{"name": f"s-{s}.tar", "samples": size} for s, size in enumerate(SIZES)], "classes": []}
    (tmp_path / "shards" / "index.json").write_text(json.dumps(index))
    assert open_pieces(here).total == 17 and open_pieces(here, part=Part(1, 2)).total == 11


def test_shards_elsewhere_take_the_place_of_two_and_a_stop_inside_one_is_no_loss(model, there, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_file, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spec, most = f"{there.url}/s-{{0..3}}.tar", []

    def stop(done, total):
        most.append(len(list(tmp_path.glob("maejax-shards-*/*"))))
        if done == 10:  # in the third shard
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(model, spec, tmp_path / "f.npz", progress=stop)
    assert max(most) <= 2 and not (tmp_path / "f.npz").exists()
    there.seen.clear()
    rest = []
    written = write(model, spec, tmp_path / "f.npz", progress=lambda done, _: rest.append(done))
    assert (written.images, written.resumed_at, rest) == (17, 10, [13, 17])
    assert not {"/s-0.tar", "/s-1.tar"} & {seen[0] for seen in there.seen}
    write(model, spec, tmp_path / "whole.npz")
    assert (tmp_path / "f.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    del there.files["/s-2.tar"]
    with pytest.raises(Failed, match=r"s-2\.tar: .*404.*start the same command again"):
        write(model, spec, tmp_path / "g.npz")


def test_parts_that_do_not_belong_together_are_not_gathered(model, here, tmp_path):
    path = tmp_path / "f.npy"
    with pytest.raises(Failed, match="no part of it is there"):
        gather(path)
    for number in (0, 2):
        write(model, here, path, Part(number, 3))
    with pytest.raises(Failed, match="part 1 of 3 is not there, or not whole; compute it with --part 1/3"):
        gather(path)
    write(initial_model(CONFIG, seed=1), here, path, Part(1, 3))
    with pytest.raises(InputError, match="differ in their encoder"):
        gather(path)
    write(model, here, path, Part(1, 3))  # another encoder's part is no reason to do nothing
    assert gather(path)["images"] == 17
    part_path(path, Part(2, 3)).write_bytes(b"cut")
    with pytest.raises(Failed, match="part 2 of 3 is not there, or not whole"):
        gather(path)
    write(model, here, path, Part(0, 2))
    with pytest.raises(InputError, match="has parts of 2 and 3"):
        gather(path)


def test_engines_say_which_part_this_is(monkeypatch):
    assert read_part("2/8") == Part(2, 8)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    assert read_part("slurm/5") == Part(4, 5)
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "4")
    with pytest.raises(InputError, match=r"its last is 4 of 4\); .* or --part slurm/N for some"):
        read_part("slurm")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "5")
    assert read_part("slurm") == Part(4, 5)
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    assert read_part("kubernetes/3") == Part(2, 3)
    for text, said in (
        ("8/8", "part 8 of 8 is none"), ("1", "give I/N"), ("-1/3", "give I/N"),
        ("kubernetes", "JOB_COMPLETIONS is not set here"), ("slurm/4", "part 4 of 4 is none"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            read_part(text)
    assert [list(Part(i, 3).of(4)) for i in range(3)] == [[0], [1], [2, 3]] and not Part(0, 3).of(1)


def test_the_command_does_parts_and_gathers_them(trained, maejax, here):
    for number in range(2):
        code, printed = maejax("features", trained, here, "--out", "f.npy", "--part", f"{number}/2")
        assert code == 0 and f"f-0000{number}-of-00002.npy" in printed, printed
    code, printed = maejax("features", trained, here, "--out", "f.npy", "--gather")
    assert code == 0 and "17 features of shape [16] in 2 files that f.json lists" in printed, printed
    assert json.loads(Path("f.json").read_text())["parts"][1]["first"] == 6
    for flags, said in (
        (["--out", "f.npz", "--part", "0/2"], "parts are .npy files beside their keys"),
        (["--out", "f.npy", "--part", "2/2"], "part 2 of 2 is none"),
        (["--out", "f.npy", "--part", "0/2", "--gather"], "leave --part out"),
    ):
        code, printed = maejax("features", trained, here, *flags)
        assert code == 2 and said in printed, printed
