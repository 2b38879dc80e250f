"""The command line: help that reads, both spellings, the original's presets, and bad input before any long work."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from maejax.cli import COMMANDS, main
from maejax.commands.command import help_of
from maejax.config import Config
from maejax.errors import Failed
from maejax.models import mae

from .conftest import ROOT, TINY


@pytest.fixture
def no_compilation(monkeypatch):
    """Fail where a model is run: bad input is found before."""

    def refuse(*_):
        raise AssertionError("the model was run")

    monkeypatch.setattr(mae.MaskedAutoencoder, "__call__", refuse)


@pytest.mark.usefixtures("no_compilation")
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--train-dataset-shards", ""], "--train-dataset-shards is missing"),
        (["--train-dataset-shards", "nowhere/{00..03}.tar"], "nowhere/00.tar"),
        (["--train-dataset-shards", "s3://bucket/a.tar"], r"a.tar: s3:// needs .* pip install 'maejax\[s3\]'"),
        (["--patch-size", "5"], "patches of 5 pixels do not divide an image of 16 x 16"),
        (["--heads", "3"], "3 heads do not divide a width of 16"),
        (["--image-mask-ratio", "1.5"], "mask ratio 1.5"),
        (["--train-batch-size", "10"], "--train-batch-size 10 .* 4 devices; take 8 or 12"),
        (["--grad-accum", "3"], "--train-batch-size 8 .* 3 parts .* take 12"),
        (["--valid-dataset-shards", "{images}", "--valid-batch-size", "6"], "--valid-batch-size 6 .* take 4 or 8"),
        (["--image-size", "16by16"], "--image-size 16by16"),
        (["--mean", "0.5"], "3 channels need as many means"),
        (["--layer", "3"], r"--layer.*(\n.*)*--layers"),
        (["--layers", "three"], "--layers"),
        (["--mode", "train"], "--mode train: choose one of pretrain, linear, finetune"),
        (["--mixup", "0.8"], "--mixup 0.8: pre-training has no classifier"),
        (["--pooling", "gap"], "--pooling gap: pre-training has no classifier"),
        (["--random-erasing", "0.25"], "--random-erasing 0.25: pre-training has no classifier"),
        (["--auto-augment", "rand-m9", "--channels", "4"], "--auto-augment rand-m9 changes images of 1 or 3 channels"),
        (["--save-interval", "0"], "--save-interval 0: give at least 1"),
        (["--output-dir", "s3://bucket/runs"], r"--output-dir s3://bucket/runs: s3:// .* pip install 'maejax\[s3\]'"),
        (["--resume", "must"], "no checkpoint to resume from"),
        (["--pretrained-ckpt", "nothing"], "nothing does not exist: name a run directory"),
        (["--color-jitter", "0.4", "--channels", "4"], "--color-jitter works on 1 or 3 channels"),
    ],
    ids=lambda value: value[-2].lstrip("-") + "-" + value[-1][:12] if isinstance(value, list) else "",
)
def test_bad_flags_get_one_sentence(train, images, flags, sentence):
    code, printed = train(*[str(images) if flag == "{images}" else flag for flag in flags])
    assert code == 2, printed
    assert re.search(sentence, printed), printed
    assert "Traceback" not in printed
    assert not Path("runs/pretrain/checkpoints").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["features", "CKPT", "IMAGES", "--out", "nowhere://bucket/f.npz"],
        [
            "evaluate",
            "CKPT",
            "--train-dataset-shards",
            "A",
            "--valid-dataset-shards",
            "B",
            "--out",
            "nowhere://bucket/e",
        ],
        ["convert", "CKPT", "nowhere://bucket/w.safetensors"],
        ["export", "CKPT", "--out", "nowhere://bucket/hub"],
        ["reconstruct", "CKPT", "IMAGE", "--out", "nowhere://bucket/pictures"],
        ["data", "IMAGES", "--out", "nowhere://bucket/sheet.png"],
        ["pack", "IMAGES", "nowhere://bucket/shards"],
        ["plan", "--out", "nowhere://bucket/plan"],
        ["demo", "--output-dir", "nowhere://bucket/runs"],
    ],
    ids=lambda args: args[0],
)
def test_an_address_that_cannot_be_written_is_refused_at_once(maejax, args, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed = maejax(*args)
    assert code == 2 and re.search(r"(--\w+(-dir)?|OUT|DST) nowhere://bucket/\S+: .*", printed), printed
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_compilation")
def test_folders_without_usable_images_say_what_was_seen(train):
    Path("empty").mkdir()
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("no image")
    Path("broken").mkdir()
    Path("broken/a.jpg").write_bytes(b"no image")
    for folder, sentence in (("empty", "empty"), ("texts", r"\.txt"), ("broken", r"none of 1 images .*a\.jpg")):
        code, printed = train("--train-dataset-shards", folder)
        assert code == 2 and re.search(sentence, printed), printed


def test_an_unreadable_image_is_counted_and_named(train):
    Path("flat").mkdir()
    for i in range(15):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(f"flat/{i:02d}.png")
    Path("flat/99.jpg").write_bytes(b"no image")
    code, printed = train("--train-dataset-shards", "flat")
    assert code == 0, printed
    assert "1 unreadable images were left out, the first: " in printed and "99.jpg" in printed
    assert '"data/bad_images": 1.0' in Path("runs/pretrain/metrics.jsonl").read_text().splitlines()[-1]


def test_a_run_of_another_configuration_is_left_alone(train, trained):
    before = Path(trained, "config.json").read_text()
    code, printed = train("--dim", 32, "--learning-rate", 0.1)
    assert code == 2
    assert "--dim 16 -> 32; --learning-rate 0.05 -> 0.1" in printed
    assert Path(trained, "config.json").read_text() == before
    np.savez("more.npz", images=np.zeros((25, 16, 16, 3), np.uint8))
    code, printed = train("--train-dataset-shards", "more.npz")
    assert code == 2 and "images.npz -> more.npz; 24 training images -> 25" in printed, printed
    code, printed = train("--resume", "never")
    assert code == 2 and "checkpoints up to step 6" in printed
    code, printed = train("--name", "other", "--dim", 32, "--pretrained-ckpt", trained)
    assert code == 2 and "of another geometry than the flags say: give --dim 16" in printed


def test_a_loss_that_is_not_finite_ends_the_run(train):
    code, printed = train("--learning-rate", "1e30", "--optimizer", "sgd", "--warmup-steps", 0)
    assert code == 1, printed
    said = r"the loss is (nan|inf) at step \d, .*; first not finite: .*; on images\.npz:\d.*; nothing .*--learning-rate"
    assert re.search(said, printed), printed
    with np.load(next(Path("runs/pretrain/bad").glob("*-0.npz"))) as file:
        assert file["images"].shape == (8, 16, 16, 3) and file["order"].shape == (8, 16)


TITLES = ("MaskedAutoencoder", "Image Augmentations", "ViT Architecture", "MAE Decoder Architecture", "Optimization",
          "Random Seeds")  # fmt: skip


def test_help_reads_like_documentation(maejax):
    code, printed = maejax("--help")
    assert code == 0 and all(name in printed for name in COMMANDS)
    code, printed = maejax("train", "--help")
    assert code == 0
    for group in TITLES:  # of the original's README
        assert f" {group} options " in printed
    assert "Share of the patches that is hidden" in printed and "None" not in printed
    _, printed = maejax("train", "--mode", "finetune", "--help")
    assert "rand-m9-mstd0.5-inc1)" in printed  # the recipe of the mode is the default
    _, printed = maejax("plan", "--mode=finetune", "--help")
    assert "rand-m9-mstd0.5-inc1)" in printed
    _, printed = maejax("reconstruct", "--help")
    assert "[-h] [OPTIONS] CKPT IMAGE ..." in printed and "Image files. (required)" in printed
    for command, missing in (("features", "CKPT.*IMAGES"), ("inspect", "PATH"), ("convert", "IN.*OUT")):
        code, printed = maejax(command)
        assert code == 2 and re.search(missing, printed, re.DOTALL), printed


@pytest.mark.parametrize("args", ["", "train", "train --mode finetune", "evaluate"])
def test_help_fits_80_columns(maejax, monkeypatch, args):
    monkeypatch.setenv("COLUMNS", "80")
    code, printed = maejax(*args.split(), "--help")
    assert code == 0 and max(map(len, printed.splitlines())) <= 80 and "{None}|" not in printed, printed


def test_completion_knows_commands_and_flags(maejax):
    code, printed = maejax("--completion", "bash")
    assert not code and printed.endswith("complete -o default -F _tyro_maejax maejax\n")  # else no path is completed
    assert all(re.search(rf"\b{name}\b", printed) for name in (*COMMANDS, "training-steps"))
    code, printed = maejax("--completion", "tcsh")
    assert code == 2 and "--completion tcsh: name one of bash, zsh, fish" in printed


def test_every_flag_of_every_command_has_help():
    for name, kind in COMMANDS.items():
        for owner in (kind, *(field.default_factory for field in fields(Config) if name in ("train", "plan"))):
            assert owner.__doc__ and not owner.__doc__.startswith(owner.__name__ + "("), owner
            for field in fields(owner):
                assert help_of(owner, field.name).endswith((".", ".)")) or not field.init, (name, field.name)


def test_help_and_version_wait_for_no_library():
    """In a process of its own: nothing of JAX or NumPy is imported for help, for any command."""
    program = (
        "import sys\nfrom maejax.cli import COMMANDS, main\n"
        "for args in ([], *([name] for name in COMMANDS)):\n"
        "    try: main([*args, '--help'])\n"
        "    except SystemExit as exit: assert exit.code == 0, args\n"
        "    assert not {'jax', 'numpy', 'PIL', 'fsspec'} & set(sys.modules), args\n"
        "assert main(['--version']) == 0"
    )
    run = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True)
    assert run.returncode == 0 and re.search(r"\nmaejax [\d.]+( \(.*\))?\n\Z", run.stdout), run.stdout + run.stderr


# Every command that writes, with OUT in the place of what it writes.
WRITERS = {
    "train": "train --train-dataset-shards images.npz --output-dir OUT",
    "demo": "demo --output-dir OUT",
    "pack": "pack images.npz OUT",
    "data": "data images.npz --image-size 16 --out OUT/sheet.png",
    "reconstruct": "reconstruct runs/none mine.jpg --out OUT",
    "convert": "convert none.pth OUT/x.safetensors",
    "export": "export none.pth --out OUT",
    "features": "features runs/none images.npz --out OUT/x.npz",
    "evaluate": "evaluate runs/none --train-dataset-shards images.npz --valid-dataset-shards images.npz --out OUT",
    "plan": "plan --topology cpu --out OUT",
}


def forbid(monkeypatch):
    """Let nothing be written; permissions themselves do not stop the superuser."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)


