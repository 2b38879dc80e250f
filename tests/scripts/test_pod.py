"""scripts/pod against a cloud on this machine: four workers, each a folder, and processes that end as real ones do."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ..bounds import assert_close
from ..conftest import ROOT, TINY
from ..training import harness
from . import cloud as clouds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the workers of a pod run Linux")

SECRET = "wk-0123456789"
# What a recipe starts, without JAX: it says what it was given, and ends as training does.
TRAINER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
given = [os.environ.get(name) for name in ("WANDB_API_KEY", "GCS_DATASET_DIR", "OUTPUT_DIR")]
print("step 1", *given, sys.argv[1:])
print("loader   2 threads", flush=True)  # the last line must not be taken for how a job is
while "--end" not in sys.argv:
    time.sleep(.02)
sys.exit(int(sys.argv[sys.argv.index("--end") + 1]))
"""


class Cloud:
    """A checkout of the project, with `scripts/pod` in it, and the cloud that its gcloud reaches."""

    def __init__(self, folder: Path, doctor: str):
        self.folder, self.checkout = folder / "cloud", folder / "checkout"
        for name in ("scripts", "config", "constraints"):
            shutil.copytree(ROOT / name, self.checkout / name)
        (self.checkout / "src").mkdir()
        shutil.copy(ROOT / "src/main.py", self.checkout / "src")
        (self.checkout / "trainer.py").write_text(TRAINER)
        (self.checkout / "recipe.sh").write_text('python3 trainer.py "$@"\n')
        git = ["git", "-C", self.checkout, "-c", "user.name=a", "-c", "user.email=a@b"]
        for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "all"]):
            subprocess.run([*git, *words], check=True)
        self.here = folder / "here"
        self.tool("gcloud", f'exec {sys.executable} {clouds.__file__} {self.folder} "$@"', self.here)
        self.tool("hostname", 'echo "w-$WORKER"')
        self.doctor = doctor
        self.install()

    def install(self, works=True):
        """Put this environment, in which the package is, in place of an installation; or one that does not work."""
        self.tool("uv", f"""echo "$PWD $*" >> {self.folder}/uv.txt
            [[ $1 == venv ]] || exit {int(not works)}
            mkdir -p .venv/bin
            printf '#!/bin/sh\\nexec {sys.executable} "$@"\\n' | tee .venv/bin/python > .venv/bin/python3
            printf '#!/bin/sh\\n{self.doctor} "$@"\\n' > .venv/bin/maejax
            chmod +x .venv/bin/*""")  # fmt: skip

    def tool(self, name, text, place=None):
        place = place or self.folder / "tools"
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("#!/usr/bin/env bash\n" + text + "\n")
        (place / name).chmod(0o755)

    def pod(self, *words, **environment):
        return subprocess.run(
            [self.checkout / "scripts/pod", *map(str, words)], text=True, capture_output=True, timeout=1800,
            stdin=subprocess.DEVNULL,
            env={**{name: value for name, value in os.environ.items() if name.startswith("JAX_")},
                 "PATH": f"{self.here}:/usr/bin:/bin", "HOME": str(self.folder),
                 "POD_NAME": "mae", "POD_ZONE": "us-central2-b", "POD_POLL": "0.1", "POD_PAUSE": "0.1",
                 **{name: str(value) for name, value in environment.items()}},
        )  # fmt: skip

    def did(self, *words, **environment):
        """Run scripts/pod, which must succeed, and return what it printed."""
        run = self.pod(*words, **environment)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def states(self, job="train"):
        return [line.split("  ")[0] for line in sorted(self.did("status", "--job", job).splitlines()[-clouds.HOSTS :])]


@pytest.fixture
def cloud(tmp_path):
    """Give a cloud without pods; what runs in it ends with the test."""
    cloud = Cloud(tmp_path, "echo")
    yield cloud
    clouds.Pod(cloud.folder, "mae").vanish()


def until(true):
    """Wait without taking the cores from what is waited for."""
    deadline = time.monotonic() + 3 * harness.PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return True


