"""Several processes on loopback: one run, whatever they are, and a clear end when one of them goes."""

import json
import re
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from maejax.distributed import rendezvous
from maejax.distributed.processes import join, own_devices
from maejax.distributed.rendezvous import Peers, meet
from maejax.errors import Failed, InputError
from maejax.training.checkpoint import saved_steps
from maejax.training.meter import find_slow
from tests.bounds import assert_close, rounding
from tests.training import harness

SGD = ["--optimizer", "sgd", "--learning-rate", 1]  # Adam would blow up the rounding of gradients near zero
STEPS = 30
# This process is never to end, also not after a test: the threads of its peers outlive that.
Peers._end_in_time = lambda peers: threading.Event().wait()


def test_flags_that_do_not_name_the_processes_are_refused():
    for flags, sentence in (
        (("", 2, 0), "without --coordinator"),
        (("localhost:1234", 2, -1), "without --process-id"),
        (("localhost", 2, 0), "give HOST:PORT"),
        (("localhost:1234", 2, 2), "this one's number, from 0"),
    ):
        with pytest.raises(InputError, match=sentence):
            join(distributed=False, **dict(zip(("coordinator", "num_processes", "process_id"), flags, strict=True)))
    with pytest.raises(InputError, match="with --distributed"):
        join(distributed=True, coordinator="localhost:1234", num_processes=2, process_id=0)


