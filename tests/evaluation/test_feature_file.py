"""`maejax features`: the same numbers in every format, whatever the batches, also after a stop."""

import json

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest

from maejax.data.form import form_for
from maejax.data.pieces import Pieces
from maejax.data.sources import open_source
from maejax.evaluation import feature_file
from maejax.models.build import initial_model
from maejax.models.description import MAE, Decoder, ViT
from maejax.pixels import Pixels

from ..bounds import assert_close, rounding

CONFIG = MAE(
    encoder=ViT(image_size=(16, 16), patch_size=4, dim=16, layers=2, heads=2), decoder=Decoder(dim=8, layers=1, heads=2)
)
# The sums that a value passes through: two norms, queries and keys, scores, softmax, values, projection, the MLP.
BLOCK = 16 + 16 + 8 + 17 + 17 + 16 + 16 + 16 + 64
SUMS = 48 + 2 * BLOCK + 16  # a patch's pixels, the blocks, the last norm


@pytest.fixture(scope="module")
def model():
    return initial_model(CONFIG)


@pytest.fixture
def source(images):
    return open_source(str(images))


def write_features(model, source, path, **options):
    pieces, form = Pieces([source], total=len(source)), form_for(model.config.encoder, Pixels())
    return feature_file.write_features(model, pieces, path, form, **options)


def read_safetensors(path):
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    types = {"F32": "<f4", "I32": "<i4", "U8": "u1"}
    assert size % 8 == 0
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], types[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def test_formats_and_batch_sizes_agree_with_the_model(model, source, tmp_path):
    pixels = np.stack([source.read(i) for i in range(len(source))])
    expected = np.asarray(model.encode(model.normalize(pixels)))
    for batch_size, name in ((7, "f.npz"), (24, "f.safetensors"), (1, "f.parquet"), (9, "g.npy")):
        written = write_features(model, source, tmp_path / name, crop_ratio=1.0, batch_size=batch_size, workers=2)
        assert (written.images, written.unreadable, written.shape) == (24, 0, (16,))
        assert not (tmp_path / f"{name}.part").exists()
    with np.load(tmp_path / "f.npz") as file:
        found = [(file["features"], file["labels"], list(file["names"]))]
    tensors = read_safetensors(tmp_path / "f.safetensors")
    found.append((tensors["features"], tensors["labels"], tensors["names"].tobytes().decode().split("\n")))
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pydict()
    found.append((np.array(table["features"], np.float32), np.array(table["label"]), table["name"]))
    beside = pyarrow.parquet.read_table(tmp_path / "g.parquet").to_pydict()
    found.append((np.load(tmp_path / "g.npy", mmap_mode="r"), np.array(beside["label"]), beside["name"]))
    for features, labels, names in found:
        assert_close(features, expected, rounding(SUMS))
        np.testing.assert_array_equal(labels, np.arange(24) % 3)
        assert names == source.keys


def test_layers_and_tokens_keep_their_axes(model, source, tmp_path):
    write_features(model, source, tmp_path / "f.npz", crop_ratio=1.0, pool=None, layers=(0, -1))
    with np.load(tmp_path / "f.npz") as file:
        assert file["features"].shape == (24, 2, 17, 16)
        pixels = np.stack([source.read(i) for i in range(24)])
        last = model.encode(model.normalize(pixels), pool=None)
        assert_close(file["features"][:, 1], last, rounding(SUMS))
        assert np.abs(file["features"][:, 0] - last).max() > 0.1


def test_a_stopped_call_goes_on_where_it_was(model, source, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_file, "SAVE_SECONDS", 0.0)
    path = tmp_path / "f.npz"

    def stop(done, total):
        if done >= 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(model, source, path, batch_size=5, progress=stop)
    assert not path.exists()
    rest: list[int] = []
    written = write_features(model, source, path, batch_size=5, progress=lambda done, _: rest.append(done))
    assert written.resumed_at == 15 and rest == [20, 24]
    write_features(model, source, tmp_path / "whole.npz", batch_size=5)
    with np.load(path) as file, np.load(tmp_path / "whole.npz") as whole:
        np.testing.assert_array_equal(file["features"], whole["features"])
    with pytest.raises(KeyboardInterrupt):
        write_features(model, source, path, batch_size=5, progress=stop)
    other = initial_model(CONFIG, seed=1)
    assert write_features(other, source, path, batch_size=5).resumed_at == 0


def test_unreadable_images_are_left_out(model, tmp_path):
    from PIL import Image

    (tmp_path / "cats").mkdir()
    (tmp_path / "dogs").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / ("cats", "dogs")[i % 2] / f"{i}.png")
    (tmp_path / "cats" / "1.png").write_bytes(b"no image")
    written = write_features(model, open_source(str(tmp_path)), tmp_path / "f.parquet", batch_size=2)
    assert (written.images, written.unreadable) == (4, 1)
    table = pyarrow.parquet.read_table(tmp_path / "f.parquet").to_pydict()
    assert table["class"] == ["cats", "cats", "dogs", "dogs"]
    assert [name.rpartition("/")[2] for name in table["name"]] == ["0.png", "2.png", "1.png", "3.png"]


def test_attention_is_a_distribution_and_explains_the_tokens(model, source):
    pixels = np.stack([source.read(i) for i in range(3)])
    attention = model.attention(pixels)
    assert attention.shape == (3, 2, 17, 17)
    assert_close(attention.sum(axis=-1), 1, rounding(17))
    encoder = model.encoder
    entering = encoder.transformer.states(encoder.tokens(model.normalize(pixels)))[-2]
    block = encoder.transformer.block(1)
    values = jnp.split(block.attention.qkv(block.norm1(entering)), 3, axis=-1)[2].reshape(3, 17, 2, 8)
    read = jnp.einsum("bhqk,bkhd->bqhd", attention, values).reshape(3, 17, 16)
    assert_close(block.attention.proj(read), block.attention(block.norm1(entering)), rounding(BLOCK))
    with pytest.raises(ValueError, match="there is no layer 2"):
        model.attention(pixels, layer=2)


def test_the_command(trained, maejax, images):
    code, printed = maejax("features", trained, images, "--out", "f.npz", "--layers", 0, "--json")
    assert code == 0 and '"images": 24' in printed, printed
    for flags, sentence in (
        (["--out", "f.csv"], "ends in .npz, .safetensors, .parquet, .npy"),
        (["--out", "f.npz", "--pool", "max"], "--pool max: choose"),
        (["--out", "f.npz", "--layers", 2], "there is no layer 2"),
    ):
        code, printed = maejax("features", trained, images, *flags)
        assert code == 2 and sentence in printed, printed
