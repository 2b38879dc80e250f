"""Training from Python does what the command does, on images of one's own, and goes on where it stopped."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import maejax
from maejax.errors import InputError
from maejax.models.classifier import ImageClassifier
from maejax.models.trees import named_arrays
from maejax.training.log import read_metrics

SIZES = {"image_size": 16, "patch_size": 4, "layers": 2, "dim": 16, "heads": 2}
DECODER = {"dec_layers": 1, "dec_dim": 8, "dec_heads": 2}
STEPS = {"train_batch_size": 8, "valid_batch_size": 8, "warmup_steps": 2, "training_steps": 6, "learning_rate": 0.05}
RUN = {**STEPS, "log_interval": 1, "save_interval": 2, "train_loader_workers": 2, "valid_loader_workers": 0}
TINY = {**SIZES, **DECODER, **RUN, "quiet": True}


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch, one_step_each):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def pixels(images):
    return np.load(images)["images"]


def losses(run):
    return read_metrics(Path(run) / "metrics.jsonl", "train/loss")


def arrays(model):
    return {name: np.asarray(array) for name, array in named_arrays(model).items()}


def test_it_trains_as_the_command_does(pixels, trained_once):
    seen = {}
    run = maejax.train(train_dataset_shards=pixels, callbacks=[seen.__setitem__], **TINY)
    assert run.done and run.directory == Path("runs/pretrain")
    assert losses(run.directory) == losses(trained_once)
    assert [line["train/loss"] for line in run.metrics] == [seen[step]["train/loss"] for step in range(1, 7)]
    theirs = arrays(maejax.load(trained_once))
    assert all((theirs[name] == array).all() for name, array in arrays(run.model).items())


def test_what_is_gone_through_goes_on_where_a_callback_stopped_it(pixels):
    def again():
        return (pixels[i : i + 5] for i in range(0, 24, 5))

    whole = maejax.train(train_dataset_shards=again, name="whole", **TINY)
    stopped = maejax.train(train_dataset_shards=again, name="parts", callbacks=[lambda step, _: step >= 2], **TINY)
    assert whole.done and not stopped.done and len(stopped.metrics) < 6
    assert maejax.train(train_dataset_shards=again, name="parts", **TINY).done
    assert losses("runs/parts") == losses("runs/whole")

    def fails(step, metrics):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):  # an error of the user's is the user's
        maejax.train(train_dataset_shards=again, name="fails", callbacks=[fails], **TINY)


def test_a_model_is_created_started_from_and_saved(pixels, idle):
    model = maejax.create(**SIZES, **DECODER, norm_pix_loss=True, init_seed=3)
    with idle():
        fresh = maejax.train(train_dataset_shards=pixels, name="fresh", init_seed=3, norm_pix_loss=True, **TINY)
        changed = jax.tree.map(lambda array: array + 1, model)
        run = maejax.train(train_dataset_shards=pixels, model=changed, name="from", quiet=True, **RUN)
    assert all(np.allclose(array, arrays(model)[name], atol=1e-6) for name, array in arrays(fresh.model).items())
    assert run.model.config == model.config
    assert all((array == arrays(changed)[name]).all() for name, array in arrays(run.model).items())
    assert maejax.save(changed, "x.safetensors") == []
    assert all((array == arrays(changed)[name]).all() for name, array in arrays(maejax.load("x.safetensors")).items())
    for path, layout, said in (
        ("x.pth", "maejax", "name a .safetensors file"),
        ("x.pth", "torch", "--to torch: choose one of"),
    ):
        with pytest.raises(InputError, match=said):
            maejax.save(model, path, to=layout)
    with pytest.raises(InputError, match="save writes a model of maejax, not dict"):
        maejax.save({}, "x.safetensors")  # type: ignore[arg-type]


def test_a_classifier_learns_from_pairs(pixels, idle):
    pairs = [(image, "abc"[i % 3]) for i, image in enumerate(pixels)]
    with idle():
        run = maejax.train(
            train_dataset_shards=pairs, mode="linear", hold_out=8, optimizer="adamw", quiet=True, **SIZES, **RUN
        )
    assert isinstance(run.model, ImageClassifier) and run.model.classes == ("a", "b", "c")
    assert "val/acc1" in run.metrics[-1] and json.loads(Path("runs/linear/config.json").read_text())["images"] == 16


def border(key, batch, grid):
    middle = jnp.zeros(grid).at[1:-1, 1:-1].set(1).reshape(1, -1)
    return jnp.argsort(middle + jax.random.uniform(key, (batch, grid[0] * grid[1])), axis=1)


def grey(images):
    size = images.shape[1] // 4
    return images.mean(-1).reshape(-1, size, 4, size, 4).transpose(0, 1, 3, 2, 4).reshape(len(images), size**2, 16)


class Plain(nnx.Module):
    def __init__(self, config, rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (config.encoder.dim, config.values)))

    def __call__(self, latent, order, key, predicted):
        return jnp.repeat(latent.mean(1, keepdims=True) @ self.kernel[...], predicted, axis=1)


def test_a_mask_a_target_and_a_decoder_of_ones_own(pixels):
    code = {"mask": border, "target": grey, "decoder": Plain}
    data = maejax.Dataset(pixels)
    run = maejax.train(train_dataset_shards=data, valid_dataset_shards=data, name="own", **code, **TINY)
    flags = json.loads(Path("runs/own/config.json").read_text())["flags"]
    assert flags["mask"].endswith(":border") and flags["decoder"].endswith(":Plain")
    model = run.model
    x = model.normalize(pixels)
    order = np.asarray(border(jax.random.key(0), 24, (4, 4)))
    assert {*order[:, :4].ravel()}.isdisjoint({5, 6, 9, 10})  # the middle is hidden
    out = model(x, order)
    target = np.take_along_axis(np.asarray(grey(x)), order[:, 4:, None], axis=1)
    np.testing.assert_allclose(out.loss, ((out.prediction - target) ** 2).mean((1, 2)), rtol=1e-5)
    maejax.save(model, "own.safetensors")
    for place in ("runs/own", "own.safetensors"):
        again = maejax.load(place, decoder=Plain, target=grey)
        assert np.array_equal(again(x, order).loss, out.loss)
        assert np.array_equal(maejax.load(place).encode(x), model.encode(x))  # the encoder alone
    with pytest.raises(InputError, match="the decoder of these weights is not custom"):
        maejax.save(maejax.create(**SIZES, **DECODER), "plain.safetensors")
        maejax.load("plain.safetensors", decoder=Plain)
    for wrong, said in (
        ({"mask": lambda key, batch, grid: jnp.zeros((batch, 16))}, "each of 0 to 15 once"),
        ({"mask": lambda key, batch, grid: 1 / 0}, "ZeroDivisionError: division by zero"),
        ({"target": lambda images: images.nothing}, "fails on images float32 [1, 16, 16, 3]: AttributeError"),
        ({"decoder": grey}, "another configuration"),
        ({"mask": "blok"}, "mask='blok': give one of"),
        ({"eval_only": True}, "eval_only is for the command"),
    ):
        with pytest.raises(InputError) as error:
            name = "own" if "decoder" in wrong else "wrong"
            maejax.train(train_dataset_shards=pixels, name=name, **{**code, **wrong}, **TINY)
        assert said in str(error.value)
