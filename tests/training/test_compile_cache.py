"""Compiled programs are kept between commands, and nothing else changes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from maejax.storage.cache import cache_folder
from maejax.training import compile_cache

from ..conftest import TINY


@pytest.fixture
def configured(monkeypatch, tmp_path):
    """Start from JAX's own settings, and restore those of the tests."""
    names = ("dir", "max_size")
    before = {name: getattr(jax.config, f"jax_compilation_cache_{name}") for name in names}
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name in names:
        jax.config.update(f"jax_compilation_cache_{name}", before[name])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def test_programs_are_kept_in_the_users_cache_unless_it_is_off_or_elsewhere(configured, monkeypatch, tmp_path):
    compile_cache.keep_compiled()
    assert Path(jax.config.jax_compilation_cache_dir).parent == cache_folder() / "compiled"
    for name, value in (("jax_compilation_cache_dir", "elsewhere"), ("jax_enable_compilation_cache", False)):
        jax.config.update("jax_compilation_cache_dir", None)
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        compile_cache.keep_compiled()
        kept = jax.config.jax_compilation_cache_dir
        jax.config.update(name, before)
        assert kept == (value or None)
    (tmp_path / "cache").chmod(0o500)
    monkeypatch.setattr(compile_cache.os, "access", lambda *_: False)  # root may write everywhere
    compile_cache.keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_computes_the_same(images, tmp_path):
    taken_out = [name for name in os.environ if name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))]
    environment = {name: value for name, value in os.environ.items() if name not in taken_out}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_LOGGING_LEVEL": "INFO"}
    losses, compiled = [], []
    for name in ("cold", "warm"):
        command = [sys.executable, "-m", "maejax", "train", "--train-dataset-shards", images, *TINY, "--name", name]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["train/loss"] for line in lines])
        compiled.append({path.name for path in (tmp_path / "cache").rglob("*-cache")})
    assert losses[0] == losses[1] and compiled[0] == compiled[1] and any("jit_step" in name for name in compiled[0])
