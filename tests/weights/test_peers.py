"""The same weights computed by PyTorch, timm and transformers; needs the extra `interop`."""

import functools
import io
import re
import runpy
import subprocess
import sys
import tarfile
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps

from maejax.data.augment import build_eval
from maejax.errors import WeightsError
from maejax.ops import attention
from maejax.ops.attention_tpu import attend_packed_on_chip
from maejax.weights import files, hub, torch_export
from maejax.weights.pretrained import resize_positions
from maejax.weights.weights import model_of
from tests.bounds import assert_close
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings("ignore")
torch = pytest.importorskip("torch")


PHOTOS = ROOT / "../shared/data/clothing-small.tar"
CARDS = [("mae", 3), ("encoder", 3), ("cls", 3), ("gap", 3), ("probe", 3), ("mae", 1), ("cls", 4)]
X = np.random.default_rng(1).normal(size=(2, 3, 16, 24)).astype(np.float32)


def close(ours, theirs):
    assert_close(ours, theirs.detach().numpy())


def ours(x=X):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def vit(timm, **changes):
    sizes = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 5}
    return timm.models.VisionTransformer(**{**sizes, **changes}).eval()


@pytest.mark.parametrize("kind", ["encoder", "cls", "gap", "probe", "scaled"])
def test_timm_computes_the_same(timm, weights, same, tmp_path, kind):
    made = weights("cls", layerscale=True) if kind == "scaled" else weights(kind, "learnable")
    path = tmp_path / "t.pth"
    files.write(made, path, "timm")
    model = vit(
        timm, num_classes=0 if kind == "encoder" else 5, global_pool="avg" if kind == "gap" else "token",
        init_values=1e-4 if kind == "scaled" else None,
    )  # fmt: skip
    assert str(model.load_state_dict(torch.load(path, weights_only=True))) == "<All keys matched successfully>"
    mine = model_of(made)
    close(mine.encode(ours()) if kind == "encoder" else mine(ours()), model(torch.from_numpy(X)))
    torch.save(model.state_dict(), tmp_path / "back.pth")
    back = files.read(tmp_path / "back.pth", image_size=(16, 24))
    if kind != "probe":  # its BatchNorm is folded
        same(back.arrays, made.arrays)


@pytest.mark.parametrize("form", ["xla", "pallas", "cudnn"])
def test_timm_normalises_queries_and_keys_the_same(timm, weights, same, tmp_path, monkeypatch, form):
    made = weights("cls", "learnable", qk_norm=True, dim=128, heads=2)
    files.write(made, tmp_path / "t.pth", "timm")
    model = vit(timm, embed_dim=128, num_heads=2, qk_norm=torch_export.timm_model(made.config)[1]["qk_norm"])
    model.load_state_dict(torch.load(tmp_path / "t.pth", weights_only=True))
    # The code of each form runs here, interpreted or with JAX's own products in place of NVIDIA's.
    packed, product = functools.partial(attend_packed_on_chip, interpret=True), jax.nn.dot_product_attention
    monkeypatch.setattr(attention, "chosen_form", lambda *_: form)
    monkeypatch.setattr(attention, "attend_packed_on_chip", packed)
    stand_in = lambda *qkv, implementation, **masks: product(*qkv, implementation="xla", **masks)  # noqa: E731
    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    theirs = model(torch.from_numpy(X))
    close(model_of(made)(ours()), theirs)
    plain = replace(made, arrays={name: np.ones_like(a) if "k_norm" in name else a for name, a in made.arrays.items()})
    assert np.abs(model_of(plain)(ours()) - theirs.detach().numpy()).max() > 0.01
    same(files.read(tmp_path / "t.pth", image_size=(16, 24)).arrays, made.arrays)


def test_timms_mean_of_normalised_tokens_is_computed(timm, weights, same, tmp_path):
    made = weights("cls")
    made = replace(made, config=replace(made.config, pooling="avg"))
    files.write(made, tmp_path / "t.pth", "timm")
    options = torch_export.timm_model(made.config)[1]
    model = vit(timm, **{name: options[name] for name in ("num_classes", "global_pool", "fc_norm")})
    model.load_state_dict(torch.load(tmp_path / "t.pth", weights_only=True))
    back = files.read(tmp_path / "t.pth")
    assert back.config.pooling == "avg"
    close(model_of(back)(ours()), model(torch.from_numpy(X)))
    for layout in ("fair", "hf"):
        with pytest.raises(WeightsError, match="convert to timm or maejax"):
            files.write(made, tmp_path / layout, layout)


