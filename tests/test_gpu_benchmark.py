"""The benchmark of GPUs does all of its parts at tiny sizes on this machine."""

import json
import os
import subprocess
import sys

import pytest

from .conftest import ROOT


@pytest.mark.slow
def test_every_part_of_the_benchmark_runs(tmp_path):
    pytest.importorskip("torch", reason="the steps are compared with PyTorch's")
    command = [sys.executable, ROOT / "benchmarks/gpu.py", *"--tiny --rounds 2 --steps 1 --seconds 900".split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run([*command, "--out", "out"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "out/gpu.json").read_text())
    assert not found["failed"] and {"card", "doctor", "photos", "arrays"} < found.keys()
    step = found["steps"]["tiny"]
    assert not step["failed"] and all(step[side]["images_per_second"] > 0 for side in ("cudnn", "xla", "torch"))
    assert step["xla"]["over_torch"][0] > 0 and step["plan"]["memory"]["peak"] > 0
    page = (tmp_path / "out/gpu.md").read_text()
    assert "| tiny torch |" in page and "| photos |" in page