@pytest.mark.usefixtures("no_compilation")
@pytest.mark.parametrize("command", WRITERS)
def test_a_place_that_cannot_be_written_is_named_before_any_work(maejax, images, monkeypatch, command):
    shutil.copy(images, "images.npz")
    places = {"images.npz/x": "Not a directory", "/proc/none": "No such file", "denied": "Permission denied"}
    for out, reason in places.items():
        if out == "denied":
            forbid(monkeypatch)
        code, printed = maejax(*WRITERS[command].replace("OUT", out).split())
        assert code == 2 and re.search(rf"{out}.*cannot be written: {reason}", printed), printed
        assert "Traceback" not in printed and printed.count("\n") == 1, printed


def test_errors_of_the_system_are_one_sentence(maejax, images, monkeypatch):
    """Those that no command expects: a wrong path is wrong input, all else came on the way."""
    for number, path, wanted in (
        (errno.EROFS, "runs/demo", (2, "maejax: runs/demo: Read-only file system\n")),
        (errno.ENOSPC, "runs/demo", (1, "maejax: runs/demo: No space left on device\n")),
        (errno.ECONNRESET, None, (1, "maejax: [Errno 104] Connection reset by peer\n")),
    ):
        error = OSError(number, os.strerror(number), path)
        monkeypatch.setattr("maejax.data.packing.pack", lambda *_, error=error, **__: throw(error))
        assert maejax("demo") == wanted or maejax("demo")[1].endswith(wanted[1])
    monkeypatch.setattr("maejax.data.packing.pack", lambda *_, **__: throw(KeyboardInterrupt()))
    code, printed = maejax("demo")
    assert code == 1 and printed.endswith("maejax: interrupted\n")