def everywhere(state):
    return [f"w-{i} train {state}" for i in range(clouds.HOSTS)]


def test_dry_run_prints_commands_that_a_shell_reads_as_they_are(cloud):
    gcloud = "gcloud compute tpus"
    where = "mae --zone=us-central2-b"
    assert cloud.did("create", "--type", "v5litepod-64", "--spot", "--queued", "--dry-run") == (
        f"{gcloud} queued-resources create {where} --node-id=mae --accelerator-type=v5litepod-64 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot\n"
    )
    assert cloud.did("create", "--type=v4-64", "--project=mine", "--dry-run") == (
        f"{gcloud} tpu-vm create {where} --project=mine --accelerator-type=v4-64 --version=tpu-ubuntu2204-base\n"
    )
    line = cloud.did("start", "--dry-run", "config/a.sh", "--name", "it's $HOME", GCS_DATASET_DIR="gs://mine/sets")
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], text=True, capture_output=True, check=True).stdout
    assert words.splitlines()[:6] == [*gcloud.split(), "tpu-vm", "ssh", "mae"]
    *_, command = words.strip().split("--command=")
    inner = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], text=True, capture_output=True, check=True)
    assert inner.stdout.splitlines() == [
        "GCS_DATASET_DIR=gs://mine/sets", "bash", "maejax/scripts/worker", "start", "train", "bash", "config/a.sh",
        "--name", "it's $HOME", "--distributed",
    ]  # fmt: skip
    assert "--distributed" not in cloud.did("start", "--dry-run", "--type", "v3-8", "config/a.sh")
    for command in ("start", "resume", "keep", "run", "data"):
        words = ["--type", "v4-64", "a.sh", "--name", "b"]
        both = [["--dry-run", *words], [*words, "--dry-run"]]
        said = [cloud.did(command, *each, GCS_DATASET_DIR="gs://mine/sets") for each in both]
        first, last = (re.sub(r"/tmp\S*/maejax.tar.gz", "", text) for text in said)
        assert first == last and "gcloud compute tpus" in first
    steps = cloud.did("resume", "--dry-run", "--type", "v4-64", "a.sh", POD_QUEUED=1, WANDB_API_KEY=SECRET)
    assert SECRET not in steps
    assert [line.split()[4] for line in steps.splitlines() if line.startswith("gcloud compute tpus")] == [
        "delete", "create", "describe", "scp", "ssh", "ssh", "scp", "ssh", "ssh",
    ]  # fmt: skip
    assert not (cloud.folder / "argv.jsonl").exists(), "gcloud was called"


def test_what_is_wrong_gets_one_sentence(cloud):
    bare = cloud.folder / "bare"
    bare.mkdir(parents=True, exist_ok=True)
    (bare / "bash").symlink_to(shutil.which("bash"))
    for words, environment, sentence in (
        (["dance"], {}, "there is no command dance"),
        (["create"], {}, "--type is missing"),
        (["create", "--type"], {}, "--type is given nothing"),
        (["create", "--tipe", "v4-8"], {}, "there is no flag --tipe"),
        (["status"], {"POD_NAME": ""}, "--name is missing"),
        (["status"], {"POD_ZONE": ""}, "--zone is missing"),
        (["status", "now"], {}, "status takes no now"),
        (["start"], {}, "name what to train"),
        (["resume"], {}, "say what to train"),
        (["login"], {}, "WANDB_API_KEY and HF_TOKEN are missing"),
        (["login"], {"HF_TOKEN": "a b"}, "HF_TOKEN holds other signs"),
        (["data"], {}, "GCS_DATASET_DIR is missing"),
        (["setup", "--bucket", "mine/here"], {}, "give gs://BUCKET alone"),
        (["status"], {"PATH": bare}, "gcloud is not installed"),
    ):
        run = cloud.pod(*words, **environment)
        assert run.returncode == 2 and sentence in run.stderr and run.stderr.count("\n") == 1, run.stderr
    run = cloud.pod("wait")
    assert run.returncode == 1 and "there is no pod mae in us-central2-b" in run.stderr