def test_the_readmes_example_works_to_the_letter(timm, weights, same, tmp_path):
    made = weights("mae", image_size=[32, 32], patch_size=8)
    files.write(made, tmp_path / "run-best.msgpack", "original")

    def script(name, *args):
        return subprocess.run(
            [sys.executable, ROOT / "scripts" / name, *args], cwd=tmp_path, check=True, capture_output=True, text=True
        )

    told = script("convert_flax_to_pytorch.py", "run-best.msgpack").stderr
    assert "LayerScale is written as 1" in told and "head is written as zeros" in told
    size = {"img_size": 32, "patch_size": 8}
    model = vit(timm, num_classes=1000, init_values=1e-4, **size)
    state = torch.load(tmp_path / "run-best.pth", weights_only=True)
    assert str(model.load_state_dict(state)) == "<All keys matched successfully>"
    script("convert_flax_to_pytorch.py", "run-best.msgpack", "--plain")
    plain = vit(timm, num_classes=0, **size)
    plain.load_state_dict(torch.load(tmp_path / "run-best.pth", weights_only=True))
    x = np.random.default_rng(2).normal(size=(2, 3, 32, 32)).astype(np.float32)
    close(model_of(made).encode(ours(x)), plain(torch.from_numpy(x)))
    close(model_of(made).encode(ours(x)), model.forward_features(torch.from_numpy(x))[:, 0])
    (tmp_path / "run-best.msgpack").unlink()
    script("convert_pytorch_to_flax.py", "run-best.pth")
    back = files.read(tmp_path / "run-best.msgpack").arrays
    same(back, {name: array for name, array in made.arrays.items() if name in back})


