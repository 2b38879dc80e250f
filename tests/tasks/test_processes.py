"""One run at a time in a folder, and processes of a run that agree."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maejax.storage.lock import held
from maejax.tasks import run


def test_a_second_command_ends_with_the_name_of_the_first(train):
    with held(Path("runs/pretrain"), "", ""):
        code, printed = train()
    assert code == 1 and f"runs/pretrain is held by process {os.getpid()} on" in printed, printed
    assert not Path("runs/pretrain").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--learning-rate": 9.0}, "process 1 and process 0 differ in --learning-rate: 9.0 against 0.05; start all"),
        ({"number of images": 23}, "differ in number of images: 23 against 24"),
        ({"maejax": "0.0", "--dim": 9}, "differ in --dim, maejax: 9 against 16"),
    ],
)
def test_processes_that_differ_are_refused(train, monkeypatch, change, sentence):
    monkeypatch.setattr(run, "gather", lambda own, mesh: [own, own | change])
    code, printed = train()
    assert code == 2 and sentence in printed, printed
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("variables", "flags", "sentence"),
    [
        ({"OMPI_COMM_WORLD_SIZE": 2}, [], "a launcher started 2 processes, and each would train by itself: give --dis"),
        ({"SLURM_JOB_ID": 1, "SLURM_JOB_NUM_NODES": 2}, [], "has 2 nodes, and one of them would train: write srun"),
        ({"SLURM_JOB_ID": 1, "SLURM_JOB_NUM_NODES": 2}, ["--distributed"], "write srun before the command, or give"),
        ({}, ["--distributed"], "leave it out on a single host, or give --coordinator"),
    ],
)
def test_processes_that_would_train_alone_are_refused(train, monkeypatch, variables, flags, sentence):
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    code, printed = train(*flags)
    assert code == 2 and sentence in printed, printed


def test_a_signal_in_the_loop_is_left_to_the_loop():
    program = (
        "import os, signal, time; from maejax.commands.early_stop import early_stop\n"
        "from maejax.training.consensus import stop_requests\n"
        "for number in 100 * (signal.SIGTERM, signal.SIGINT):\n"
        "    with early_stop(), stop_requests() as stop:\n"
        "        os.kill(os.getpid(), number)\n"
        "        assert stop.wait(60)\n"
        "        time.sleep(0.01)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_ends_the_process_wherever_it_meets_it(number):
    program = (
        "import os, signal, sys, time; from maejax.commands.early_stop import early_stop\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells ignore it for work in the background
        "with early_stop():\n"
        "    try:\n"
        "        os.kill(os.getpid(), int(sys.argv[1])); time.sleep(60)\n"
        "    except BaseException:\n"  # as a callback or an import does
        "        sys.exit(0)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(int(number))], capture_output=True, text=True)
    assert ended.returncode == 75 and "start the same command again to go on" in ended.stderr
