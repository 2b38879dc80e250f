"""Runs that start from encoders of other kinds than the paper's."""

from maejax.weights import files


def test_encoders_of_other_kinds_are_trained(train, maejax, weights):
    """A new decoder on rotary positions, SwiGLU, registers; fine-tuned attention pooling; a probe on pre-norm."""
    small = {"image_size": (16, 16), "dim": 16, "heads": 2, "norm_eps": 1e-5}
    made = {
        "new": weights("encoder", "rotary", registers=2, gated=True, hidden=40, qkv_bias=False, **small),
        "tune": weights("encoder", "learnable", cls_token=False, attention_pool=True, **small),
        "probe": weights("encoder", "learnable", pre_norm=True, gelu="quick", **small),
    }
    for name, each in made.items():
        files.write(each, f"{name}.safetensors", "maejax")
    own = ["--auto-augment", "none", "--training-steps", 2, "--warmup-steps", 0]
    runs = {
        "new": ["--new-decoder", "--freeze-encoder-steps", 2, "--training-steps", 4, "--eval-interval", 2],
        "tune": ["--mode", "finetune", *own, "--learning-rate", 0],
        "probe": ["--mode", "linear", *own],
    }
    for name, flags in runs.items():
        code, printed = train(*flags, "--pretrained-ckpt", f"{name}.safetensors", "--name", name)
        assert code == 0, printed
        found, start = files.read(f"runs/{name}/checkpoints/2"), made[name]
        unused = ("encoder.norm.",) if name == "tune" and found.config.pooling == "gap" else ()
        for array in (n for n in start.arrays if not n.startswith(unused)):
            assert (found.arrays[array] == start.arrays[array]).all(), array
        assert {**vars(found.config.encoder), **unlike(start)} == {**vars(start.config.encoder), **unlike(start)}
    assert files.read("runs/tune").config.pooling == "map"
    assert any((files.read("runs/new").arrays[n] != a).any() for n, a in made["new"].arrays.items())


def unlike(weights):
    """List fields of an encoder that a run may change, its arrays not."""
    return {name: getattr(weights.config.encoder, name) for name in ("dropout", "droppath", "posemb")}
