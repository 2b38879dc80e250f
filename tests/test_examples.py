"""Every example runs, at a few steps; that of PyTorch is in tests/weights/test_peers.py.

Training itself is idle here: tests/api/test_trained.py compiles steps with a mask, a target and
a decoder of the user's.
"""

import runpy

import numpy as np
import pytest

from .conftest import ROOT

EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem != "pytorch_finetune")


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs(name, idle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with idle():
        made = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](steps=10, count=64)
    if name == "flax_loop":
        assert np.isfinite(made).all() and made[-1] < made[0]
    elif name == "quickstart":
        assert "right by 20 neighbours" in capsys.readouterr().out
    else:
        assert len(list(tmp_path.glob("runs/*/checkpoints/10"))) == (2 if name == "grain_feed" else 1)