def test_secrets_are_in_files_and_in_no_command_line(cloud):
    cloud.did("create", "--type", "v4-32")
    said = cloud.did("login", WANDB_API_KEY=SECRET) + cloud.did("setup")
    assert sorted(line for line in said.splitlines() if " doctor " in line) == [
        f"w-{i}: doctor --constraints constraints/tpu.txt" for i in range(4)
    ]
    for home in clouds.Pod(cloud.folder, "mae").homes():
        path = home / ".maejax/secrets"
        assert path.read_text() == f"WANDB_API_KEY={SECRET}\n"
        assert json.loads((cloud.folder / "mae.json").read_text())["modes"]["secrets"] == "0o600", "here too"
        assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    cloud.did("start", "recipe.sh", "--end", 0, GCS_DATASET_DIR="gs://mine")
    assert until(lambda: cloud.states() == everywhere("done"))
    logs = cloud.did("logs")
    assert f"w-3: step 1 {SECRET} gs://mine None ['--end', '0', '--distributed']" in logs, "the training has the key"
    argv = (cloud.folder / "argv.jsonl").read_text()
    assert SECRET not in argv and SECRET not in said
    assert not list(Path("/tmp").glob("tmp.*/secrets")), "the local copy is gone"
    installed = (cloud.folder / "uv.txt").read_text()
    assert installed.count("--constraint constraints/tpu.txt --editable .[tpu,gcs,wandb]") == clouds.HOSTS


def test_a_bucket_is_mounted_for_runs(cloud):
    cloud.tool("gcsfuse", f'echo "$*" >> {cloud.folder}/gcsfuse.txt; touch "${{@: -1}}/mounted"')
    cloud.tool("mountpoint", "[[ -e $2/mounted ]]")
    cloud.did("create", "--type", "v4-32")
    home = clouds.Pod(cloud.folder, "mae").homes()[1]
    for _ in range(2):
        said = cloud.did("setup", "--bucket", "gs://mine")
        assert (
            "w-1: doctor --constraints constraints/tpu.txt --bucket gs://mine "
            f"--output-dir {home}/bucket/CKPT\n" in said
        )
    mounts = (cloud.folder / "gcsfuse.txt").read_text().splitlines()
    assert len(mounts) == clouds.HOSTS and f"mine {home}/bucket" in "\n".join(mounts), "once"
    cloud.did("start", "recipe.sh", "--end", 0)
    assert until(lambda: cloud.states() == everywhere("done"))
    assert f"w-1: step 1 None None {home}/bucket/CKPT" in cloud.did("logs")


