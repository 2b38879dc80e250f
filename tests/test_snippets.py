"""What the pages show works: messages as they are printed, and every command and snippet, shortened."""

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from .conftest import ROOT, TINY
from .gcs import Storage
from .hub import Hub
from .snippets import PAGES, blocks, transcripts

SHOWN = [(page, *found) for page, text in PAGES.items() for found in transcripts(text)]
RUN = [page for page, text in PAGES.items() if blocks(text, "bash", "python")]
# Stand-ins of tests/shortened.py beside maejax itself.
PROGRAMS = "maejax pip python python3 make nvidia-smi git gcloud ssh-keygen ssh-add kubectl docker sbatch".split()
# By the page and the first words: what tests/clusters and others execute for real, which takes machines or hours.
READ_ALONE = {("docs/clusters.md", "#!/bin/bash"), ("docs/data.md", "export HF_TOKEN")}


def photos(folder, kinds=("hat", "shoe"), count=12):
    """Write photos of noise, a folder for each class."""
    rng = np.random.default_rng(0)
    for kind in kinds:
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / kind / f"{i}.jpg")


@pytest.fixture
def place(tmp_path, monkeypatch, trained_once):
    """Make the folder in which the pages' commands are run: photos, pictures of other types, a run."""
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val", "test"):
        photos(tmp_path / "photos" / part)
    shutil.copytree("photos/train/hat", "flat")
    shutil.copy("flat/0.jpg", "photo.jpg")
    for name in ("phone/1.heic", "phone/2.heic", "scenes/bands.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("B02\nB03\nB04\nB08\n" * name.endswith("txt"))
    for i in range(12):
        np.save(f"scenes/{i}.npy", np.random.default_rng(i).integers(0, 9999, (24, 24, 4), np.uint16))
    shutil.copytree(trained_once, "runs/mine")
    return tmp_path


@pytest.mark.parametrize(("page", "command", "printed"), SHOWN, ids=[command for _, command, _ in SHOWN])
def test_messages_are_as_shown(page, command, printed, place, maejax, monkeypatch):
    if "JAX_PLATFORMS" in command:  # only a process of its own looks for devices
        command = [sys.executable, "-m", *command.split()[1:]]
        environment = os.environ | {"JAX_PLATFORMS": "cuda", "COLUMNS": "200"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        code, said = ended.returncode, ended.stdout + ended.stderr
    else:
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("HF_TOKEN_PATH", str(place / "none"))
        if "encoder.safetensors" in command:
            maejax("convert", "runs/mine", "encoder.safetensors", "--to", "timm")
        code, said = maejax(*command.split()[1:])
    assert code == 2, said
    for line in printed:
        pattern = ".*".join(map(re.escape, re.split(r"\s*\.\.\.\s*", line)))
        assert re.search(pattern, " ".join(said.split())), said


@pytest.fixture
def world(place, maejax):
    """Add what the blocks of the pages name: more runs and weights, shards, a hub, a bucket, programs."""
    for name in ("a", "b", "c", "demo"):
        shutil.copytree("runs/mine", f"runs/{name}")
    for run in (place / "runs").iterdir():
        (run / ".stand-in").touch()
    shutil.copytree("photos", "splits")
    shutil.copytree("photos", "labelled")
    shutil.copytree("photos", "imagenet")
    for name in ("hats", "shoes"):
        shutil.copytree(f"splits/train/{name[:-1]}", f"classes/{name}")
    (place / "sets/imagenet-1k-wds").mkdir(parents=True)
    assert maejax("pack", "classes", "shards")[0] == 0
    shard = next((place / "shards").glob("*.tar"))
    for number in range(4):
        shutil.copy(shard, f"sets/imagenet-1k-wds/imagenet1k-train-{number:04}.tar")
    shutil.copy(shard, "sets/imagenet-1k-wds/imagenet1k-validation-00.tar")
    weights = {"pretrain-vit-l16-224-in1k-800ep-best.msgpack": "original", "hf": "hf"}
    weights |= {"timm.safetensors": "timm", "mine.safetensors": "maejax"}
    authors = ("mae_pretrain_vit_base.pth", "mae_visualize_vit_large.pth", "mae_finetuned_vit_base.pth", "dino.pth")
    weights |= dict.fromkeys(authors, "fair") if find_spec("torch") else {}
    shutil.copytree("runs/mine", "normalised")  # as the pages say of the authors' files
    written = (place / "normalised/config.json").read_text().replace('"norm_pix_loss": false', '"norm_pix_loss": true')
    (place / "normalised/config.json").write_text(written)
    tuned = (
        "--mode finetune --pretrained-ckpt runs/mine --output-dir . --name tuned --train-dataset-shards photos/train"
    )
    assert maejax("train", *TINY, *tuned.split(), "--valid-dataset-shards", "photos/val")[0] == 0
    runs = {"mae_pretrain_vit_base.pth": "normalised", "mae_finetuned_vit_base.pth": "tuned"}
    for name, layout in weights.items():
        assert maejax("convert", runs.get(name, "runs/mine"), name, "--to", layout)[0] == 0
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in (place / "flat").iterdir()]
    table = pa.table({"image": pa.array(rows), "label": [0, 1] * (len(rows) // 2)})
    (place / "dogs/train").mkdir(parents=True)
    (place / "dogs/data").mkdir()
    pq.write_table(table, "dogs/data/train-0.parquet")
    with pa.ipc.new_stream("dogs/train/data-0.arrow", table.schema) as writer:
        writer.write_table(table)
    (place / "dogs/train/state.json").write_text('{"_data_files": [{"filename": "data-0.arrow"}]}')
    for name in ("config", "scripts", "benchmarks", "src", "constraints"):
        (place / name).symlink_to(ROOT / name)
    (place / ".venv/bin").mkdir(parents=True)
    for name in PROGRAMS:
        shim = place / ".venv/bin" / name
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/shortened.py {name} "$@"\n')
        shim.chmod(0o755)
    with Hub() as hub, Storage() as storage:
        hub.roles["secret"] = "write"
        for name, file in {
            "facebook/vit-mae-base": "hf",
            "timm/vit_small_patch16_224.dino": "timm.safetensors",
        }.items():
            files = [place / file] if (place / file).is_file() else list((place / file).iterdir())
            hub.put(name, {"model.safetensors" if len(files) == 1 else each.name: each.read_bytes() for each in files})
        for number in range(4):
            storage.objects["mine", f"sets/s-{number:04}.tar"] = shard.read_bytes()
        accounts = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "secret", "WANDB_MODE": "offline", **storage.environment}
        places = {"XDG_CACHE_HOME": f"{place}/cache", "GCS_DATASET_DIR": "sets", "GCS_MODEL_PATH": "runs/mine"}
        pod = {"POD_PROJECT": "p", "POD_ZONE": "z", "POD_NAME": "n", "POD_TYPE": "v4-64", "POD_BUCKET": "gs://b"}
        programs = {"PATH": f"{place}/.venv/bin:{os.environ['PATH']}", "REAL_MAKE": shutil.which("make") or "make"}
        shutil.copytree("runs", "stand-ins")
        yield os.environ | accounts | places | pod | programs


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_blocks_run(page, world):
    """Each block begins with the same runs; `photos/` has splits where a block names them, else classes."""
    for block in blocks(PAGES[page], "bash"):
        split = re.search(r"photos/(train|val|test)|DATA=", block)
        renew("photos", "splits" if split else "classes")
        renew("runs", "stand-ins")
        script = block.replace("scripts/pod ", f"{sys.executable} {ROOT}/tests/shortened.py pod ").replace(
            "| bash", "| cat"
        )
        script = re.sub(r"(?m)^(source .*|cd .*)$", "", script).replace("&& cd maejax", "").replace(" ...", "")
        alone = any(page == name and block.startswith(words) for name, words in READ_ALONE)
        command = ["bash", *(["-n"] if alone else []), "-euo", "pipefail", "-c", script]
        ended = subprocess.run(command, env=world, input="key\nkey\n", capture_output=True, text=True)
        print(f"--- {page}\n{script}\n{ended.stdout[-1500:]}")
        assert ended.returncode == 0, f"{page}:\n{script}\n{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    for block in blocks(PAGES[page], "python"):
        tree = ast.parse(block)
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        if imported == {"maejax"}:  # others are run by `make peers` and `make clusters`
            renew("runs", "stand-ins")
            before = "import jax, numpy as np\nkey = jax.random.key(0)\nimages = np.zeros((2, 16, 16, 3), np.uint8)\n"
            subprocess.run([sys.executable, "-c", before + block], env=world, check=True)


def renew(folder, of):
    """Make a folder the copy of another."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(of, folder)