@pytest.mark.slow
def test_the_readmes_example_works_at_its_own_size(timm, weights, tmp_path):
    name = "pretrain-vit-l16-224-in1k-800ep-best"
    made = weights("mae", image_size=[224, 224], patch_size=16, dim=1024, layers=24, heads=16)
    made = replace(made, arrays={n: a if a.ndim < 3 else a / 10 for n, a in made.arrays.items()})
    files.write(made, tmp_path / f"{name}.msgpack", "original")
    script = ROOT / "scripts/convert_flax_to_pytorch.py"
    subprocess.run([sys.executable, script, f"{name}.msgpack"], cwd=tmp_path, check=True)
    model = timm.create_model("vit_large_patch16_224", init_values=1e-4).eval()
    state = torch.load(tmp_path / f"{name}.pth", weights_only=True)
    assert str(model.load_state_dict(state)) == "<All keys matched successfully>"
    x = np.random.default_rng(2).normal(size=(2, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        close(model_of(made).encode(ours(x), None), model.forward_features(torch.from_numpy(x)))


@pytest.mark.parametrize("kind", ["mae", "encoder", "cls"])
def test_transformers_computes_the_same(transformers, weights, same, tmp_path, kind):
    square = {"image_size": [16, 16]}
    made = weights(kind, **square)
    files.write(made, tmp_path / "hf", "hf")
    name = {"mae": "ViTMAEForPreTraining", "encoder": "ViTModel", "cls": "ViTForImageClassification"}[kind]
    extra = {"add_pooling_layer": False} if kind == "encoder" else {}
    model, info = getattr(transformers, name).from_pretrained(tmp_path / "hf", output_loading_info=True, **extra)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    x, mine = X[..., :16], model_of(made)
    model.eval()
    with torch.no_grad():
        if kind == "mae":
            noise = np.random.default_rng(2).random((2, 16)).astype(np.float32)
            out = model(torch.from_numpy(x), noise=torch.from_numpy(noise))
            order = np.argsort(noise, axis=1)
            theirs = np.take_along_axis(out.logits.numpy(), order[:, 4:, None], axis=1)
            close(mine(ours(x), jnp.asarray(order)).prediction, torch.from_numpy(theirs))
            close(mine(ours(x), jnp.asarray(order)).loss.mean(), out.loss)
        elif kind == "encoder":
            close(mine.encode(ours(x), None), model(torch.from_numpy(x)).last_hidden_state)
        else:
            close(mine(ours(x)), model(torch.from_numpy(x)).logits)
    model.save_pretrained(tmp_path / "saved")
    same(files.read(tmp_path / "saved").arrays, made.arrays)


@pytest.mark.parametrize(
    "kind, channels", [*((k, 3) for k in ("mae", "encoder", "cls", "gap", "probe")), ("mae", 1), ("cls", 4)]
)
def test_the_code_on_a_model_card_loads_the_folder(timm, transformers, weights, tmp_path, monkeypatch, kind, channels):
    made, folder = weights(kind, image_size=[16, 16], channels=channels), tmp_path / "hub"
    monkeypatch.chdir(tmp_path)
    Image.new("RGBA", (40, 60), "red").save("photo.png")
    card = hub.describe(made, str(folder), data={}, recipe={}, numbers={})
    hub.write_folder(made, folder, card)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name: f"{repository}/{name}")
    x, mine = np.resize(X, (2, channels, 16, 16)), model_of(made)
    for code in re.findall(r"```python\n(.*?)```", card, re.S):
        found = {}
        exec(code.replace("photo.jpg", "photo.png"), found)
        theirs = found.get("encoder", found["model"]).eval()(torch.from_numpy(x))
        head = kind in ("cls", "gap", "probe")
        theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.logits if head else theirs[0][:, 0]
        close(mine(ours(x)) if head else mine.encode(ours(x)), theirs)


def test_a_shape_that_transformers_cannot_compute_is_for_timm_alone(weights, tmp_path):
    made = weights("mae")
    with pytest.raises(WeightsError, match="vit_mae is for square images alone; convert to timm"):
        files.write(made, tmp_path / "hf", "hf")
    card = hub.describe(made, "wide", data={}, recipe={}, numbers={})
    assert "transformers import" not in card and "library_name: timm" in card
    assert "for timm alone" in hub.write_folder(made, tmp_path / "hub", card)[0]


@pytest.mark.parametrize("ratio", [0.875, 1.0])
def test_exported_processors_prepare_photos_as_validation_does(timm, transformers, weights, tmp_path, ratio):
    """Pixel by pixel; where the border is odd, transformers rounds its half down, and its crop is one pixel beside."""
    if not PHOTOS.exists():
        pytest.skip(f"{PHOTOS} is not there")
    made = replace(weights("encoder", image_size=[96, 96], mean=[0.0] * 3, std=[1.0] * 3), test_crop_ratio=ratio)
    files.write(made, tmp_path / "hf", "hf")
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    code = re.search(r"transform = (.*)", hub.loading(made, "x")[1])[1]
    transform = eval(code, {"timm": timm})
    with tarfile.open(PHOTOS) as tar:
        photos = [tar.extractfile(m).read() for m in [m for m in tar if m.name.endswith(".jpg")][:400:25]]
    for data in photos:
        photo = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        wanted = build_eval((96, 96), ratio)(np.asarray(photo), np.random.default_rng()).astype(float)
        through_timm = 255 * transform(photo).numpy().transpose(1, 2, 0)
        assert np.abs(through_timm - wanted).mean() < 0.3
        found = 255 * theirs(photo, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        shifts = [(y, x) for y in (0, 1) for x in (0, 1)]
        assert min(np.abs(found[y:, x:] - wanted[: 96 - y, : 96 - x]).mean() for y, x in shifts) < 0.3


@pytest.mark.parametrize("kind", ["mae", "cls", "gap", "probe"])
def test_the_authors_files_come_back_bit_by_bit(weights, same, tmp_path, kind):
    made = weights(kind)
    files.write(made, tmp_path / "f.pth", "fair")
    assert torch.load(tmp_path / "f.pth", weights_only=True).keys() == {"model", "maejax.model"}
    back = files.read(tmp_path / "f.pth")
    assert back.config == made.config
    same({n: a for n, a in back.arrays.items() if n != "head_norm.batches"}, made.arrays)


def test_positions_are_interpolated_as_pytorch_does():
    table = np.random.default_rng(0).normal(size=(1, 25, 8)).astype(np.float32)
    grid = torch.from_numpy(table[:, 1:].reshape(1, 4, 6, 8)).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid, size=(7, 5), mode="bicubic", align_corners=False)
    close(resize_positions(table, (4, 6), (7, 5))[:, 1:], theirs.permute(0, 2, 3, 1).reshape(1, 35, 8))


def test_the_example_of_pytorch(timm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example = runpy.run_path(str(ROOT / "examples/pytorch_finetune.py"))
    assert example["main"](steps=3, count=64) < 1e-5  # features of norm 1 and more
