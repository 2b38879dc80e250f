"""Training on a real SLURM cluster of two nodes, by the scripts of docs/clusters.md as they stand there."""

import re
import subprocess
import sys

import numpy as np
import pytest

from maejax.training.checkpoint import saved_steps

from ..bounds import rounding
from ..conftest import ROOT, TINY
from ..training import harness
from ..training.test_topologies import SGD, assert_near
from . import slurm

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing())]

STEPS = 60
FLAGS = [*TINY, "--training-steps", STEPS, "--save-interval", 10, *SGD]
SCRIPTS = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```", (ROOT / "docs/clusters.md").read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Start a cluster of two nodes, with the scripts of the page in it; `maejax` there takes slower steps."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "bin").mkdir()
    (folder / "bin/maejax").write_text(f'#!/bin/sh\nexec {sys.executable} {harness.DRIVER} "$@"\n')
    (folder / "bin/maejax").chmod(0o755)
    for name, script in zip(("train.sbatch", "seeds.sbatch", "parts.sbatch"), SCRIPTS, strict=True):
        (folder / name).write_text(script)
    cluster = slurm.Cluster(
        folder, 2, PATH=f"{folder}/bin:{slurm.SEARCHED}", JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1", COLUMNS="300"
    )
    yield cluster
    cluster.stop()


def assert_same(ours, theirs):
    """Compare two runs bit for bit: what each step gave, and all arrays at the end."""
    for name in ("train/loss", "train/grad_norm"):
        assert harness.losses(ours, name) == harness.losses(theirs, name)
    assert len(harness.losses(ours)) == STEPS
    arrays = [harness.arrays_of(run / "checkpoints") for run in (ours, theirs)]
    for name in arrays[1]:
        np.testing.assert_array_equal(arrays[0][name], arrays[1][name], err_msg=name)


def test_two_nodes_are_one_run_whatever_stops_it(cluster, images, tmp_path):
    """Two nodes against one process; then jobs that are killed, stopped, requeued, preempted and out of time."""
    flags = ["--train-dataset-shards", images, *FLAGS]
    whole, stopped = (cluster.folder / "runs" / name for name in ("whole", "stopped"))
    job = cluster.submit("train.sbatch", *flags, "--name", "whole")
    assert cluster.end_of(job) == ("COMPLETED", "0:0"), cluster.printed(job)
    assert "devices  2 x cpu in 2 processes" in cluster.printed(job)
    code, printed = harness.finish(harness.start(tmp_path, images, *FLAGS, devices=2))
    assert code == 0, printed
    # At every step, the sums over two devices are taken in another order.
    assert_near(whole, tmp_path / "runs/pretrain", rounding(2 * STEPS), "train/loss", "train/grad_norm")

    def submit(*options):
        return cluster.submit(*options, "train.sbatch", *flags, "--name", "stopped")

    def meet(job):
        """Wait until a job has trained a few more steps than are saved; return the last one."""
        # What was trained after the last save is in the metrics until the run goes on.
        before, saved = harness.last_step(stopped), max(saved_steps(stopped / "checkpoints"), default=0)
        cluster.until(lambda: harness.last_step(stopped) != before or cluster.has_ended(job))
        cluster.until(lambda: harness.last_step(stopped) >= saved + 3 or cluster.has_ended(job))
        return harness.last_step(stopped)

    def saved(after):
        return max(saved_steps(stopped / "checkpoints"), default=0) >= after

    def starts(job):
        """Return the steps from which a job went on."""
        return [int(step) for step in re.findall(r"continuing runs/stopped from step (\d+)", cluster.printed(job))]

    def stop(job, *words):
        """Stop a job of which SLURM starts no other; return its last step then, and its end."""
        step = meet(job)
        cluster.run(*words, job)
        return step, cluster.end_of(job)

    # To all: the processes are killed by srun, or stopped because the script has ended, whatever comes first.
    _, end = stop(submit(), "scancel", "--signal=TERM", "--full")
    assert end == ("FAILED", "0:15")
    step, end = stop(submit(), "scancel", "--signal=TERM", "--batch")  # to the script, whose end is the job's
    assert end == ("FAILED", "0:15") and saved(step)
    step, end = stop(submit("--no-requeue"), "scancel", "--signal=TERM")  # to the processes alone
    assert end == ("FAILED", "75:0") and saved(step)

    # SLURM looks every 30 s whose time is up: steps are to be slow.
    job, stops = submit("--export=ALL,SLOW=0:rest:1.5"), []
    for words in (
        ["scancel", "--signal=TERM", job],
        ["scontrol", "requeue", job],
        ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true"],
        ["scontrol", "update", f"JobId={job}", "TimeLimit=4"],  # --signal=TERM@300 is over then
    ):
        stops.append(meet(job))
        print(cluster.run(*words))
        cluster.until(lambda: len(starts(job)) > len(stops) or cluster.has_ended(job))
        cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=UNLIMITED")
        assert len(starts(job)) > len(stops) and starts(job)[-1] >= stops[-1], cluster.printed(job)
    assert cluster.end_of(job) == ("COMPLETED", "0:0"), cluster.printed(job)
    assert cluster.facts(job)["Restarts"] == "4"
    assert_same(stopped, whole)


def test_an_array_trains_three_seeds_and_one_goes_on(cluster, images, tmp_path):
    flags = ["--train-dataset-shards", images, *FLAGS]
    array = cluster.submit("seeds.sbatch", *flags)
    runs = [cluster.folder / f"runs/seed-{seed}" for seed in range(3)]
    cluster.until(lambda: harness.last_step(runs[2]) >= 3)
    cluster.run("scancel", "--signal=TERM", f"{array}_2")
    ends = [cluster.end_of(f"{array}_{seed}") for seed in range(3)]
    assert ends == 3 * [("COMPLETED", "0:0")]
    assert [cluster.facts(f"{array}_{seed}")["Restarts"] for seed in range(3)] == ["0", "0", "1"]
    seeds = ["--init-seed", 2, "--shuffle-seed", 2, "--noise-seed", 2]
    code, printed = harness.finish(harness.start(tmp_path, images, *FLAGS, *seeds))
    assert code == 0, printed
    assert_same(runs[2], tmp_path / "runs/pretrain")
    assert harness.losses(runs[0]) != harness.losses(runs[1]) != harness.losses(runs[2])


def test_an_array_of_parts_of_which_one_is_killed(cluster, trained_once, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "many.npz", images=rng.integers(0, 256, (3000, 16, 16, 3), np.uint8))
    command = [trained_once, tmp_path / "many.npz", "--out", cluster.folder / "f.npy", "--batch-size", 1]
    array = cluster.submit("parts.sbatch", *command)
    cluster.until((cluster.folder / "f-00001-of-00003.npy.part/features.npy").exists)
    cluster.run("scancel", "--signal=KILL", f"{array}_1")
    ends = [cluster.end_of(f"{array}_{part}")[0] for part in range(3)]
    assert ends[0] == ends[2] == "COMPLETED" != ends[1]
    maejax = [sys.executable, "-m", "maejax", "features", *map(str, command)]
    gathered = subprocess.run([*maejax, "--gather"], capture_output=True, text=True)
    assert gathered.returncode == 1 and "part 1 of 3 is not there" in gathered.stderr
    job = cluster.submit("--array=1", "parts.sbatch", *command, "--part", "slurm/3")
    assert cluster.end_of(f"{job}_1") == ("COMPLETED", "0:0"), cluster.printed(f"{job}_1")
    gathered = subprocess.run([*maejax, "--gather"], capture_output=True, text=True)
    assert gathered.returncode == 0 and "3,000 features" in gathered.stdout, gathered.stderr
    alone = subprocess.run([*maejax, "--out", str(tmp_path / "alone.npy")], capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    parts = [np.load(cluster.folder / f"f-0000{part}-of-00003.npy") for part in range(3)]
    assert np.concatenate(parts).tobytes() == np.load(tmp_path / "alone.npy").tobytes()
