"""Every layout that needs no other package: parity with golden files, exact round trips, strictness."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

from maejax.errors import WeightsError
from maejax.weights import files, huggingface, native, original, torch_export, torch_names
from maejax.weights.pretrained import fetch_pretrained, fit_channels, resize_positions
from maejax.weights.weights import Facts, model_of, positions_kind, sincos_table
from tests.bounds import assert_close, rounding
from tests.conftest import GOLDEN


@pytest.mark.parametrize("table", ["sincos2d", "learnable"])
def test_the_originals_probe_gives_its_logits(golden, table):
    weights = files.read(GOLDEN / f"seed_linear_{table}.msgpack", image_size=(32, 32))
    assert (weights.config.kind, weights.config.encoder.gelu, weights.config.encoder.heads) == ("classifier", "tanh", 3)
    kind = positions_kind(weights.arrays["encoder.positions"], (4, 4))
    assert kind == {"sincos2d": "original", "learnable": "learned"}[table]
    expected = golden(f"seed_linear_{table}_expected")
    model = model_of(weights)
    images = expected["images_uint8_nchw"].transpose(0, 2, 3, 1)
    logits = jax.jit(lambda model: model(model.normalize(images)))(model)
    assert_close(logits, expected["logits"])


@pytest.mark.parametrize("name", ["linear_sincos2d", "linear_learnable", "pretrain_sincos2d", "pretrain_learnable"])
def test_the_originals_files_come_back_bit_by_bit(tmp_path, same, name):
    source = GOLDEN / f"seed_{name}.msgpack"
    files.write(files.read(source, image_size=(32, 32)), tmp_path / "back.msgpack", "original")
    old, new = (
        original.flatten(serialization.msgpack_restore(p.read_bytes())) for p in (source, tmp_path / "back.msgpack")
    )
    same(old, new)


def fair_weights(golden, name, **known):
    g = golden(name)
    heads, dec_heads = (int(g["config"][i]) for i in (4, 7)) if "mae" in name else (3, None)
    return g, torch_names.from_state(g["weights"], name, "fair", None, Facts(heads=heads, dec_heads=dec_heads, **known))


@pytest.mark.parametrize("name", ["mae_raw", "mae_norm_pix", "finetune_cls", "finetune_gap", "linear"])
def test_the_authors_tensors_come_back_bit_by_bit(golden, same, tmp_path, name):
    g, weights = fair_weights(golden, f"fair_{name}")
    same(torch_export.to_fair(weights)[0], g["weights"])
    files.write(weights, tmp_path / "neutral.safetensors", "maejax")
    again = files.read(tmp_path / "neutral.safetensors")
    same(again.arrays, weights.arrays)
    assert (again.config, again.notices) == (weights.config, weights.notices)


def test_the_authors_probe_gives_its_logits(golden):
    g, weights = fair_weights(golden, "fair_linear")
    after = {**g["weights"], **g["after"]}
    weights = torch_names.from_state(after, "after", "fair", None, Facts(heads=3))
    x = jnp.asarray(g["images"][0].transpose(0, 2, 3, 1))
    assert_close(jax.jit(lambda model: model(x))(model_of(weights)), g["eval_logits_after"])


def test_the_authors_mae_gives_its_loss(golden):
    g, weights = fair_weights(golden, "fair_mae_norm_pix", norm_pix_loss=True)
    weights = replace(weights, config=replace(weights.config, mask_ratio=float(g["mask_ratio"])))
    order = jnp.argsort(jnp.asarray(g["noise"][0]), axis=1)
    x = jnp.asarray(g["images"][0].transpose(0, 2, 3, 1))
    out = jax.jit(lambda model: model(x, order))(model_of(weights))
    assert_close(out.loss.mean(), g["losses"][0])


@pytest.mark.parametrize("name", ["cross_mae_norm_pix", "cross_mae_raw"])
def test_a_cross_attention_decoder_comes_back_bit_by_bit_and_gives_its_loss(golden, same, tmp_path, name):
    g = golden(name)
    ratio, share = float(g["mask_ratio"]), float(g["predicted_ratio"]) / float(g["mask_ratio"])
    facts = {"heads": int(g["config"][4]), "dec_heads": int(g["config"][7]), "norm_pix_loss": bool(g["norm_pix"])}
    native.write_safetensors(g["weights"], tmp_path / "theirs.safetensors")
    unknown = files.read(tmp_path / "theirs.safetensors", heads=facts["heads"], dec_heads=facts["dec_heads"]).notices
    assert [flag for flag in ("norm-pix-loss", "predict-share", "mask-ratio") if f"(--{flag})" in " ".join(unknown)]
    known = {**facts, "mask_ratio": ratio, "predict_share": share}
    weights = files.read(tmp_path / "theirs.safetensors", **known)
    x, order = g["images"][0].transpose(0, 2, 3, 1), np.argsort(g["noise"][0], axis=1)
    model = files.load(tmp_path / "theirs.safetensors", **known)
    out = jax.jit(lambda model: model(x, order))(model)
    assert_close(out.loss.mean(), g["losses"][0])
    same(torch_export.to_fair(weights)[0], g["weights"])
    files.write(weights, tmp_path / "fair.safetensors", "fair")
    back = files.read(tmp_path / "fair.safetensors")
    same(back.arrays, weights.arrays)
    assert back.config == weights.config and not back.notices
    for layout in ("hf", "original"):
        with pytest.raises(WeightsError, match="cross-attention"):
            files.write(weights, tmp_path / layout, layout)


@pytest.mark.parametrize("kind", ["mae", "encoder", "cls", "gap", "probe"])
@pytest.mark.parametrize("posemb", ["sincos2d", "learnable"])
def test_our_file_loses_nothing(weights, same, tmp_path, kind, posemb):
    made = weights(kind, posemb, layerscale=kind != "probe")
    files.write(made, tmp_path / "w.safetensors", "maejax")
    same(files.read(tmp_path / "w.safetensors").arrays, made.arrays)


@pytest.mark.parametrize("kind", ["mae", "encoder", "cls"])
def test_hugging_face_directories_come_back_bit_by_bit(weights, same, tmp_path, kind):
    made = weights(kind, image_size=(16, 16) if kind == "mae" else (16, 24))
    files.write(made, tmp_path / "hf", "hf")
    back = files.read(tmp_path / "hf")
    same(back.arrays, made.arrays)
    assert back.config == made.config


def test_the_names_of_transformers_5_are_those_of_4():
    for new, old in {
        "vit.layers.3.attention.q_proj.bias": "vit.encoder.layer.3.attention.attention.query.bias",
        "decoder.decoder_encoder.layer.0.mlp.fc2.weight": "decoder.decoder_layers.0.output.dense.weight",
        "layers.0.attention.o_proj.weight": "vit.encoder.layer.0.attention.output.dense.weight",
    }.items():
        assert huggingface.old_name(new) == old


@pytest.mark.parametrize("identity", [False, True])
def test_timm_files_come_back_bit_by_bit(weights, same, tmp_path, identity):
    for kind in ("encoder", "cls", "gap"):
        made = weights(kind, layerscale=kind == "gap")
        notices = files.write(made, tmp_path / "t.safetensors", "timm", identity=identity)
        assert bool(notices) == (identity and kind != "gap")
        same(files.read(tmp_path / "t.safetensors", image_size=(16, 24)).arrays, made.arrays)


def test_every_wrong_tensor_is_listed(weights):
    state, _ = torch_export.to_fair(weights("mae"))
    del state["blocks.1.attn.qkv.bias"], state["decoder_norm.weight"]
    state["blocks.0.mlp.fc1.weight"] = state["blocks.0.mlp.fc1.weight"][:-1]
    state["extra.weight"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsError) as error:
        torch_names.from_state(state, "x.pth", "fair", None, Facts(image_size=(16, 24), dec_heads=2))
    for part in (
        "x.pth is not a whole model (4 tensors)", "missing blocks.1.attn.qkv.bias (192,)",
        "missing decoder_norm.weight (32,)", "extra extra.weight (3,)",
        "blocks.0.mlp.fc1.weight is (255, 64), not (256, 64)",
    ):  # fmt: skip
        assert part in str(error.value)


def test_what_is_not_in_the_file_is_asked_for(weights, golden):
    state, _ = torch_export.to_fair(weights("encoder", "learnable"))
    with pytest.raises(WeightsError, match="24 patches are no square: give --image-size HxW"):
        torch_names.from_state(state, "x", "fair", None, Facts())
    with pytest.raises(WeightsError, match="width 48 is no multiple of 64: give --heads"):
        torch_names.from_state(golden("fair_linear")["weights"], "x", "fair", None, Facts())
    with pytest.raises(WeightsError, match="no LayerScale"):
        torch_export.to_fair(weights("encoder", layerscale=True))
    with pytest.raises(WeightsError, match="mean pooling"):
        huggingface.state_of(weights("gap"))


@pytest.mark.parametrize("layout", ["fair", "original", "hf"])
def test_a_layout_without_query_key_normalisation_refuses_it(weights, tmp_path, layout):
    with pytest.raises(WeightsError, match=r"no (place for .*k_norm|query-key normalisation).*convert to .*timm"):
        files.write(weights("encoder", qk_norm=True), tmp_path / "out", layout)
    assert not (tmp_path / "out").exists()


def test_positions_are_interpolated_and_the_cls_row_stays(weights, tmp_path):
    files.write(weights("encoder"), tmp_path / "w.safetensors", "maejax")
    found, _ = fetch_pretrained(str(tmp_path / "w.safetensors"), (32, 24), 3)
    arrays = found.arrays
    table = weights("encoder").arrays["encoder.positions"]
    assert found.config.encoder.image_size == (32, 24) and arrays["encoder.positions"].shape == (1, 49, 64)
    np.testing.assert_array_equal(arrays["encoder.positions"][:, 0], table[:, 0])
    constant = np.concatenate([table[:, :1], np.ones((1, 24, 64), np.float32)], axis=1)
    assert_close(resize_positions(constant, (4, 6), (7, 3))[:, 1:], 1, rounding(4 + 4))
    # torch.nn.functional.interpolate(mode="bicubic") of 0, 1, 4, 9 to six points
    line = np.concatenate([np.zeros((1, 1, 1)), np.array([0, 1, 4, 9.0]).reshape(1, 4, 1)], axis=1).astype(np.float32)
    expected = [-0.086806, 0.21875, 1.430555, 3.152778, 6.78125, 9.434029]
    assert_close(resize_positions(line, (1, 4), (1, 6))[0, 1:, 0], expected, rounding(4 + 4))
    assert positions_kind(sincos_table((4, 6), 64)[None], (4, 6)) == "authors"


def test_channels_change_by_a_rule_alone(weights, tmp_path):
    files.write(weights("encoder"), tmp_path / "w.safetensors", "maejax")
    path = str(tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="for 3 channels, not 1: give --channel-rule sum or repeat"):
        fetch_pretrained(path, (16, 24), 1)
    kernel = weights("encoder").arrays["encoder.embed.kernel"]
    found, _ = fetch_pretrained(path, (16, 24), 1, channel_rule="sum")
    grey = found.arrays
    assert found.config.encoder.channels == 1 and len(found.config.encoder.mean) == 1
    x = np.random.default_rng(0).normal(size=(1, 16, 1)).astype(np.float32)
    colour = np.repeat(x, 3, axis=2).reshape(1, -1)
    assert_close(x.reshape(1, -1) @ grey["encoder.embed.kernel"], colour @ kernel, rounding(48))
    assert fit_channels(kernel, 3, 5, "repeat").shape == (16 * 5, 64)