def throw(error):
    raise error


@pytest.mark.usefixtures("images")
def test_too_little_memory_is_one_sentence(maejax, train, monkeypatch):
    tpu = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 31G of 16G."
    for fail, sentence in (
        (lambda *_, **__: jnp.zeros(2**46).block_until_ready(), "out of memory allocating 281474976710656 bytes"),
        (lambda *_, **__: throw(RuntimeError(tpu)), r"out of memory in memory space hbm\. Used 31G of 16G"),
        (lambda *_, **__: throw(MemoryError()), "out of memory on this machine: nothing is left"),
    ):
        monkeypatch.setattr("maejax.data.packing.pack", fail)
        code, printed = maejax("demo")
        assert code == 1 and re.search(f"maejax: {sentence}; use a device with more memory\n$", printed), printed
    monkeypatch.setattr("maejax.tasks.pretrain.run", lambda *_, **__: throw(MemoryError("8 GB")))
    assert re.search(
        "maejax: out of memory on this machine: 8 GB; lower --train-batch-size .*--grad-accum 2", train()[1]
    )
    own = "loader process 0 died; if the host ran out of memory, lower --train-loader-workers"
    monkeypatch.setattr("maejax.data.packing.pack", lambda *_, **__: throw(Failed(own)))
    assert maejax("demo")[1].endswith(f"maejax: {own}\n")
    monkeypatch.setattr("maejax.data.packing.pack", lambda *_, **__: throw(RuntimeError("of another kind")))
    with pytest.raises(RuntimeError, match="of another kind"):
        maejax("demo")


