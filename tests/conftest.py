"""Shared by all tests: CPU devices, strictness, golden files."""

import functools
import gc
import os
import shutil
import sys
import tempfile
import typing
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

# A step compiles in a third of the time. Where XLA_FLAGS is given, as by `make processors`, it compiles as for users.
# XLA ends the process for a flag that it does not know: the emitters can be left out up to jaxlib 0.10.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith(("0.9.", "0.10.")),
)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

# For tests and the commands that they start: compiling takes a third of the time, and what one compiled, the next need
# not. Of each worker's own, for JAX locks nothing.
_COMPILED = tempfile.TemporaryDirectory(prefix="maejax-compiled-")
for _name, _value in {
    "jax_disable_most_optimizations": True,
    "jax_compilation_cache_dir": _COMPILED.name,
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}.items():
    jax.config.update(_name, _value)
    os.environ[_name.upper()] = str(_value)

# Looking for garbage took a tenth of the time in which a step is compiled. What Python 3.12 remembers of a protocol by
# itself took a sixth of a run without that: Orbax asks a thousand times.
gc.set_threshold(50_000, 20, 100)
if sys.version_info < (3, 12):
    typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"


# By what they cost, from minutes down to ten seconds: begun last, such a file is all that one worker has at the end.
LONG = """tasks/test_pretrain tasks/test_classify test_cli models/test_mae weights/test_training_on tasks/test_images
tasks/test_new_decoder commands/test_demo tasks/test_targets models/test_cross weights/test_commands tasks/test_going_on
commands/test_secrets storage/test_mirror weights/test_peers weights/test_encoders weights/test_files
training/test_state training/test_optim tasks/test_trackers tasks/test_quality models/test_vit training/test_checkpoint
models/test_normalization tasks/test_fast_forms weights/test_earlier commands/test_plan""".split()


def pytest_collection_modifyitems(items):
    """Begin with the longest files."""
    place = {ROOT / "tests" / f"{name}.py": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


def pytest_sessionfinish():
    """Clear up: a worker of xdist ends without doing so by itself."""
    _COMPILED.cleanup()


@pytest.fixture(scope="session", autouse=True)
def _temporary(tmp_path_factory):
    """Keep temporary files where pytest clears them away, for the same reason."""
    tempfile.tempdir = os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("tmp"))


@pytest.fixture(scope="module", autouse=True)
def _few_maps():
    """Forget what was compiled before the system's limit on memory maps is reached; LLVM fails there."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 20_000:  # of 65,530
        jax.clear_caches()


@pytest.fixture(scope="session")
def golden():
    """Read a golden file by its stem: groups "a/b" become nested dictionaries."""

    def read(stem):
        tree = {}
        with np.load(GOLDEN / f"{stem}.npz") as file:
            for name in file.files:
                group, _, rest = name.partition("/")
                if rest:
                    tree.setdefault(group, {})[rest] = file[name]
                else:
                    tree[group] = file[name]
        return tree

    return read


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Write 24 small colour images as an .npz file with labels, and return its path."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("images") / "images.npz"
    np.savez(path, images=rng.integers(0, 256, (24, 16, 16, 3), np.uint8), labels=np.arange(24) % 3)
    return path


TINY = """--image-size 16 --patch-size 4 --layers 2 --dim 16 --heads 2 --dec-layers 1 --dec-dim 8 --dec-heads 2
--train-batch-size 8 --valid-batch-size 8 --warmup-steps 2 --training-steps 6 --log-interval 1 --save-interval 2
--learning-rate 0.05 --train-loader-workers 1 --valid-loader-workers 0""".split()


@pytest.fixture(scope="session")
def one_step_each():
    """Build the step of a configuration once for all runs of this process, and no state: to trace one takes seconds."""
    from maejax.options.input import Data
    from maejax.options.network import Transfer
    from maejax.options.results import Run
    from maejax.tasks import classify, pretrain, run

    def once(build):
        built = {}

        def build_once(config, model, compute, **more):
            data = Data(train_batch_size=config.data.train_batch_size)
            same = (
                replace(config, run=Run(mode=config.run.mode), data=data, transfer=Transfer()),
                model,
                compute,
                *more.items(),
            )
            if same not in built:
                built[same] = build(config, model, compute, **more)
            return built[same]

        return build_once

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "create_state", create_state)
        for task in (classify, pretrain):
            patch.setattr(task, "build_step", once(task.build_step))
        yield


def create_state(init, optimizer, mesh, sharding="replicated"):
    """Build a state as `training.state` does, operation by operation: what one model compiled, the next need not."""
    from maejax.training.mesh import state_sharding
    from maejax.training.state import new_state

    state = new_state(init, optimizer)
    return jax.device_put(state, state_sharding(state, mesh, sharding))


@pytest.fixture(scope="session")
def idle(one_step_each):
    """Let the steps of runs in a `with` count and change nothing, for what a run starts from and what it leaves.

    The step is not compiled for the run.
    """
    from maejax.tasks import classify, pretrain
    from maejax.training.state import Control, FlatState, TrainState

    @jax.jit
    def count(step, requests):
        no, one = jnp.zeros((), bool), jnp.ones(())
        names = ("loss", "grad_norm", "param_norm", "learning_rate")
        return step + 1, {f"train/{name}": one for name in names}, Control(requests.max(axis=0), no, no)

    def take_step(flat, batch, before, requests):
        step, metrics, control = count(flat.state.step, requests)
        return FlatState.of(TrainState(step, flat.state.model, flat.state.opt_state)), metrics, control

    def build(built, *args, **more):
        init, optimizer, _ = built(*args, **more)
        return init, optimizer, take_step

    @contextmanager
    def idling():
        with pytest.MonkeyPatch.context() as patch:
            for task in (classify, pretrain):
                patch.setattr(task, "build_step", functools.partial(build, task.build_step))
            yield

    return idling


@pytest.fixture
def maejax(tmp_path, monkeypatch, capsys, one_step_each):
    """Run the real command line in this process, in an empty folder: `(*args) -> (exit code, printed text)`."""
    from maejax.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def command(*args):
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as exit:
            code = exit.code
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return command


@pytest.fixture
def train(maejax, images):
    """Train a tiny model on tiny images; later flags win."""
    return lambda *args: maejax("train", "--train-dataset-shards", images, *TINY, *args)


@pytest.fixture(scope="session")
def trained_once(images, tmp_path_factory, one_step_each):
    """Train the run of `trained`, once in a session; return its folder."""
    from maejax.cli import main

    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert not main(["train", "--train-dataset-shards", str(images), *TINY])
    return folder / "runs/pretrain"


@pytest.fixture
def trained(maejax, trained_once):
    """Copy the run that `train()` makes into the empty folder; return its name."""
    shutil.copytree(trained_once, "runs/pretrain")
    return "runs/pretrain"
