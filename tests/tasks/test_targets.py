"""What is predicted: principal components, features of a frozen teacher and of the running average, all patches."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import maejax
from maejax.models import masking
from maejax.models.build import initial_model
from maejax.models.description import MAE, Decoder, ViT
from maejax.models.flops import pretrain_flop
from maejax.models.targets import standardized
from maejax.models.trees import named_arrays
from maejax.training.log import read_metrics

from ..bounds import assert_close, rounding

RUN = Path("runs/pretrain")
VIT = {"image_size": (16, 24), "patch_size": 4, "dim": 16, "layers": 2, "heads": 2}


def arrays_of(run):
    return {name: np.asarray(array) for name, array in named_arrays(maejax.load(run)).items()}


def test_principal_components_are_those_of_the_patches(train, maejax, images):
    code, printed = train("--target", "pca", "--valid-dataset-shards", images)
    assert code == 0, printed
    arrays, pixels = arrays_of(RUN), np.load(images)["images"]
    patches = pixels.reshape(24, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 48) / 255
    mean, std = (np.tile(values, 16) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    patches = (patches - mean) / std
    assert_close(arrays["components.mean"], patches.mean(0))
    basis = arrays["components.basis"]  # 48 of 48: nothing is lost
    assert basis.shape == (48, 48) and arrays["predict.kernel"].shape == (8, 48)
    assert_close(basis.T @ basis, np.eye(48))
    spread = ((patches - patches.mean(0)) @ basis).std(0)
    assert (np.diff(spread) < 1e-4).all()
    with Image.open(RUN / "images" / "6.png") as picture:
        assert picture.width > 4 * 128
    whole, _ = arrays_of(RUN), shutil.rmtree(RUN / "checkpoints" / "6")
    assert train("--target", "pca", "--valid-dataset-shards", images)[0] == 0
    assert all((whole[name] == array).all() for name, array in arrays_of(RUN).items())
    code, printed = maejax("convert", RUN, "out.pth", "--to", "fair")
    assert code == 2 and "predicts components" in printed
    for flags, said in (
        (("--norm-pix-loss", "--target", "pca"), "patches are normalised one by one"),
        (("--target", "runs/none"), "runs/none does not exist"),
        (("--target-decay", 0.9), "--target-decay 0.9 is for --target ema"),
        (("--target", "ema", "--target-decay", 1), "give 0 or more, below 1"),
        (("--dec-inputs", "last"), "--dec-inputs last is for --decoder cross"),
        (("--predict-share", 0.5), "predicted by a cross-attention decoder alone"),
        (("--decoder", "cross", "--loss-on", "all"), "has mask tokens of its own"),
    ):
        code, printed = train(*flags, "--name", "wrong")
        assert code == 2 and said in printed, printed


def test_a_teacher_is_read_kept_and_left_alone(train, maejax, images, idle):
    with idle():
        assert train("--name", "teacher", "--layers", 1, "--dim", 24, "--registers", 1)[0] == 0
    flags = ("--target", "runs/teacher", "--valid-dataset-shards", images)
    code, printed = train(*flags)
    assert code == 0, printed
    teacher, arrays = arrays_of("runs/teacher"), arrays_of(RUN)
    own = {name for name in arrays if name.startswith("teacher.")}
    assert {name.replace("teacher.", "encoder.") for name in own} == {n for n in teacher if n.startswith("encoder.")}
    assert all((arrays[name] == teacher[name.replace("teacher.", "encoder.")]).all() for name in own)
    assert json.loads((RUN / "config.json").read_text())["model"]["teacher"]["dim"] == 24
    assert not (RUN / "images").exists() and len(read_metrics(RUN / "metrics.jsonl", "val/loss")) == 1
    shutil.rmtree("runs/teacher")  # it is in the run
    shutil.rmtree(RUN / "checkpoints" / "6")
    code, printed = train(*flags)
    assert code == 0, printed
    assert all((arrays[name] == array).all() for name, array in arrays_of(RUN).items())
    for args, said in (
        (("reconstruct", RUN, images), "predicts features"),
        (("convert", RUN, "o.pth", "--to", "fair"), "predicts features"),
    ):
        code, printed = maejax(*args)
        assert code == 2 and said in printed, printed
    assert maejax("convert", RUN, "o.safetensors", "--to", "timm")[0] == 0


def test_the_running_average_follows_the_encoder(train):
    code, printed = train("--target", "ema", "--target-decay", 0.5, "--training-steps", 2, "--save-interval", 1)
    assert code == 0, printed
    first, last = (arrays_of(RUN / "checkpoints" / step) for step in ("1", "2"))
    for name in [name for name in last if name.startswith("teacher.")]:
        encoder = last[name.replace("teacher.", "encoder.")]
        assert_close(last[name], first[name] + 0.5 * (encoder - first[name]), name=name)
        assert (first[name] == first[name.replace("teacher.", "encoder.")]).all()  # the first step has a rate of 0
    assert (last["teacher.embed.kernel"] != last["encoder.embed.kernel"]).any()


def test_features_are_those_of_the_whole_image_and_carry_no_gradient():
    teacher = ViT(**VIT | {"image_size": (8, 12), "patch_size": 2, "dim": 20, "mean": (0.1, 0.2, 0.3)})
    config = MAE(encoder=ViT(**VIT), decoder=Decoder(dim=8, layers=1, heads=2), target="features", teacher=teacher)
    model, order = initial_model(config), masking.random(jax.random.key(0), 2, 24)
    images = jax.random.randint(jax.random.key(1), (2, 16, 24, 3), 0, 256).astype(jnp.uint8)
    wanted = jnp.asarray((np.asarray(images) / 255 - [0.1, 0.2, 0.3]) / [0.229, 0.224, 0.225], jnp.float32)

    @jax.jit
    def targets(model):
        tokens = model.teacher(jax.image.resize(wanted, (2, 8, 12, 3), "cubic"))[:, 1:]
        expected = jnp.take_along_axis(standardized(tokens), order[:, -3:, None], 1)
        return expected, [model.target(x, order[:, -3:]) for x in (images, model.normalize(images))]

    expected, found = targets(model)
    assert_close(found, [expected, expected], rounding(10_000))
    grads = named_arrays(jax.jit(jax.grad(lambda m: m(images, order).loss.mean()))(model))
    assert not any(array.any() for name, array in grads.items() if name.startswith("teacher."))


def test_mask_tokens_in_the_encoder_and_loss_on_all_patches():
    decoder = Decoder(dim=8, layers=2, heads=2)
    config = MAE(encoder=ViT(**VIT), decoder=decoder, mask_tokens="encoder", loss_on="all")
    model, order = initial_model(config), masking.random(jax.random.key(0), 2, 24)
    x = jax.random.normal(jax.random.key(1), (2, 16, 24, 3))
    latent_of, forward = jax.jit(type(model).latent), jax.jit(type(model).__call__)
    out, latent = forward(model, x, order), latent_of(model, x, order)
    assert out.prediction.shape == (2, 24, 48) and latent.shape == (2, 25, 16)
    assert_close(out.loss, ((out.prediction - model.target(x, order)) ** 2).mean((1, 2)))
    assert jax.eval_shape(lambda: model(x, order, every=True)).prediction.shape == (2, 18, 48)
    hidden = jnp.where(jnp.isin(jnp.arange(24), order[0, :6]).reshape(1, 4, 6, 1), 0.0, 9.0).repeat(4, 1).repeat(4, 2)
    assert_close(latent_of(model, x + hidden, order)[0], latent[0], rounding(1000))
    large = ViT(dim=1024, layers=24, heads=16)
    ratio = pretrain_flop(MAE(encoder=large, mask_tokens="encoder")) / pretrain_flop(MAE(encoder=large))
    assert ratio == pytest.approx(3.3, abs=0.1)  # Table 1c
