"""Pre-training from the command line: the run directory, going on where it stopped, validation that counts."""

import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import maejax
from maejax.models import masking
from maejax.models.trees import named_arrays
from maejax.tasks.masks import Masks
from maejax.tasks.validation import fixed_order
from maejax.training.checkpoint import saved_steps
from maejax.training.log import read_metrics

from .. import conftest
from ..bounds import assert_close

RUN = Path("runs/pretrain")


def losses(run=RUN):
    return dict(read_metrics(run / "metrics.jsonl", "train/loss"))


def arrays_of(run):
    return {name: np.asarray(array) for name, array in named_arrays(maejax.load(run)).items()}


def test_a_run_directory_explains_itself(train, images):
    code, printed = train("--valid-dataset-shards", images, "--eval-interval", 3, "--norm-pix-loss", "--project", "p")
    assert code == 0, printed
    config = json.loads((RUN / "config.json").read_text())
    assert config["flags"]["norm_pix_loss"] is True and config["flags"]["project"] == "p"
    assert config["flags"]["adam_b2"] == 0.95 and config["model"]["encoder"]["dim"] == 16
    assert list(losses()) == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in read_metrics(RUN / "metrics.jsonl", "val/loss")] == [3, 6]
    last = json.loads((RUN / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["processed_samples"] == 48 and last["data/bad_images"] == 0 and last["train/learning_rate"] > 0
    assert saved_steps(RUN / "checkpoints") == [2, 4, 6]
    with Image.open(RUN / "images" / "6.png") as picture:
        assert picture.width > 4 * 64
    assert "6 steps = 2.0 epochs" in printed and "peak 0.00156 = 0.05 x 8 / 256" in printed


def test_training_from_scratch_loads_no_converter(images, tmp_path):
    program = (
        "import sys; from maejax.cli import main\n"
        "for mode in ('pretrain', 'finetune'):\n"
        "    assert main(['train', '--mode', mode, *sys.argv[1:]]) == 0\n"
        "loaded = [name for name in sys.modules if name.startswith('maejax.weights')]\n"
        "assert not loaded, loaded"
    )
    flags = ["--train-dataset-shards", images, *conftest.TINY, "--training-steps", "1", "--layers", "1"]
    flags += ["--auto-augment", "none"]  # its policies need timm
    subprocess.run([sys.executable, "-c", program, *map(str, flags)], cwd=tmp_path, check=True)


def test_the_same_command_goes_on_bit_for_bit(train):
    assert train("--name", "whole", "--dropout", 0.1, "--droppath", 0.1)[0] == 0
    # Stop in the middle of the schedule, and start the same command again with other workers.
    flags = ["--name", "parts", "--dropout", 0.1, "--droppath", 0.1]
    assert train(*flags)[0] == 0
    for step in (4, 6):
        Path(f"runs/parts/checkpoints/{step}").rename(f"{step}.gone")
    before = losses(Path("runs/parts"))
    code, printed = train(*flags, "--train-loader-workers", 0)
    assert code == 0 and "continuing runs/parts from step 2 of 6" in printed
    assert losses(Path("runs/parts")) == before == losses(Path("runs/whole"))
    whole, parts = arrays_of("runs/whole"), arrays_of("runs/parts")
    assert all((whole[name] == parts[name]).all() for name in whole)
    # Nothing left to do: nothing changes.
    assert train(*flags)[0] == 0
    assert losses(Path("runs/parts")) == before


def test_a_stream_goes_on_where_it_stopped_and_keeps_no_secret(train, images, tmp_path):
    with np.load(images) as file:
        pictures = file["images"]
    for shard in range(3):
        with tarfile.open(tmp_path / f"s-{shard}.tar", "w") as tar:
            for i, picture in enumerate(pictures[shard * 8 : shard * 8 + 5 + shard]):
                buffer = io.BytesIO()
                Image.fromarray(picture).save(buffer, "PNG")
                member = tarfile.TarInfo(f"{i}.png")
                member.size = buffer.tell()
                tar.addfile(member, io.BytesIO(buffer.getvalue()))
    shards = f"pipe:TOKEN={{}} cat {tmp_path}/s-{{{{0..2}}}}.tar"
    code, printed = train("--train-dataset-shards", shards.format("abcdefgh"))
    assert code == 0 and "3 shards, batch 8, 6 steps\n" in printed
    before = losses()
    for step in (4, 6):
        (RUN / "checkpoints" / str(step)).rename(f"{step}.gone")
    again = shards.format("another")
    flags = ["--train-dataset-shards", again, "--valid-dataset-shards", again, "--train-loader-workers", 0]
    code, printed = train(*flags)
    assert code == 0 and "from step 2 of 6" in printed, printed
    assert losses() == before
    config = (RUN / "config.json").read_text()
    assert "TOKEN=*** cat" in config and "another" not in config and "abcdefgh" not in config
    last = json.loads((RUN / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["data/lost_shards"] == 0


def test_parts_of_a_batch_give_the_run_of_the_whole(train):
    sgd = ("--optimizer", "sgd", "--learning-rate", 1)  # Adam would blow up the rounding of gradients near zero
    assert train(*sgd, "--name", "whole")[0] == train(*sgd, "--name", "parts", "--grad-accum", 2)[0] == 0
    assert_close(arrays_of("runs/parts"), arrays_of("runs/whole"))


def test_a_step_draws_one_of_four_mask_ratios(train, images):
    flags = "--decoder cross --predict-share 0.5 --image-mask-ratio 0.5 0.9 --mask noise --optimizer sgd".split()
    flags += ["--learning-rate", 1, "--layers", 1, "--valid-dataset-shards", images]
    code, printed = train(*flags, "--name", "whole")
    assert code == 0, printed
    config = json.loads(Path("runs/whole/config.json").read_text())
    assert config["model"]["mask_ratio"] == 0.7 and config["flags"]["image_mask_ratio"] == [0.5, 0.9]
    assert config["model"]["decoder"]["attention"] == "cross" and Path("runs/whole/images/6.png").exists()
    masks = Masks(0, "noise", (4, 4), (8, 5, 3, 1))
    assert {int(masks.ratio(step)) for step in range(40)} == {0, 1, 2, 3}
    # All parts of a batch have the ratio of its step, and a run goes on with it.
    assert train(*flags, "--name", "parts", "--grad-accum", 2, "--valid-dataset-shards", "")[0] == 0
    assert_close(arrays_of("runs/parts"), arrays_of("runs/whole"))
    whole = arrays_of("runs/whole")
    shutil.rmtree("runs/whole/checkpoints/6")
    code, printed = train(*flags, "--name", "whole", "--resume", "must")
    assert code == 0, printed
    assert all((whole[name] == array).all() for name, array in arrays_of("runs/whole").items())


def test_a_decoder_of_cross_attention_trains_split_over_devices(train, maejax):
    flags = "--decoder cross --predict-share 0.5 --optimizer sgd --learning-rate 1 --layers 1".split()
    assert train(*flags, "--name", "whole")[0] == train(*flags, "--name", "split", "--sharding", "fsdp")[0] == 0
    assert_close(arrays_of("runs/split"), arrays_of("runs/whole"))
    assert train(*flags, "--name", "half", "--precision", "bfloat16")[0] == 0
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save("mine.jpg")
    for command in (
        ("reconstruct", "runs/half", "mine.jpg", "--mask-ratio", 0.5),
        ("convert", "runs/half", "encoder.safetensors", "--to", "timm"),
        ("features", "runs/half", "mine.jpg", "--out", "features.npz"),
    ):
        code, printed = maejax(*command)
        assert code == 0, printed


def test_validation_counts_every_image_once_under_fixed_masks(train, images):
    train("--valid-dataset-shards", images, "--valid-batch-size", 16)  # 24 images: the last batch is padded
    model = maejax.load(RUN)
    with np.load(images) as file:
        pixels = file["images"]
    # test_crop_ratio .875 enlarges and crops, so compare at the loader's own pictures
    from maejax.data.augment import build_eval

    crop = build_eval((16, 16), 0.875)
    seen = np.stack([crop(image, np.random.default_rng(0)) for image in pixels])
    order = fixed_order(0, jnp.arange(24), (4, 4))
    expected = float(model(model.normalize(seen), order).loss.mean())
    assert_close(read_metrics(RUN / "metrics.jsonl", "val/loss")[-1][1], expected)
    assert len(np.unique(np.sort(order[:, :4], axis=1), axis=0)) > 12  # every image has its own mask


def test_weights_of_another_run_can_be_the_start(train, trained, idle):
    with idle():
        code, printed = train("--name", "second", "--pretrained-ckpt", trained)
    assert code == 0, printed
    first, second = arrays_of(trained), arrays_of("runs/second")
    assert all((first[name] == second[name]).all() for name in first)


def test_public_names_work_on_a_run(trained, images):
    model = maejax.load(Path(trained) / "checkpoints" / "4")
    with np.load(images) as file:
        pixels = file["images"][:3]
    x = maejax.normalize(pixels, model.mean, model.std)
    assert model.encode(x).shape == (3, 16) and model.encode(x, pool=None).shape == (3, 17, 16)
    order = maejax.masking.random(jax.random.key(0), 3, model.patches)
    out = model(x, order)
    assert out.loss.shape == (3,) and out.prediction.shape == (3, 12, 48)
    assert maejax.reconstruct(model, pixels, np.asarray(order)).pasted.shape == pixels.shape
    assert masking.random is maejax.masking.random


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, images):
    command = [
        sys.executable, conftest.ROOT / "src/main.py", "--mode", "pretrain", "--train_dataset_shards", images,
        *conftest.TINY, "--training-steps", "100000", "--save-interval", "100000",
    ]  # fmt: skip
    process = subprocess.Popen(
        [str(part) for part in command], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    metrics = tmp_path / RUN / "metrics.jsonl"
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=600)[0]
    assert process.returncode == 75, printed
    assert "stopped and saved in runs/pretrain; start the same command again to go on" in printed
    (step,) = saved_steps(tmp_path / RUN / "checkpoints")
    assert step == max(losses(tmp_path / RUN))
