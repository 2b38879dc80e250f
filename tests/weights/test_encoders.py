"""Encoders of other codes, read, computed and written as timm and transformers do; needs the extra `interop`."""

import functools

import numpy as np
import pytest

from maejax.errors import WeightsError
from maejax.models.description import change_encoder
from maejax.weights import files, huggingface, torch_export, torch_names
from maejax.weights.timm_card import read_card
from maejax.weights.weights import Facts, blank_arrays, check, model_of
from tests.weights.test_peers import X, close, ours

pytestmark = pytest.mark.filterwarnings("ignore")
torch = pytest.importorskip("torch")
SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 1, "num_classes": 0}
PHOTO = torch.from_numpy(X[..., :16].copy())
IMAGE = ours(X[..., :16])


def shaken(model):
    """Give every weight of a model a random value, so that none is at a neutral start."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        scale = torch.rand_like(weight) + 0.5 if "norm" in name and name.endswith("weight") else None
        weight.data = 0.3 * torch.randn_like(weight) if scale is None else scale
    return model.eval()


TIMM = {
    "AugReg": ("vit_base_patch16_224", {"num_classes": 7}),
    "DeiT": ("deit_base_patch16_224", {"num_classes": 7}),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", {}),
    "DeiT III": ("deit3_small_patch16_224", {"num_classes": 7}),
    "DINO": ("vit_base_patch16_224", {}),
    "DINOv2": ("vit_small_patch14_dinov2", {}),
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", {}),
    "DINOv2, SwiGLU": ("vit_giant_patch14_reg4_dinov2", {"embed_dim": 96}),
    "DINOv3": ("vit_small_patch16_dinov3", {"global_pool": "token"}),
    "DINOv3, biases": ("vit_small_patch16_dinov3_qkvb", {"global_pool": "token"}),
    "DINOv3, SwiGLU": ("vit_small_plus_patch16_dinov3", {"global_pool": "token"}),
    "I-JEPA": ("vit_huge_patch14_gap_224", {"global_pool": "avg", "fc_norm": False}),
    "CLIP": ("vit_base_patch16_clip_224", {"num_classes": 7}),
    "CLIP, OpenAI": ("vit_base_patch16_clip_quickgelu_224", {}),
    "SigLIP": ("vit_base_patch16_siglip_224", {"mlp_ratio": 3.75}),
    "SigLIP, head": ("vit_base_patch16_siglip_224", {"num_classes": 7}),
    "SigLIP, mean": ("vit_base_patch16_siglip_gap_224", {}),
}


@pytest.mark.parametrize("name", TIMM)
def test_timms_encoders_are_computed_and_come_back(timm, same, tmp_path, name):
    architecture, options = TIMM[name]
    model = shaken(timm.create_model(architecture, **SIZES | options))
    facts = {"gelu": "quick"} if "OpenAI" in name else {}
    torch.save(model.state_dict(), tmp_path / "t.pth")
    weights = files.read(tmp_path / "t.pth", image_size=(16, 16), heads=1, **facts)
    mine = model_of(weights)
    with torch.no_grad():
        tokens = model.forward_features(PHOTO)
        close(mine.encode(IMAGE, None), tokens)
        if options.get("num_classes"):
            close(mine(IMAGE), model(PHOTO))
        elif "SigLIP" in name and "mean" not in name:
            close(mine.encode(IMAGE, "map"), model(PHOTO))
    files.write(weights, tmp_path / "back.pth", "timm")
    state = torch.load(tmp_path / "back.pth", weights_only=True)
    if "distilled" not in name:  # its token is written as a register
        same({n: a.numpy() for n, a in state.items()}, {n: a.numpy() for n, a in model.state_dict().items()})
    builder, arguments = torch_export.timm_model(weights.config)
    arguments = eval(repr(arguments), {"timm": timm, "torch": torch, "functools": functools})  # as on a card
    again = timm.create_model(builder, **arguments).eval()
    assert str(again.load_state_dict(state)) == "<All keys matched successfully>"
    with torch.no_grad():
        close(mine.encode(IMAGE, None), again.forward_features(PHOTO))
    stated = files.read(tmp_path / "back.pth")
    placed = {"cls_position": stated.config.encoder.cls_position}  # of a distilled DeiT it went into the token
    assert stated.config == change_encoder(weights.config, **placed) and stated.notices == ()


PUBLISHED = """vit_tiny_patch16_224 vit_base_patch32_384 vit_huge_patch14_224 deit_base_distilled_patch16_384
deit3_huge_patch14_224 vit_base_patch8_224
vit_large_patch14_dinov2 vit_giant_patch14_reg4_dinov2 vit_small_patch16_dinov3
vit_huge_plus_patch16_dinov3 vit_huge_patch14_gap_224 vit_giant_patch16_gap_224 vit_large_patch14_clip_quickgelu_336
vit_huge_patch14_clip_224 vit_so400m_patch14_siglip_224 vit_giantopt_patch16_siglip_256""".split()


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_published_sizes_are_read(timm, architecture):
    """By shapes alone: arrays that take no memory."""
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=0)
    blank = np.float32(0)
    state, _ = torch_names.canonical({n: np.broadcast_to(blank, a.shape) for n, a in model.state_dict().items()})
    rotary = model.default_cfg["input_size"][1:] if "dinov3" in architecture else None
    config, _ = torch_names.config_of(state, architecture, Facts(image_size=rotary))
    check(torch_names.to_theirs(blank_arrays(config), config), state, architecture)
    block = model.blocks[0]
    assert (config.image_size, config.heads) == (model.default_cfg["input_size"][1:], block.attn.num_heads)
    assert config.norm_eps == block.norm1.eps


SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "intermediate_size": 240,
    "image_size": 16,
    "patch_size": 4,
}
HF = {
    "ViT": ("ViTModel", "ViTConfig", {}),
    "DeiT": ("DeiTModel", "DeiTConfig", {}),
    "DeiT, head": ("DeiTForImageClassification", "DeiTConfig", {}),
    "DINOv2": ("Dinov2Model", "Dinov2Config", {}),
    "DINOv2, head": ("Dinov2ForImageClassification", "Dinov2Config", {"num_labels": 7}),
    "DINOv2, SwiGLU": ("Dinov2Model", "Dinov2Config", {"use_swiglu_ffn": True}),
    "DINOv2, registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {}),
    "DINOv2, registers, head": ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", {}),
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 4}),
    "DINOv3, SwiGLU": ("DINOv3ViTModel", "DINOv3ViTConfig", {"use_gated_mlp": True, "hidden_act": "silu"}),
    "I-JEPA": ("IJepaModel", "IJepaConfig", {}),
    "I-JEPA, head": ("IJepaForImageClassification", "IJepaConfig", {"num_labels": 7}),
    "CLIP": ("CLIPVisionModel", "CLIPVisionConfig", {}),
    "CLIP, projection": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {}),
    "SigLIP": ("SiglipVisionModel", "SiglipVisionConfig", {}),
}


@pytest.mark.parametrize("name", HF)
def test_transformers_encoders_are_computed_and_come_back(transformers, same, tmp_path, name):
    kind, config, options = HF[name]
    extra = {"add_pooling_layer": False} if kind in ("ViTModel", "DeiTModel", "IJepaModel") else {}
    model = shaken(getattr(transformers, kind)(getattr(transformers, config)(**SMALL | options), **extra))
    model.save_pretrained(tmp_path / "theirs")
    weights = files.read(tmp_path / "theirs")
    mine = model_of(weights)
    files.write(weights, tmp_path / "ours", "hf")
    kind = kind.removesuffix("WithProjection")
    back, info = getattr(transformers, kind).from_pretrained(tmp_path / "ours", output_loading_info=True, **extra)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for peer in (model, back.eval()):
        with torch.no_grad():
            out = peer(PHOTO)
            if "head" in name:
                close(mine(IMAGE), out.logits)
            elif "CLIP" in name:  # the norm there is of the pooled token alone
                tower = getattr(peer, "vision_model", peer)
                close(mine.encode(IMAGE, None), tower.post_layernorm(out.last_hidden_state))
            else:
                close(mine.encode(IMAGE, None), out.last_hidden_state)
            if "SigLIP" in name:
                close(mine.encode(IMAGE, "map"), out.pooler_output)
    same(files.read(tmp_path / "ours").arrays, weights.arrays)


DEFAULTS = """ViTModel DeiTModel Dinov2Model Dinov2WithRegistersModel DINOv3ViTModel IJepaModel CLIPVisionModel
SiglipVisionModel CLIPModel SiglipModel ViTMAEForPreTraining""".split()


@pytest.mark.parametrize("kind", DEFAULTS)
def test_default_sizes_of_transformers_are_read(transformers, kind):
    """By shapes alone: arrays that take no memory."""
    made = getattr(transformers, kind)
    settings = made.config_class()
    with torch.device("meta"):
        model = made(settings)
    blank = np.float32(0)
    state = {name: np.broadcast_to(blank, array.shape) for name, array in model.state_dict().items()}
    _, config, _ = huggingface.from_state(state, settings.to_dict(), kind)
    vision = getattr(settings, "vision_config", settings)
    assert (config.encoder.dim, config.encoder.heads) == (vision.hidden_size, vision.num_attention_heads)
    assert config.encoder.norm_eps == vision.layer_norm_eps and config.encoder.image_size == (vision.image_size,) * 2


def test_what_no_layout_holds_is_named(weights, tmp_path):
    rotary = weights("encoder", "rotary", layerscale=True, qkv_bias=False)
    pooled = weights("encoder", "learnable", cls_token=False, attention_pool=True)
    for made, layout, part in [
        (rotary, "fair", "the authors' code has no LayerScale"),
        (rotary, "original", "the original has no attention without biases"),
        (weights("cls", "learnable", pre_norm=True), "hf", "transformers' clip_vision_model has no head of classes"),
        (weights("encoder", "rotary"), "hf", "transformers' dinov3_vit has no block without LayerScale"),
        (pooled, "fair", "the authors' code has no encoder without a cls token"),
    ]:
        with pytest.raises(WeightsError, match=f"{part}; convert to "):
            files.write(made, tmp_path / "out", layout)
    meta = {"model_type": "swin", "hidden_size": 8}
    with pytest.raises(WeightsError, match="x is a swin model; known here are vit, vit_mae, deit, ijepa, dinov2"):
        huggingface.from_state({}, meta, "x")
    theirs, family = huggingface.state_of(rotary)
    base = {"model_type": family.kind, "num_attention_heads": 1, "image_size": [16, 24]}
    with pytest.raises(WeightsError, match=r"extra layer\.0\.attention\.gate"):
        huggingface.from_state(theirs | {"layer.0.attention.gate": np.ones(3)}, base, "x")
    with pytest.raises(WeightsError, match="rotary positions of base 10; only DINOv3's 100 is known"):
        huggingface.from_state(theirs, base | {"rope_theta": 10}, "x")
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch16_rope_224"}')
    with pytest.raises(WeightsError, match="vit_base_patch16_rope_224 has rotary positions of another kind"):
        read_card(tmp_path)