def test_json_is_alone_on_stdout(monkeypatch, capfd):
    """Gloo, through which processes meet, prints lines of its own there."""
    monkeypatch.setattr("maejax.commands.doctor.DoctorCommand.run", lambda *_: {"ok": os.write(1, b"by Gloo\n")})
    assert main(["doctor", "--json"]) == 0
    printed, errors = capfd.readouterr()
    assert json.loads(printed) == {"ok": 8} and errors == "by Gloo\n"


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'x': why (set y)")])
def test_devices_that_jax_does_not_find_are_wrong_input(maejax, images, monkeypatch, error):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    monkeypatch.setattr("jax.devices", lambda: throw(error))
    shutil.copy(images, "images.npz")
    for command in (*WRITERS.values(), "inspect runs/none"):
        if command.startswith(("pack", "data")):
            continue  # they need no device
        code, printed = maejax(*command.replace("OUT", "out").split())
        assert code == 2, printed
        assert re.search("maejax: JAX_PLATFORMS=nonsense: .* no such device .* JAX_PLATFORMS=cpu", printed), printed
        assert ("'x': why);" in printed) == bool(str(error)) and printed.count("\n") == 1


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_jax_itself_fails_as_expected(platform):
    run = subprocess.run(
        [sys.executable, "-m", "maejax", "features", "runs/none", "images.npz", "--out", "x.npz"],
        env={**os.environ, "JAX_PLATFORMS": platform}, text=True, capture_output=True,
    )  # fmt: skip
    assert run.returncode == 2 and f"maejax: JAX_PLATFORMS={platform}: JAX finds no such device" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.usefixtures("no_compilation")
