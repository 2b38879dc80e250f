"""Parts as Ray tasks, by the lines of docs/clusters.md as they stand there, with a worker killed in the middle."""

import json
import os
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ..conftest import ROOT

pytestmark = [pytest.mark.slow]

LINES = re.search(
    r"^```python\n(import subprocess\n\nimport ray\n.*?)^```", (ROOT / "docs/clusters.md").read_text(), re.M | re.S
)


@pytest.fixture
def run_lines(tmp_path, monkeypatch):
    """Run the lines with another command on a cluster of this machine; kill the worker of a part that has begun."""
    ray = pytest.importorskip("ray", reason="no Ray here: pip install 'maejax[ray]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)

    def run(command, begun):
        """`begun` tells whether a part is in the middle; returns the processes that were killed."""
        killed, ended = [], threading.Event()

        def kill():
            while not ended.is_set() and not begun():
                time.sleep(0.01)
            for task in [] if ended.is_set() else workers():
                os.kill(task, signal.SIGKILL)
                killed.append(task)
                break

        assert LINES is not None
        lines = re.sub(
            r"^COMMAND = .*$",
            f"COMMAND = {[sys.executable, '-m', 'maejax', *map(str, command)]!r}",
            LINES[1],
            flags=re.M,
        )
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            exec(compile(lines, "docs/clusters.md", "exec"), {})
        finally:
            ended.set()
            killer.join()
        return killed

    yield run
    ray.shutdown()


def workers():
    """Find the processes that do a task."""
    found = []
    for folder in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended
            if folder.name.isdecimal() and (folder / "cmdline").read_bytes().startswith(b"ray::compute"):
                found.append(int(folder.name))
    return found


def test_features_and_shards_are_those_of_one_process(run_lines, trained_once, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "many.npz", images=rng.integers(0, 256, (2000, 16, 16, 3), np.uint8))
    features = ["features", trained_once, tmp_path / "many.npz", "--out", tmp_path / "f.npy", "--batch-size", 1]
    assert run_lines(features, lambda: any(tmp_path.glob("f-*.npy.part/features.npy")))
    index = json.loads((tmp_path / "f.json").read_text())
    parts = [np.load(tmp_path / part["features"]) for part in index["parts"]]
    assert index["images"] == 2000 and len(parts) == 8
    from maejax.cli import main

    assert main([*map(str, features), "--out", str(tmp_path / "alone.npy")]) == 0
    alone = np.load(tmp_path / "alone.npy")
    assert np.abs(np.concatenate(parts) - alone).max() <= 1e-6 * np.abs(alone).max()

    pack = ["pack", tmp_path / "many.npz", tmp_path / "packed", "--shard-size", 100, "--workers", 1]
    assert run_lines(pack, lambda: any((tmp_path / "packed").glob("*.tar")))
    assert json.loads((tmp_path / "packed/index.json").read_text())["total"] == 2000
    assert main(["pack", "--verify", str(tmp_path / "packed"), "--deep"]) == 0
