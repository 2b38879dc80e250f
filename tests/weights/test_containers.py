"""Weights in the containers of others: parts, nests, wrapped names, half precision, an encoder inside of more."""

import argparse
import json
import os
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from maejax.errors import WeightsError
from maejax.weights import containers, files, huggingface, torch_export

from ..bounds import assert_close


@pytest.fixture
def timm(weights):
    """Make an encoder; return it and its tensors by timm's names."""
    made = weights("encoder", image_size=(16, 16))
    return made, torch_export.to_timm(made)[0]


def write_parts(state, folder, name="model.safetensors", save=save_file):
    """Write a state dict in two parts with their index; return the index."""
    stem, suffix = Path(name).stem, Path(name).suffix
    names = [f"{stem}-0000{i}-of-00002{suffix}" for i in (1, 2)]
    split = [dict(list(state.items())[i::2]) for i in (0, 1)]
    for part, tensors in zip(names, split, strict=True):
        save({n: np.ascontiguousarray(a) for n, a in tensors.items()}, folder / part)
    index = folder / f"{name}.index.json"
    index.write_text(json.dumps({"weight_map": {n: names[i] for i in (0, 1) for n in split[i]}}))
    return index


def test_parts_are_joined_and_a_missing_one_is_named(timm, same, tmp_path):
    made, state = timm
    index = write_parts(state, tmp_path)
    same(files.read(index, image_size=(16, 16), heads=made.config.heads).arrays, made.arrays)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit", "model_args": {"num_heads": 2}}))
    same(files.read(tmp_path).arrays, made.arrays)  # timm's folder
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-00002-of-00002\.safetensors, which is not beside it: fetch all 2"):
        files.read(tmp_path)


def test_hugging_face_in_parts(weights, same, tmp_path):
    made = weights("mae", image_size=(16, 16))
    huggingface.write(made, tmp_path)
    state = containers.read(tmp_path / "model.safetensors").arrays
    (tmp_path / "model.safetensors").unlink()
    index = write_parts(state, tmp_path)
    for path in (tmp_path, index):
        same(files.read(path).arrays, made.arrays)
    index.unlink()
    with pytest.raises(WeightsError, match=r"has a config\.json and no weights: it needs model\.safetensors, "):
        files.read(tmp_path)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_read_as_float32_and_said(timm, tmp_path, kind):
    made, state = timm
    save_file({n: np.ascontiguousarray(a.astype(kind)) for n, a in state.items()}, tmp_path / "half.safetensors")
    found = files.read(tmp_path / "half.safetensors", image_size=(16, 16), heads=made.config.heads)
    assert {a.dtype.name for a in found.arrays.values()} == {"float32"}
    assert found.notices[0] == f"its numbers are {np.dtype(kind).name}, read as float32"
    for name, array in made.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array.astype(kind).astype(np.float32))


def test_an_encoder_inside_of_more_is_taken_by_its_prefix(timm, same, tmp_path):
    made, state = timm
    more = {f"net.backbone.{n}": np.ascontiguousarray(a) for n, a in state.items()} | {"net.neck": np.ones(3)}
    path = tmp_path / "more.safetensors"
    save_file(more, path)
    for prefix in ("net.backbone.", "net.backbone"):
        same(files.read(path, prefix=prefix, image_size=(16, 16), heads=made.config.heads).arrays, made.arrays)
    with pytest.raises(WeightsError, match=r"give --prefix net\.backbone\. lacks patch_embed"):
        files.read(path)
    with pytest.raises(WeightsError, match=r"--prefix body: no tensor of .* begins so; it holds net \(\d+ tensors\)"):
        files.read(path, prefix="body")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("nest", ["model", "state_dict", "module.", "_orig_mod.module.", "pytorch_model.bin"])
def test_checkpoints_of_training_codes(timm, same, tmp_path, torch, nest):
    made, state = timm
    tensors = OrderedDict((n, torch.from_numpy(np.array(a))) for n, a in state.items())
    path, content = tmp_path / "checkpoint.pth", tensors
    if nest.endswith("."):
        content = {"state_dict": {nest + n: a for n, a in tensors.items()}, "epoch": 3}
    elif nest.endswith(".bin"):
        path = tmp_path / nest
    else:
        args = argparse.Namespace(lr=1e-3, out=Path("/tmp"), best=np.float64(3))  # as the authors save their flags
        optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1.0}]}
        content = {
            nest: tensors,
            "model_ema": {n: 2 * a for n, a in tensors.items()},
            "args": args,
            "optimizer": optimizer,
        }
    for old in (False, True) if nest != "state_dict" else (False,):
        if nest == "model" and old:
            content["args"] = argparse.Namespace(lr=1e-3)
        torch.save(content, path, _use_new_zipfile_serialization=not old)
        known = {"image_size": (16, 16), "heads": made.config.heads}
        same(files.read(path, **known).arrays, made.arrays)
        if nest in ("model", "state_dict"):
            doubled = files.read(path, prefix="model_ema", **known).arrays
            assert_close(doubled, {n: 2 * a for n, a in made.arrays.items()})


def test_no_code_of_a_file_runs_and_nests_are_named(tmp_path, torch):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = tmp_path / "w.pth"
    torch.save({"encoder": {"a": torch.ones(2)}, "target_encoder": {"a": torch.ones(2)}, "bomb": Bomb()}, path)
    with pytest.raises(WeightsError, match=r"cannot be read as tensors alone|its parts are encoder"):
        files.read(path)
    assert not (tmp_path / "exploded").exists()
    torch.save({"encoder": {"a": torch.ones(2)}, "target_encoder": {"a": torch.ones(2)}}, path)
    with pytest.raises(
        WeightsError, match=r"its parts are encoder \(1 tensors\), target_encoder \(1 tensors\): name one"
    ):
        files.read(path)
