"""timm's augmentation policies (RandAugment, AugMix, AutoAugment, 3-Augment): its own code, with our random numbers.

timm draws from Python's `random` and NumPy's global generator, so threads would share them. Its module is therefore
loaded once more, apart from any other use of timm. In that copy `random` and `np.random` are generators of the thread,
set for every image, and nothing global is touched. PyTorch is not loaded either.
"""

import importlib.util
import random
import re
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from maejax.errors import InputError, install

IMAGENET_MEAN = (0.485, 0.456, 0.406)
POLICIES = ("v0", "v0r", "original", "originalr", "3a")
_SECTION = re.compile(r"[a-z]+\d[\d.]*(inf)?|mstdinf")
_TRANSFORMS = ("tweights", "t3a", "t3aw")  # timm takes any other name for the default
_LOADING = threading.Lock()  # two copies of the module would draw from two sets of generators


def check_policy(policy: str, channels: int = 3) -> None:
    """Check a policy; raises InputError if timm is missing or does not know it, or for other than 1 or 3 channels."""
    if channels not in (1, 3):
        raise InputError(f"--auto-augment {policy} changes images of 1 or 3 channels, not {channels}; set it to none")
    name, *sections = policy.split("-")
    _timm_policies()
    try:
        # What timm does not understand in the sections it passes over.
        strange = [s for s in sections if not (_SECTION.fullmatch(s) or (name == "rand" and s in _TRANSFORMS))]
        if strange or name not in (*POLICIES, "rand", "augmix"):
            raise ValueError
        apply_policy(np.zeros((8, 8, channels), np.uint8), policy, np.random.default_rng(0))
    except (AssertionError, ValueError, KeyError):
        raise InputError(
            f"--auto-augment {policy} is no policy of timm's; it is none, a name such as rand-m9-mstd0.5-inc1 or "
            f"augmix-m3-w3, or one of {', '.join(POLICIES)}"
        ) from None


def apply_policy(
    image: np.ndarray, policy: str, rng: np.random.Generator, mean: tuple[float, ...] = IMAGENET_MEAN
) -> np.ndarray:
    """Augment an image, uint8 [H, W, C], by a policy that timm names, as its `create_transform` does.

    `mean`, per channel on the 0..1 scale, fills the empty places of moved pictures; resampling is bicubic. Grey images
    (C = 1) become colour images on the way. Raises InputError without timm, its own error for an unknown policy.
    """
    channels = image.shape[2]
    picture = Image.fromarray(image if channels == 3 else np.repeat(image, 3, axis=2))
    fill = tuple(min(255, round(255 * value)) for value in mean) * (3 // len(mean))
    # The streams of these two classes are fixed for good; a 64-bit number each is all that ours has to give.
    numbers = rng.integers(2**63, size=2).tolist()
    drawn = np.random.RandomState(np.random.Philox(key=numbers[0]))
    augmented = augmented_by(picture, policy, fill, random.Random(numbers[1]), drawn)
    return np.asarray(augmented if channels == 3 else augmented.convert("L")).reshape(image.shape)


def augmented_by(
    picture: Image.Image, policy: str, fill: tuple[int, ...], python: random.Random, numpy: np.random.RandomState
) -> Image.Image:
    """Apply a policy with given generators in place of Python's and NumPy's global ones."""
    module = _timm_policies()
    transform = _transform(policy, picture.size, fill)
    module.draws.python, module.draws.numpy = python, numpy
    return transform(picture)


@cache
def _transform(policy: str, size: tuple[int, int], fill: tuple[int, ...]) -> Callable[[Image.Image], Image.Image]:
    module, bicubic = _timm_policies(), Image.Resampling.BICUBIC
    # As timm.data.create_transform with interpolation="bicubic", the authors' choice.
    settings = {"translate_const": int(min(size) * 0.45), "img_mean": fill, "interpolation": bicubic}
    if policy.startswith("rand"):
        return module.rand_augment_transform(policy, settings)
    if policy.startswith("augmix"):
        return module.augment_and_mix_transform(policy, settings | {"translate_pct": 0.3})
    return module.auto_augment_transform(policy, settings)


def _stand_in(find: Callable[[str], Any]) -> ModuleType:
    module = ModuleType("maejax_stand_in")
    vars(module)["__getattr__"] = find  # PEP 562: looks up what a module does not have
    return module


def _timm_policies() -> Any:
    with _LOADING:
        return _load()


@cache
def _load() -> ModuleType:
    package = importlib.util.find_spec("timm")  # finds it, and does not import it
    places = [] if package is None else package.submodule_search_locations or []
    paths = [path for place in places if (path := Path(place, "data/auto_augment.py")).exists()]
    spec = importlib.util.spec_from_file_location("maejax_timm_auto_augment", paths[0]) if paths else None
    if spec is None or spec.loader is None:
        raise InputError(f"--auto-augment needs timm, whose policies these are: {install('timm')}, or set it to none")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    draws = threading.local()  # the generators of the image that a thread works on

    def posterize(image: Image.Image, bits: int) -> Image.Image:  # Pillow 13 refuses to keep 0 bits, a common wish
        return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)

    vars(module).update(
        draws=draws,
        random=_stand_in(lambda name: getattr(draws.python, name)),
        np=_stand_in(lambda name: draws.numpy if name == "random" else getattr(np, name)),
        ImageOps=_stand_in(lambda name: posterize if name == "posterize" else getattr(ImageOps, name)),
    )
    return module
