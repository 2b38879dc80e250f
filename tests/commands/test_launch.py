"""The files that `maejax launch` prints, as golden files, by the models of JobSet's API, and run with stand-ins."""

import os
import re
import shlex
import stat
import subprocess
import sys

import pytest
import yaml

from ..conftest import GOLDEN

TRAIN = (
    "train --name mine --train-dataset-shards gs://b/sets/s-{0000..0015}.tar --output-dir gs://b/runs "
    "--learning-rate 1e-3 --wandb"
)
FEATURES = "features gs://b/runs/mine gs://b/sets/photos --out gs://b/features.npz"
IMAGE = "--image ghcr.io/me/maejax:1"
# To make one anew: `maejax launch --to ... > tests/golden/launch/NAME`, with PYTHON in the place of the interpreter.
GPUS = "--hosts 2 --cpus 64 --memory 512 --env WANDB_API_KEY"
FILES = {
    "train.sbatch": f"--to slurm {GPUS} --gpus h100:8 --hours 36.5 {TRAIN}",
    "parts.sbatch": f"--to slurm --parts 16 --cpus 4 --hours 2 {FEATURES}",
    "train.jobset.yaml": f"--to jobset {GPUS} --gpus 8 {IMAGE} --mount sets:/data {TRAIN}",
    "slice.jobset.yaml": f"--to jobset --tpu v5litepod-16 {IMAGE} {TRAIN} --distributed",
    "parts.jobset.yaml": f"--to jobset --parts 16 --restarts 3 {IMAGE} {FEATURES}-$(HOME)",
    "slice.xpk.sh": f"--to xpk --tpu v5litepod-16 --cluster mine --spot {IMAGE} --env WANDB_API_KEY HF_TOKEN {TRAIN}",
    "train.sky.yaml": f"--to skypilot {GPUS} --gpus H100:8 --spot {IMAGE} --mount gs://b:/data {TRAIN}",
    "slice.sky.yaml": f"--to skypilot --tpu v6e-16 {IMAGE} {TRAIN}",
    "train.docker.sh": f"--to docker --gpus 8 --memory 64 {IMAGE} --env WANDB_API_KEY --mount /home/me/runs:/runs "
    "train --output-dir /runs",
}


@pytest.fixture
def launched(maejax, monkeypatch):
    """Print the file of one of FILES."""
    monkeypatch.setattr(sys, "executable", "PYTHON")

    def file_of(name):
        code, printed = maejax("launch", *FILES[name].split())
        assert code == 0, printed
        return file_in(printed)

    return file_of


def file_in(printed):
    """Return the file that was printed, without the line for people on the error stream."""
    file, _, following = printed.rpartition("next     ")
    assert following.startswith("save this as FILE, then ")
    return file


@pytest.mark.parametrize("name", FILES)
def test_files_are_the_golden_ones(launched, name):
    assert launched(name) == (GOLDEN / "launch" / name).read_text()


