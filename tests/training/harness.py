"""Start training processes, meet them at a moment, and compare what they leave."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import maejax
from maejax.models.trees import named_arrays
from maejax.training.log import read_metrics

from ..conftest import TINY

DRIVER = Path(__file__).parent / "slow_train.py"
PATIENCE = 1200  # seconds; a test that waits longer hangs


def start(folder, images, *flags, devices=1, **environment):
    """Start one slowed training process in a folder; later flags win."""
    command = [sys.executable, DRIVER, "train", "--train-dataset-shards", images, *TINY, *flags]
    return subprocess.Popen(
        [str(part) for part in command], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "COLUMNS": "300",
             **{name: str(value) for name, value in environment.items()}},
    )  # fmt: skip


def start_several(folder, images, *flags, count=2, devices=2, **environment):
    """Start the processes of one run, which find each other on loopback."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    coordinator = ("--coordinator", f"localhost:{port}", "--num-processes", count)
    return [
        start(folder, images, *coordinator, "--process-id", i, *flags, devices=devices, **environment)
        for i in range(count)
    ]


def wait_until(true, *processes):
    """Wait until something is true or a process has ended; tell whether it is true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        if any(process.poll() is not None for process in processes):
            return bool(true())
        assert time.monotonic() < deadline, "nothing happened for twenty minutes"
        time.sleep(0.002)
    return True


def last_step(run):
    """Find the newest step in a run's metrics, 0 if there is none."""
    return max(losses(run), default=0)


def losses(run, name="train/loss"):
    metrics = Path(run) / "metrics.jsonl"
    return dict(read_metrics(metrics, name)) if metrics.exists() else {}


def arrays_of(run):
    return {name: np.asarray(array) for name, array in named_arrays(maejax.load(run)).items()}


def run_command(folder, command, processes, devices):
    """Run a command of `maejax` as one job of several processes; return the exit code and the text of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ("--coordinator", f"localhost:{port}", "--num-processes", processes) if processes > 1 else ()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "maejax", *map(str, command), *map(str, together),
             *(("--process-id", str(i)) if together else ())],
            cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
        )
        for i in range(processes)
    ]  # fmt: skip
    return [finish(process) for process in started]


def finish(process):
    """Wait for a process, and return (exit code, what it printed)."""
    printed = process.communicate(timeout=PATIENCE)[0]
    return process.returncode, printed


def said(processes):
    """End processes and collect what they printed, for a test that has failed."""
    for process in processes:
        process.kill()
    return "\n".join(f"{i}: {finish(process)}" for i, process in enumerate(processes))
