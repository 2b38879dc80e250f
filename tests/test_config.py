"""Flags: every one of the original's is there, and each mode's defaults are the published recipe."""

import pytest

from maejax.config import flags, with_flags
from maejax.errors import InputError
from maejax.recipes import recipe
from maejax.tasks.checks import differences

ORIGINAL = """mode image_mask_ratio train_dataset_shards valid_dataset_shards train_batch_size valid_batch_size
train_loader_workers valid_loader_workers random_crop color_jitter auto_augment random_erasing augment_repeats
test_crop_ratio mixup cutmix criterion label_smoothing layers dim heads labels layerscale patch_size image_size posemb
pooling dropout droppath grad_ckpt dec_layers dec_dim dec_heads dec_layerscale dec_posemb dec_dropout dec_droppath
norm_pix_loss init_seed mixup_seed dropout_seed noise_seed shuffle_seed pretrained_ckpt label_mapping optimizer
learning_rate weight_decay adam_b1 adam_b2 adam_eps lr_decay clip_grad grad_accum warmup_steps training_steps
log_interval eval_interval project name ipaddr hostname output_dir""".split()


def test_every_flag_of_the_original_is_there():
    assert set(ORIGINAL) <= set(flags(recipe("pretrain")))


def test_defaults_are_the_published_recipes():
    pretrain, linear, finetune = (flags(recipe(mode)) for mode in ("pretrain", "linear", "finetune"))
    for name, values in {
        "train_batch_size": (4096, 16384, 1024),
        "learning_rate": (1.5e-4, 0.1, 1e-3),
        "weight_decay": (0.05, 0, 0.05),
        "adam_b2": (0.95, 0.999, 0.999),
        "optimizer": ("adamw", "lars", "adamw"),
        "crop_scale": (0.2, 0.08, 0.08),
        "image_mask_ratio": (0.75, 0, 0),
        "lr_decay": (1, 1, 0.75),
        "droppath": (0, 0, 0.1),
        "mixup": (0, 0, 0.8),
        "cutmix": (0, 0, 1),
        "label_smoothing": (0, 0, 0.1),
        "random_erasing": (0, 0, 0.25),
        "pooling": ("cls", "cls", "gap"),
        "dec_layers": (8, 8, 8),
        "dec_heads": (16, 16, 16),
    }.items():
        assert (pretrain[name], linear[name], finetune[name]) == values, name


def test_flags_that_json_has_changed_are_the_same():
    assert differences({"a": (1, 2), "b": 1}, {"a": [1, 2], "b": 2}) == ["--b 1 -> 2"]


def test_wrong_flags_are_refused():
    with pytest.raises(InputError, match="no flag --layer; did you mean --layers"):
        with_flags(recipe("pretrain"), layer=3)
    with pytest.raises(InputError, match="--mode train: choose one of pretrain, linear, finetune"):
        recipe("train")
    with pytest.raises(InputError, match="--image-size 224y"):
        _ = with_flags(recipe("pretrain"), image_size="224y").image_shape
    assert with_flags(recipe("pretrain"), image_size="224x112").image_shape == (224, 112)
