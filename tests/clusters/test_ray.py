"""Parts as Ray tasks, by the lines of docs/clusters.md as they stand there, with a worker killed in the middle."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from ..conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray here: pip install 'maejax[ray]'"),
]

PAGE = (ROOT / "docs/clusters.md").read_text()
LINES = re.search(r"^```python\n(import subprocess\n\nimport ray\n.*?)^```", PAGE, re.M | re.S)
START = "import ray; ray.init(num_cpus=8, include_dashboard=False)\n"


def run_lines(folder, command, begun):
    """Run the lines with another command, and kill the worker of a part once one has `begun`; return the worker."""
    assert LINES is not None
    words = [sys.executable, "-m", "maejax", *map(str, command)]
    script = START + re.sub(r"^COMMAND = .*$", f"COMMAND = {words!r}", LINES[1], flags=re.M)
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "JAX_NUM_CPU_DEVICES": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while process.poll() is None and not begun():
        time.sleep(0.01)
    worker = next(workers(), None)
    if worker is not None:
        os.kill(worker, signal.SIGKILL)
    printed = process.communicate(timeout=1200)[0]
    assert process.returncode == 0, printed
    return worker


def workers():
    """Yield the processes that do a task."""
    for folder in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended
            if folder.name.isdecimal() and (folder / "cmdline").read_bytes().startswith(b"ray::compute"):
                yield int(folder.name)


def test_features_and_shards_are_those_of_one_process(trained_once, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "many.npz", images=rng.integers(0, 256, (2000, 16, 16, 3), np.uint8))
    features = ["features", trained_once, tmp_path / "many.npz", "--out", tmp_path / "f.npy", "--batch-size", 1]
    assert run_lines(tmp_path, features, lambda: any(tmp_path.glob("f-*.npy.part/features.npy")))
    index = json.loads((tmp_path / "f.json").read_text())
    parts = [np.load(tmp_path / part["features"]) for part in index["parts"]]
    assert index["images"] == 2000 and len(parts) == 8
    alone = [sys.executable, "-m", "maejax", *map(str, features), "--out", str(tmp_path / "alone.npy")]
    subprocess.run(alone, check=True)
    assert np.concatenate(parts).tobytes() == np.load(tmp_path / "alone.npy").tobytes()

    pack = ["pack", tmp_path / "many.npz", tmp_path / "packed", "--shard-size", 100, "--workers", 1]
    assert run_lines(tmp_path, pack, lambda: any((tmp_path / "packed").glob("*.tar")))
    assert json.loads((tmp_path / "packed/index.json").read_text())["total"] == 2000
    subprocess.run([sys.executable, "-m", "maejax", "pack", "--verify", tmp_path / "packed", "--deep"], check=True)