@pytest.mark.parametrize("name", [name for name in FILES if "jobset" in name])
def test_jobsets_are_what_the_api_knows(launched, name):
    """Fields that a model does not know are lost when it is written again."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    printed = yaml.safe_load(launched(name))

    def lost(before, after, path=""):
        if isinstance(before, dict):
            return [each for key in before for each in lost(before[key], (after or {}).get(key), f"{path}/{key}")]
        if isinstance(before, list):
            return [each for i, item in enumerate(before) for each in lost(item, after[i], f"{path}/{i}")]
        return [] if before == after else [path]

    assert not lost(printed, models.JobsetV1alpha2JobSet.from_dict(printed).to_dict())


def test_kubernetes_gets_words_as_they_are(launched):
    jobs = [job["template"]["spec"] for job in yaml.safe_load(launched("parts.jobset.yaml"))["spec"]["replicatedJobs"]]
    command = jobs[0]["template"]["spec"]["containers"][0]["command"]
    assert command == ["maejax", *FEATURES.split()[:-1], "gs://b/features.npz-$$(HOME)", "--part", "kubernetes"]
    assert [job["completions"] for job in jobs] == [16, 1]
    # A reader that follows YAML 1.2 takes 1e-3 for a number, and Kubernetes refuses a number in a command.
    assert '- "1e-3"\n' in launched("train.jobset.yaml")


STAND_IN = """#!/bin/sh
echo "$(basename "$0") $*" >> called
[ "$(basename "$0")" = scontrol ] && exit
read -r code < codes && sed -i 1d codes && exit "$code"
"""


@pytest.mark.parametrize(
    ("name", "codes", "called", "ended"),
    [
        ("train.sbatch", [0], ["srun"], 0),
        ("train.sbatch", [75], ["srun", "scontrol requeue 7"], 75),
        ("train.sbatch", [2], ["srun"], 2),
        ("parts.sbatch", [1], ["srun"], 1),
        ("train.docker.sh", [75, 75, 0], ["docker run"] * 3, 0),
        ("train.docker.sh", [2], ["docker run"], 2),
    ],
)
def test_a_command_starts_again_after_75_alone(launched, tmp_path, name, codes, called, ended):
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    for program in ("srun", "scontrol", "docker"):
        (tmp_path / program).write_text(STAND_IN)
        (tmp_path / program).chmod(stat.S_IRWXU)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "WANDB_API_KEY": "k"}
    run = subprocess.run(["bash", "-c", launched(name)], env=variables, cwd=tmp_path)
    assert run.returncode == ended
    lines = (tmp_path / "called").read_text().splitlines()
    assert len(lines) == len(called) and all(map(str.startswith, lines, called)), lines


def test_a_variable_that_is_missing_is_named_before_anything_runs(launched, tmp_path):
    run = subprocess.run(["bash", "-c", launched("train.sbatch")], env={}, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode and "WANDB_API_KEY: is not set" in run.stderr and "srun" not in run.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--to slurm --hosts 2", "COMMAND is missing: end with one of train, features, pack"),
        ("--to slurm --hosts 2 evaluate runs/mine", "COMMAND is missing"),
        ("--to slurm train", "--hosts is missing"),
        ("--to slurm --tpu v5litepod-16 train", "--tpu is for jobset and xpk and skypilot, not for slurm"),
        ("--to slurm --parts 4 train", "a training takes --hosts"),
        (f"--to slurm {FEATURES}", "--parts is missing"),
        (f"--to slurm --hosts 2 {FEATURES}", "features takes --parts"),
        (f"--to slurm --parts 4 {FEATURES} --batch-size 0x", "batch-size"),
        ("--to slurm --hosts 2 train --coordinator a:1", "--coordinator: leave it out"),
        ("--to slurm --hosts 2 --env TOKEN=secret train", "--env TOKEN: give names alone"),
        ("--to slurm --hosts 2 --name My_Job train", "--name My_Job: take"),
        (
            "--to slurm --hosts 2 train --train-dataset-shards https://me:pw@host/a.tar",
            r"\*\*\*@host/a.tar holds a secret",
        ),
        (f"--to jobset --hosts 2 {TRAIN}", "--image is missing"),
        (f"--to jobset --tpu v9-8 {IMAGE} {TRAIN}", "--tpu v9-8 is no TPU slice: give one such as"),
        (f"--to jobset --tpu v3-8 {IMAGE} {TRAIN}", "--tpu v3-8: give one of v4, v5litepod"),
        (f"--to jobset --tpu v4-16 --hosts 2 {IMAGE} {TRAIN}", "the slice v4-16 has hosts of its own"),
        (f"--to jobset --tpu v4-16 --parts 2 {IMAGE} {FEATURES}", "--tpu v4-16 has 2 hosts"),
        (f"--to jobset --hosts 2 --gpus H100:8 {IMAGE} {TRAIN}", "--gpus H100:8: for jobset give them as 8"),
        (f"--to jobset --hosts 2 {IMAGE} train", "runs would be lost with the container"),
        (f"--to jobset --hosts 2 {IMAGE} --mount sets:/run train --output-dir /runs", "/runs would be lost"),
        (f"--to skypilot --hosts 2 --gpus 8 {IMAGE} {TRAIN}", "--gpus 8: for skypilot give them as H100:8"),
        (f"--to xpk --cluster c {IMAGE} {TRAIN}", "--tpu is missing"),
        (f"--to docker --hosts 2 {IMAGE} {TRAIN}", "--hosts is for slurm and jobset and skypilot, not for docker"),
        ("--to slurm --hosts 2 config/pretrain/pretrain-vit-l16-224-in1k-800ep.sh", "reads .GCS_DATASET_DIR: set it"),
    ],
)
def test_what_does_not_fit_gets_one_sentence(maejax, monkeypatch, flags, sentence):
    monkeypatch.delenv("GCS_DATASET_DIR", raising=False)
    code, printed = maejax("launch", *flags.split())
    assert code == 2 and re.search(sentence, printed), printed
    assert "secret" not in printed.replace("holds a secret", "") and "#!" not in printed


def test_a_preset_is_a_training(maejax, monkeypatch):
    monkeypatch.setenv("GCS_DATASET_DIR", "gs://b/sets")
    preset = GOLDEN.parent.parent / "config/pretrain/pretrain-vit-l16-224-in1k-800ep.sh"
    code, printed = maejax(
        "launch", "--to", "xpk", "--tpu", "v4-64", "--cluster", "c", *IMAGE.split(), preset, "--wandb"
    )
    assert code == 0, printed
    command = shlex.split(shlex.split(file_in(printed))[-1])
    assert command[:3] == ["exec", "maejax", "train"] and command[-2:] == ["--wandb", "--distributed"]
    assert "gs://b/sets/imagenet-1k-wds/imagenet1k-train-{0000..1023}.tar" in command