@pytest.mark.slow
def test_resume_gets_a_run_going_again_whatever_has_happened(cloud):
    spot = {"POD_TYPE": "v4-32", "POD_SPOT": 1, "POD_QUEUED": 1, "WANDB_API_KEY": SECRET}
    first = cloud.did("resume", "recipe.sh", **spot)
    assert "WAITING_FOR_RESOURCES" in first
    assert cloud.states() == everywhere("running")
    assert cloud.did("resume", "recipe.sh", **spot).count("train started") == 0, "all is well"
    assert cloud.pod("start", "recipe.sh").returncode == 1, "never twice"
    run = cloud.pod("resume", "recipe.sh", "--other", **spot)
    assert run.returncode == 1 and "another command is running" in run.stderr

    assert until(lambda: cloud.did("logs").count("2 threads") == clouds.HOSTS), "all can be asked to stop"
    assert cloud.did("stop").count("stopped and saved") == clouds.HOSTS
    assert cloud.did("resume", "recipe.sh", **spot).count("train started") == clouds.HOSTS
    pod = clouds.Pod(cloud.folder, "mae")
    pod.kill(2)  # one alone: the others wait for it
    assert cloud.states() == [f"w-{i} train {'killed' if i == 2 else 'running'}" for i in range(4)]
    assert cloud.did("resume", "recipe.sh", **spot).count("train started") == clouds.HOSTS

    clouds.preempt(cloud.folder, "mae")
    run = cloud.pod("status", POD_QUEUED=1)
    assert run.returncode == 1 and run.stdout == "SUSPENDED\nPREEMPTED\n"
    cloud.install(works=False)
    assert cloud.pod("resume", "recipe.sh", **spot).returncode == 1
    cloud.install()  # and the pod is there, but half
    again = cloud.did("resume", "recipe.sh", **spot)
    assert again.count("train started") == clouds.HOSTS and "every worker has WANDB_API_KEY" in again
    assert json.loads((cloud.folder / "mae.json").read_text())["spot"] is True
    assert cloud.did("stop", "--now").count("killed") == clouds.HOSTS

    assert cloud.did("keep", "recipe.sh", "--end", 0, **spot).count("train started") == clouds.HOSTS
    assert cloud.states() == everywhere("done")
    assert "train started" not in cloud.did("resume", "recipe.sh", "--end", 0, **spot), "done is done"

    run = cloud.pod("keep", "recipe.sh", "--end", 1, **{**spot, "POD_PAUSE": 1})
    assert run.returncode == 1 and "the run has failed three times in a row" in run.stderr
    cloud.did("start", "recipe.sh", "--end", 2, **spot)
    assert until(lambda: cloud.states() == everywhere("wrong input"))
    run = cloud.pod("keep", "recipe.sh", "--end", 2, **spot)
    assert run.returncode == 2 and "the run was refused" in run.stderr
    cloud.did("delete", **spot)
    assert not (cloud.folder / "mae.json").exists()


@pytest.mark.slow
def test_a_pod_of_four_trains_is_preempted_and_resumes(tmp_path, images):
    """Asked to stop, then taken away as a whole in the middle: the metrics are those of a run that was left alone."""
    cloud = Cloud(tmp_path, f"exec {sys.executable} -m maejax")
    flags = ["--train-dataset-shards", images, "--valid-dataset-shards", images, *TINY, "--training-steps", 150,
             "--save-interval", 10, "--eval-interval", 50, "--output-dir", tmp_path / "runs"]  # fmt: skip
    recipe = "config/pretrain/pretrain-vit-b16-224-in1k-1600ep.sh"
    spot = {"POD_TYPE": "v4-32", "POD_SPOT": 1, "POD_QUEUED": 1, "GCS_DATASET_DIR": "gs://nowhere"}
    run = tmp_path / "runs/pod"

    def train(name):
        print(cloud.did("resume", recipe, *flags, "--name", name, **spot))

    try:
        train("pod")
        assert until(lambda: harness.last_step(run) > 0), cloud.did("logs")
        assert cloud.states() == everywhere("running"), cloud.did("logs")
        assert cloud.did("stop").count("stopped and saved") == clouds.HOSTS, cloud.did("logs", "--lines", 50)
        stopped = harness.last_step(run)
        train("pod")
        assert until(lambda: harness.last_step(run) >= stopped + 20), cloud.did("logs")
        clouds.preempt(cloud.folder, "mae")
        preempted = harness.last_step(run)
        assert 0 < stopped < preempted < 150
        print(cloud.did("keep", recipe, *flags, "--name", "pod", **spot, POD_PAUSE=3))
        assert cloud.states() == everywhere("done"), cloud.did("logs")
        assert "continuing" in cloud.did("logs", "--lines", 1000)
        cloud.did("start", recipe, *flags, "--name", "alone", **spot)
        assert until(lambda: cloud.states() == everywhere("done")), cloud.did("logs")
        for name in ("train/loss", "train/grad_norm", "val/loss"):
            left, alone = (harness.losses(tmp_path / "runs" / which, name) for which in ("pod", "alone"))
            assert left.keys() == alone.keys() and max(left) == 150
            assert_close(list(left.values()), list(alone.values()), 1e-6, name=name)
    finally:
        clouds.Pod(cloud.folder, "mae").vanish()
