"""No command leaves a secret of an address in any of its flags: in no file, no log, no event file.

For W&B, `tests/tasks/test_trackers.py` looks.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maejax.cli import COMMANDS

from ..conftest import TINY
from ..data.server import Server
from ..hub import Hub

SECRETS = ("passwordpassword", "signaturesignature", "tokentokentoken")
NO_ADDRESS = {"demo", "doctor", "recipe"}  # commands without a flag that takes one


@pytest.fixture
def address(images):
    """Serve a tar of the images; `address(name)` is a path there, with a password and a signature."""
    server, buffer = Server(), io.BytesIO()
    with np.load(images) as file, tarfile.open(fileobj=buffer, mode="w") as tar:
        for i, (picture, label) in enumerate(zip(file["images"], file["labels"], strict=True)):
            for suffix, data in (("png", png(picture)), ("cls", b"%d" % label)):
                member = tarfile.TarInfo(f"{i}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    server.files["/i.tar"] = buffer.getvalue()

    def named(name, path=None):
        if path is not None:
            server.files[f"/{name}"] = path.read_bytes()
        return f"{server.url.replace('://', '://me:passwordpassword@')}/{name}?X-Amz-Signature=signaturesignature"

    yield named
    server.stop()


def png(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_command_keeps_the_secrets_of_every_address(maejax, trained, address, tmp_path, monkeypatch, idle):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["maejax", address("i.tar")])  # `plan` writes its own command
    data, printed = address("i.tar"), []

    def run(command, *args, code=0):
        found, said = maejax(command, *args)
        assert found == code, said
        printed.append((command, said))

    both = ["--train-dataset-shards", data, "--valid-dataset-shards", data]
    run("convert", trained, "w.safetensors", "--to", "maejax")
    weights = address("w.safetensors", tmp_path / "w.safetensors")
    start = [*TINY, *both, "--pretrained-ckpt", weights, "--tensorboard", "--cache-dir", "shards"]
    start += ["--training-steps", 1, "--warmup-steps", 0]
    with idle():
        run("train", *start, "--mode", "finetune", "--labels", 3, "--auto-augment", "none")
    run("convert", "runs/finetune", "c.safetensors", "--to", "maejax")
    scored = address("c.safetensors", tmp_path / "c.safetensors")
    run("train", "--mode", "finetune", "--eval-only", "--pretrained-ckpt", scored, *both[2:], "--valid-batch-size", 8)
    picture = tmp_path / "one.png"
    picture.write_bytes(png(np.zeros((16, 16, 3), np.uint8)))
    run("data", data, "--image-size", 16, "--sample", 4)
    run("pack", data, "packed")
    run("reconstruct", weights, picture)
    run("inspect", weights)
    run("convert", weights, "t.safetensors", "--to", "timm")
    run("export", weights)
    run("export", "runs/finetune", "--out", "tuned-hub")
    hub = Hub()
    hub.roles["tokentokentoken"] = "write"
    with monkeypatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_TOKEN", "tokentokentoken")
        run("push", weights, "me/it")
    hub.stop()
    for name, pushed in hub.repositories["me/it"][-1].items():
        Path(name).write_bytes(pushed)
    run("features", weights, data, "--out", "f.npz")
    run("features", weights, data, "--out", "f.npy", "--part", "0/1")
    run("features", weights, data, "--out", "f.npy", "--gather")
    run("pack", data, "parts", "--part", "0/1")
    run("evaluate", weights, *both, "--protocol", "knn", "--no-control")
    run("compare", "runs/finetune", trained)
    run("launch", "--to", "docker", "--image", "i", "train", *both, code=2)
    run("plan", *start, "--topology", "cpu")
    # And in errors.
    gone = address("none.safetensors")
    for command in (["inspect", gone], ["data", address("none.tar")], ["serve", gone, "--images", data]):
        run(*command, code=2)

    assert {command for command, _ in printed} | NO_ADDRESS == set(COMMANDS)
    for secret in SECRETS:
        assert not [command for command, said in printed if secret in said]
        for path in tmp_path.rglob("*"):
            assert secret not in str(path)
            assert path.is_dir() or secret.encode() not in path.read_bytes(), path
