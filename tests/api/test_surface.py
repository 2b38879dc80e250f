"""What `import maejax` offers: it costs nothing before it is used, and types tell a wrong call from a right one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest

import maejax
from maejax.api import flags
from maejax.errors import InputError
from maejax.pixels import Pixels

NOT_IN_PYTHON = {"mode", "mask", "target", "decoder", "train_dataset_shards", "valid_dataset_shards", "ipaddr"}
WIDER = {"image_size", "image_mask_ratio", "output_dir", "pretrained_ckpt"}


def test_import_brings_nothing_large_and_every_name_is_there():
    program = "import sys, maejax; sys.exit(bool({'jax', 'numpy', 'rich', 'PIL'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    for name in maejax.__all__:
        assert getattr(maejax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        maejax.trian  # noqa: B018


def test_keyword_arguments_have_the_types_of_the_flags():
    typed, options = get_type_hints(flags.TrainFlags), flags.types_of_flags()
    assert options.keys() - typed.keys() == NOT_IN_PYTHON | {"print_config", "eval_only"}
    assert not typed.keys() - options.keys()
    for name in typed.keys() - WIDER:
        of_numbers = get_origin(options[name]) is tuple and get_args(typed[name])[0] is float
        assert typed[name] == options[name] or of_numbers, name
    assert get_type_hints(flags.ReadFlags).keys() == get_type_hints(Pixels).keys()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layrs": 2}, "there is no flag --layrs; did you mean --layers?"),
        ({"layers": "2"}, "layers='2': give a whole number"),
        ({"dropout": True}, "dropout=True: give a number"),
        ({"gated": 1}, "gated=1: give True or False"),
        ({"posemb": "learned"}, "posemb='learned': give one of 'learnable', 'sincos2d', 'rotary'"),
        ({"bands": 3}, "bands=3: give text"),
        ({"mean": ("a",)}, "mean='a': give a number"),
        ({"image_size": 20}, "patches of 16 pixels do not divide"),
        ({"target": "pca"}, "target='pca' is computed from images or weights"),
        ({"size": "s"}, "--model s: choose one of"),
        (
            {"target": lambda x: x, "image_size": 32},
            "return [B, 4, P], values of each patch, for images [B, 32, 32, 3]",
        ),
    ],
)
def test_wrong_values_are_named(given, said):
    with pytest.raises(InputError) as error:
        maejax.create(**given)
    assert said in str(error.value)


@pytest.mark.slow
def test_pyright_passes_a_script_and_finds_what_is_wrong(tmp_path):
    right = """
        import numpy as np
        import maejax
        model = maejax.create("ti8", image_size=64)
        data = maejax.Dataset(np.zeros((8, 64, 64, 3), np.uint8), labels=[0, 1] * 4)
        run = maejax.train(train_dataset_shards=data, model=model, callbacks=[lambda step, metrics: step > 3])
        loss: float = run.metrics[-1]["train/loss"]
        probe = maejax.train(data, mode="finetune", epochs=3, layers=2).model.config.labels
        accuracy: float = maejax.evaluate(run.model, data, data).scores["pretrained"]["linear"]
        maejax.save(run.model, "x.pth", to="timm")
        maejax.reconstruct(run.model, np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 64), np.int32))
        features = maejax.load("x.pth").encode(np.zeros((1, 64, 64, 3), np.uint8))
    """
    wrong = """
        maejax.create(layrs=2)
        maejax.create(layers="2")
        maejax.train(data, mask="blok")
        maejax.train(data, mode="linear", mask="block")
        maejax.save(run.model, "x.pth", to="torch")
    """
    lines = [line.strip() for line in (right + wrong).strip().splitlines() if line.strip()]
    (tmp_path / "script.py").write_text("\n".join(lines))
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps({"typeCheckingMode": "standard", "extraPaths": [str(Path(maejax.__file__).parents[1])]})
    )
    command = [Path(sys.executable).with_name("pyright"), "--outputjson", "--pythonpath", sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)["generalDiagnostics"]
    faults = {each["range"]["start"]["line"] for each in found if each["severity"] == "error"}
    assert faults == set(range(len(lines) - 5, len(lines))), found