def test_wandb_without_a_login_is_wrong_input(train, tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, printed = train("--wandb")
    assert code == 2 and "--wandb has no login: run `wandb login`" in printed, printed


@pytest.mark.parametrize(
    "preset",
    ["pretrain-vit-b16-224-in1k-1600ep", pytest.param("pretrain-vit-l16-224-in1k-800ep", marks=pytest.mark.slow)],
)
def test_presets_run_with_tiny_overrides(tmp_path, images, preset):
    script = ROOT / "config/pretrain" / f"{preset}.sh"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # as in an activated environment
    run = subprocess.run(
        ["bash", script, *TINY, "--train_dataset_shards", images, "--valid_dataset_shards=", "--training_steps=2"],
        cwd=ROOT, env={**os.environ, "PATH": path, "GCS_DATASET_DIR": str(tmp_path)},
        text=True, capture_output=True, timeout=1200,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "CKPT" / preset / "checkpoints" / "2").is_dir()


def test_reconstruct_draws_the_users_images(train, maejax, images, idle):
    with idle():
        train("--norm-pix-loss")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save("mine.jpg")
    for mask, ratio in (("random", 0.75), ("block", 0.5), ("grid", 0.75), ("noise", 0.9)):
        args = ("runs/pretrain", "mine.jpg", "--out", mask, "--mask", mask, "--mask-ratio", ratio)
        code, printed = maejax("reconstruct", *args)
        assert code == 0 and printed == f"{mask}/000-mine.png\nnext     maejax serve runs/pretrain\n"
        with Image.open(f"{mask}/000-mine.png") as picture:
            assert picture.width > picture.height
    for args, sentence in (
        (["runs/none", "mine.jpg"], "runs/none does not exist"),
        (["runs/pretrain", "yours.jpg"], "cannot read yours.jpg"),
        (["runs/pretrain", images], "no image that can be read"),
        (["runs/pretrain"], "IMAGE is missing: name image files"),
        (["runs/pretrain", "."], "cannot read .: Is a directory"),
        (["runs/pretrain", "mine.jpg", "--mask", "half"], "invalid choice 'half' for argument '--mask'"),
        (["runs/pretrain", "mine.jpg", "--mask-ratio", 1], "--mask-ratio 1.0: mask ratio 1.0 leaves 0 of 16 patches"),
    ):
        code, printed = maejax("reconstruct", *args)
        assert code == 2 and sentence in printed, printed


def test_pack_and_train_on_the_shards(maejax, train, images):
    code, printed = maejax("pack", images, "shards", "--shard-size", 10)
    assert code == 0 and "24 images in 3 shards in shards\nnext     maejax train shards\n" in printed
    code, printed = maejax("pack", "shards", "--verify", "--json")
    assert code == 0 and "next" not in printed
    code, printed = maejax("data", "shards", "--channels", 1, "--image-size", 16, "--channels-first")
    assert "next     maejax train shards --channels-first --image-size 16 --channels 1\n" in printed
    assert train("--train-dataset-shards", "shards/shards-{0000..0002}.tar")[0] == 0


def test_what_a_shell_or_a_habit_makes_of_a_command_has_a_remedy(train, maejax, images):
    for args, sentence in (
        (["--epochs", "3"], "--epochs 3 and --training-steps say the same; leave one out"),
        (["--train-dataset-shards", images, images], "the shell made several names of one; put it in quotes"),
        (["--image-mask-ratio", "75"], "give a share, such as 0.75"),
        (["--image-size", "17"], "patches of 4 pixels do not divide an image of 17 x 17; take 16x16"),
    ):
        code, printed = train(*args)
        assert code == 2 and sentence in printed, printed
    code, printed = maejax("plan", "--epochs", "3")
    assert code == 2 and "--epochs: give --training-steps" in printed, printed
    code, printed = maejax("data", "a-0.tar", "a-1.tar")
    assert code == 2 and "data a-0.tar a-1.tar: the shell made several names of one" in printed, printed
    np.savez("first.npz", images=np.zeros((2, 3, 16, 16), np.uint8))
    code, printed = train("--train-dataset-shards", "first.npz")
    assert code == 2 and "channels first; give --channels-first, or save images.transpose(0, 2, 3, 1)" in printed, (
        printed
    )


def test_what_is_seldom_meant_is_said_and_what_comes_next(train, idle):
    flags = ["--warmup-steps", 9, "--train-batch-size", 32, "--learning-rate", 1.5e-4]
    with idle():
        code, printed = train(*flags)
    assert code == 0, printed
    for part in (
        "--warmup-steps 9 is no less than",
        "--train-batch-size 32 holds",
        "is that of ViT-B",
        "next     maejax",
    ):
        assert part in printed, printed
    code, printed = train(*flags)
    assert code == 0 and "runs/pretrain is finished, at step 6" in printed and "warning" not in printed, printed


def test_no_control_character_reaches_the_terminal(maejax):
    control = {*map(chr, [*range(9), *range(11, 32), *range(127, 160)])}
    name = "\x1b[31mcat\x07"
    for i, content in enumerate((b"", b"no image")):
        path = Path(f"photos/{name}/{i}\x9b2J.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    Image.new("RGB", (9, 9)).save(f"photos/{name}/good.png")
    for args in (("data", "photos"), ("inspect", name), ("data", name)):
        _, printed = maejax(*args)
        assert "cat" in printed and not set(printed) & control, args