def test_a_process_takes_the_gpus_that_are_its_own(monkeypatch):
    """JAX detects [1] for the second process that SLURM started on a host."""
    for name in ("JAX_LOCAL_DEVICE_IDS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    assert own_devices([0], 1) is None, "one process for all GPUs of the host"
    assert own_devices([1], 2) == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert own_devices([1], 2) == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # as by --gpus-per-task=1: it is the first one that is seen
    assert own_devices([1], 2) is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", "0,1")
    assert own_devices([1], 2) is None


def test_a_port_that_is_taken_is_named_with_the_way_to_another():
    with socket.create_server(("", 0)) as taken, pytest.raises(InputError, match="the environment variable JAX_COORD"):
        meet(f"localhost:{taken.getsockname()[1]}", 2, 0, 1.0, 60.0)


@pytest.mark.filterwarnings("ignore:Kubernetes environment detected")
def test_what_was_looked_for_is_named_where_nothing_joins_the_processes(monkeypatch):
    alone = {"distributed": True, "coordinator": "", "num_processes": 0, "process_id": -1}
    with pytest.raises(InputError, match=r"no TPU VM, GKE TPU pod, SLURM, Open MPI or Kubernetes job .* leave it out"):
        join(**alone)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'maejax\[k8s\]'"):
        join(**alone)
    forbidden = SimpleNamespace(config=SimpleNamespace(load_incluster_config=lambda: 1 / 0))
    monkeypatch.setitem(sys.modules, "kubernetes", forbidden)
    with pytest.raises(Failed, match=r"\(division by zero\); in Kubernetes, the service account"):
        join(**alone)


@pytest.mark.slow
def test_one_run_on_one_process_on_two_and_split(tmp_path, images, train):
    """Two processes are told to stop by one, go on with a split state, lose one, and one process ends the run."""
    flags = ["--valid-dataset-shards", images, "--valid-batch-size", 16, "--training-steps", STEPS, *SGD,
             "--eval-interval", 12, "--save-interval", 5]  # fmt: skip
    code, printed = train(*flags, "--name", "alone")
    assert code == 0, printed
    run = tmp_path / "runs/pretrain"

    processes = harness.start_several(tmp_path, images, *flags)
    assert harness.wait_until(lambda: harness.last_step(run) >= 6, *processes), harness.said(processes)
    processes[1].send_signal(signal.SIGTERM)
    (first, first_said), (second, second_said) = map(harness.finish, processes)
    assert first == second == 75, first_said + second_said
    assert "devices  4 x cpu in 2 processes" in first_said
    assert "step 5/30" in first_said and "step 5/30" not in second_said  # one of them speaks
    stopped = harness.last_step(run)
    assert saved_steps(run / "checkpoints")[-1] == stopped < STEPS

    processes = harness.start_several(tmp_path, images, *flags, "--sharding", "fsdp")
    assert harness.wait_until(lambda: harness.last_step(run) >= stopped + 6, *processes), harness.said(processes)
    processes[1].kill()
    assert harness.finish(processes[1])[0] == -signal.SIGKILL
    code, said = harness.finish(processes[0])
    # By our sentence, or where the main thread cannot be reached, by JAX's, which aborts.
    assert (code == 1 and "cannot go on, for process 1 (" in said) or (
        code == -signal.SIGABRT and "The following tasks are unhealthy" in said
    ), said
    assert f"continuing runs/pretrain from step {stopped}" in said

    code, printed = train(*flags)
    assert code == 0 and "continuing" in printed, printed
    for name in ("train/loss", "train/grad_norm", "val/loss"):
        alone, together = (harness.losses(tmp_path / "runs" / name_, name) for name_ in ("alone", "pretrain"))
        assert alone.keys() == together.keys()
        # At every step, the sums over four devices are taken in another order.
        assert_close(list(together.values()), list(alone.values()), rounding(4 * STEPS), name=name)


def meet_all(*processes, seconds=300.0, patience=60.0):
    """Let processes, as threads, meet on loopback; return what came of each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with ThreadPoolExecutor() as pool:
        calls = [
            pool.submit(meet, f"localhost:{port}", given, process, seconds, patience) for process, given in processes
        ]
        return [call.exception() or call.result() for call in calls]


def test_who_has_not_come_is_named_to_all_that_have():
    met = meet_all((0, 5), (3, 5), (1, 5), seconds=3)
    assert {type(error) for error in met} == {Failed}
    assert len({str(error) for error in met}) == 1 and "of 5 processes, those numbered 2, 4 were not heard" in str(
        met[0]
    )
    (alone,) = meet_all((1, 2), seconds=0.1)
    assert "process 0 was not found at localhost:" in str(alone) and "by process 1" in str(alone)
    assert "Connection refused" in str(alone), "else it cannot be told from a name without an address"
    for processes, sentence in (
        (((0, 2), (1, 3)), "--num-processes is 2 for process 0 and 3 for process 1"),
        (((0, 3), (1, 3), (1, 3)), "--process-id 1 was given twice"),
    ):
        met = meet_all(*processes)
        assert {type(error) for error in met} == {InputError}
        assert all(sentence in str(error) for error in met)


def test_who_has_gone_is_named_to_all_others():
    zero, one, two = meet_all((0, 3), (1, 3), (2, 3))
    host = socket.gethostname()
    assert zero.names == two.names == [f"process {i} ({host})" for i in range(3)]
    assert not zero.lost(0.01) and zero.together == two.together == 3
    two.announce_end(0)
    assert not zero.lost(0.1) and not one.lost(), "it was at its end"
    zero, one, two = meet_all((0, 3), (1, 3), (2, 3))
    two.announce_end(1)
    assert zero.lost(300) == one.lost(300) == f"process 2 ({host}) ended with exit code 1"
    zero, one, two = meet_all((0, 3), (1, 3), (2, 3))
    one._lines[0]._connection.shutdown(socket.SHUT_RDWR)  # as where it is killed
    assert zero.lost(300) == two.lost(300) == f"process 1 ({host}) was lost"


def test_who_is_paused_is_named_to_all_others(monkeypatch):
    live = Peers._live
    monkeypatch.setattr(Peers, "_live", lambda peers: None if peers._process == 1 else live(peers))
    zero, _, two = meet_all((0, 3), (1, 3), (2, 3), patience=2)
    silent = f"process 1 ({socket.gethostname()}) was silent for 2 s: paused, or without a network"
    assert silent in zero.lost(300) and silent in two.lost(300)


def test_who_waits_for_the_first_says_so(monkeypatch, caplog):
    monkeypatch.setattr(rendezvous, "FIRST_LOG_SECONDS", 0.1)
    meet_all((1, 2), seconds=1)
    assert "process 1" in caplog.text and "waits for process 0 at localhost:" in caplog.text


def test_only_one_that_never_waits_while_others_do_is_slow():
    equal = np.array([[0.8, 0.0], [0.75, 0.1], [0.9, 0.0], [0.8, 0.0]])
    assert find_slow(equal) is None
    assert find_slow(np.array([[0.05, 0.9], [0.02, 0.9]])) is None, "all wait for input: none holds up the others"
    slow = equal.copy()
    slow[2] = 0.1, 0.85
    assert find_slow(slow) == (2, pytest.approx(0.7), 0.85)


@pytest.mark.slow
def test_a_slow_process_is_named(tmp_path, images):
    """One of two waits longer for its input at every step; then one is slow by something else."""
    for what, reason in (("input", "by waiting for its input"), ("rest", "by something other than its input")):
        folder = tmp_path / what
        folder.mkdir()
        flags = ["--training-steps", 20, "--log-interval", 5, "--save-interval", 100]
        processes = harness.start_several(folder, images, *flags, SLOW=f"1:{what}:1.0")
        (code, said), (other, other_said) = map(harness.finish, processes)
        assert code == other == 0, said + other_said
        assert said.count("holds up the others") == 1 and other_said.count("holds up") == 0
        assert re.search(rf"process 1 \(.*\) holds up the others for \d\d% of the time, {reason}", said), said
        run = folder / "runs/pretrain"
        assert set(harness.losses(run, "hosts/slowest").values()) == {1}
        assert min(harness.losses(run, "hosts/lag").values()) > 0.5


@pytest.mark.slow
def test_processes_and_devices_encode_and_evaluate_as_one_device_does(tmp_path, images, trained_once):
    """Features to 1e-6 of the largest, in order, and equal scores, on 1 x 1, 1 x 3 and 2 x 2 processes x devices."""
    shards = ["--train-dataset-shards", images, "--valid-dataset-shards", images, "--protocol", "knn,linear"]
    for processes, devices in ((1, 1), (1, 3), (2, 2)):
        name = f"{processes}-{devices}"
        for command in (
            ("features", trained_once, images, "--out", f"{name}.npz", "--batch-size", 5),
            ("evaluate", trained_once, *shards, "--out", name, "--batch-size", 5),
        ):
            ended = harness.run_command(tmp_path, command, processes, devices)
            assert {code for code, _ in ended} == {0}, ended
    whole, *others = (np.load(tmp_path / f"{name}.npz") for name in ("1-1", "1-3", "2-2"))
    scores, *found = (
        json.loads((tmp_path / name / "report.json").read_text())["scores"] for name in ("1-1", "1-3", "2-2")
    )
    for other, score in zip(others, found, strict=True):
        assert list(other["names"]) == list(whole["names"]) and (other["labels"] == whole["labels"]).all()
        assert np.abs(other["features"] - whole["features"]).max() <= 1e-6 * np.abs(whole["features"]).max()
        assert score == scores
