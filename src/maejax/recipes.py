"""The published recipes (the original's flags; paper, Tables 8-10): what differs from pre-training in each mode.

The whole recipes, for each size of the paper, are the scripts of `config/`, see `commands/recipe.py`.
"""

from typing import Any

from maejax.config import Config, with_flags
from maejax.errors import InputError

_BOTH = {"crop_scale": 0.08, "image_mask_ratio": 0.0, "adam_b2": 0.999}
_FINETUNE = {"train_batch_size": 1024, "learning_rate": 1e-3, "lr_decay": 0.75, "pooling": "gap", "droppath": 0.1}
_AUGMENT = {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.25, "mixup": 0.8, "cutmix": 1.0}
RECIPES: dict[str, dict[str, Any]] = {
    "pretrain": {},
    "linear": {**_BOTH, "train_batch_size": 16384, "optimizer": "lars", "learning_rate": 0.1, "weight_decay": 0.0},
    "finetune": {**_BOTH, **_FINETUNE, **_AUGMENT, "label_smoothing": 0.1},
}


def recipe(mode: str) -> Config:
    """Return the published recipe of a mode: the defaults of its flags. Raises InputError for an unknown mode."""
    if mode not in RECIPES:
        raise InputError(f"--mode {mode}: choose one of {', '.join(RECIPES)}")
    return with_flags(Config(), mode=mode, **RECIPES[mode])
