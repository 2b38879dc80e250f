"""Augmentation in training and cropping in evaluation: from pixels to pixels, random only through `rng`.

An image is [H, W, C] of any type, mostly uint8; a size is (H, W). Resizing is bicubic with antialiasing (Catmull-Rom).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from maejax.data.policies import IMAGENET_MEAN, apply_policy
from maejax.data.resample import cykooz, resample
from maejax.data.turbojpeg import Box

Size = tuple[int, int]
THIN = 32  # times the pixels of a crop that an image may have before it, at most 6 for photos
BORDER = 4  # pixels around the image before a simple resized crop, as DeiT III's code has it
RandomCrop = Literal["rrc", "src", "none"]
Flip = Literal["horizontal", "vertical", "both", "none"]


class Transform(NamedTuple):
    """How an image becomes a row of a batch: `box` draws the part that is needed, `finish` works on its pixels.

    `box` takes the size of the image, so that no pixel outside needs decoding; None takes the whole image. Both get
    the random numbers of the row, `box` first. A transform of module-level functions can be pickled.
    """

    finish: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    box: Callable[[Size, np.random.Generator], Box] | None = None

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Transform an image that is decoded already, [H, W, C]."""
        if self.box is not None:
            top, left, height, width = self.box(image.shape[:2], rng)
            image = image[top : top + height, left : left + width]
        return self.finish(image, rng)


def build_train(
    size: Size,
    random_crop: RandomCrop,
    scale: tuple[float, float],
    color_jitter: float,
    flip: Flip = "horizontal",
    policy: str = "none",
    policy_mean: tuple[float, ...] = IMAGENET_MEAN,
    rotate: bool = False,
    no_data: float | None = None,
) -> Transform:
    """Build the transform of training: crop to `size`, mirror and turn at random, apply a policy, jitter the colours.

    `random_crop`: "rrc" takes a random share of the area within `scale`, "src" is DeiT III's simple random crop, "none"
    resizes and crops the centre. `flip` mirrors every other image. `rotate` turns images by quarters. `policy` is one
    of timm's, see `apply_policy`, or "none"; `policy_mean` is the model's mean. `color_jitter` 0 leaves the colours
    alone. Pixels with the value `no_data` are missing.
    """
    if random_crop not in ("rrc", "src", "none"):
        raise ValueError(f"random_crop is 'rrc', 'src' or 'none', not {random_crop!r}")
    given = {"size": size, "no_data": no_data}
    resizing = {"rrc": [partial(resize, **given)], "src": [], "none": [partial(center_crop, ratio=1.0, **given)]}
    drawing: list[Callable] = [partial(simple_resized_crop, **given)] if random_crop == "src" else []
    drawing += [hflip] if flip in ("horizontal", "both") else []
    drawing += [vflip] if flip in ("vertical", "both") else []
    drawing += [turn] if rotate else []
    drawing += [partial(apply_policy, policy=policy, mean=policy_mean)] if policy != "none" else []
    drawing += [partial(jitter_colors, factor=color_jitter)] if color_jitter else []
    box = partial(random_box, size=size, scale=scale) if random_crop == "rrc" else None
    return Transform(partial(_finish, resizing=resizing[random_crop], drawing=drawing), box)


def build_eval(size: Size, crop_ratio: float, no_data: float | None = None) -> Transform:
    """Build the transform of evaluation: `center_crop`, by `usual_crop_ratio` if 0. Nothing is random."""
    if not 0 <= crop_ratio <= 1:
        raise ValueError(f"crop_ratio is more than 0 and at most 1, or 0 for the usual one, not {crop_ratio}")
    crop = partial(center_crop, size=size, ratio=crop_ratio or usual_crop_ratio(size), no_data=no_data)
    return Transform(partial(_finish, resizing=[crop], drawing=[]))


def usual_crop_ratio(size: Size) -> float:
    """Return the crop ratio of the authors' evaluation: .875 up to 224 pixels, 1 above."""
    return 0.875 if max(size) <= 224 else 1.0


def _finish(
    image: np.ndarray, rng: np.random.Generator, *, resizing: Sequence[Callable], drawing: Sequence[Callable]
) -> np.ndarray:
    for function in resizing:
        image = function(image)
    for function in drawing:
        image = function(image, rng=rng)
    return image


def random_box(shape: Size, rng: np.random.Generator, size: Size, scale: tuple[float, float]) -> Box:
    """Draw a random share of the area of an image of size `shape`, at a random place and with a random aspect.

    The share is uniform within `scale`, the stretch log-uniform within 3/4..4/3 of the aspect of `size`. After ten
    tries it is the largest centred box within these aspects, as in torchvision's RandomResizedCrop.
    """
    height, width = shape
    aspect = size[1] / size[0]
    narrow, wide = aspect * 3 / 4, aspect * 4 / 3
    least, most = scale
    for _ in range(10):
        share, stretch, down, right = rng.random(4).tolist()  # at once: a call costs more than its numbers
        area = height * width * (least + (most - least) * share)
        ratio = narrow * (wide / narrow) ** stretch
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    h, w = min(height, max(1, round(width / narrow))), min(width, max(1, round(height * wide)))
    return (height - h) // 2, (width - w) // 2, h, w


def simple_resized_crop(
    image: np.ndarray, size: Size, rng: np.random.Generator, no_data: float | None = None
) -> np.ndarray:
    """Resize until the image just covers `size`, reflect `BORDER` pixels around it, crop at random (DeiT III)."""
    covering, borders = _covering(image, size), []
    for have, want in zip(covering, size, strict=True):
        start = int(rng.integers(have + 2 * BORDER - want + 1)) - BORDER
        borders.append((max(0, -start), max(0, start + want - have), start))
    (above, below, top), (before, after, left) = borders
    inside = (top + above, left + before, size[0] - above - below, size[1] - before - after)
    inner = _resize_and_crop(image, covering, inside, no_data)
    return reflect(inner, (above, below), (before, after))


def reflect(image: np.ndarray, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """Reflect so many rows above and below an image, and columns before and after, without its outermost pixels.

    The same as NumPy's `pad`, which takes six times as long for an image of 32 pixels.
    """
    (above, below), (before, after), (height, width, channels) = rows, columns, image.shape
    if max(rows) >= height or max(columns) >= width:  # reflected more than once
        return np.pad(image, (rows, columns, (0, 0)), mode="reflect")
    end, last = above + height, before + width
    padded = np.empty((end + below, last + after, channels), image.dtype)
    middle = padded[:, before:last]
    middle[above:end] = image
    middle[:above] = middle[above + 1 : 2 * above + 1][::-1]
    middle[end:] = middle[end - 1 - below : end - 1][::-1]
    padded[:, :before] = padded[:, before + 1 : 2 * before + 1][:, ::-1]
    padded[:, last:] = padded[:, last - 1 - after : last - 1][:, ::-1]
    return padded


def center_crop(image: np.ndarray, size: Size, ratio: float, no_data: float | None = None) -> np.ndarray:
    """Resize until the image just covers `size` / `ratio`, then crop `size` from the centre, as torchvision does.

    The size before the crop is truncated, as in timm and the authors' code.
    """
    covering = _covering(image, (int(size[0] / ratio), int(size[1] / ratio)))
    top, left = (round((have - want) / 2) for have, want in zip(covering, size, strict=True))
    return _resize_and_crop(image, covering, (top, left, *size), no_data)


def _covering(image: np.ndarray, size: Size) -> Size:
    height, width = image.shape[:2]
    return max(size[0], size[1] * height // width), max(size[1], size[0] * width // height)


def _resize_and_crop(image: np.ndarray, size: Size, box: Box, no_data: float | None) -> np.ndarray:
    """Resize to `size` and take a box of the result; of a thin image, which may be huge by then, only the box."""
    top, left, height, width = box
    if size[0] * size[1] <= THIN * height * width:
        return resize(image, size, no_data)[top : top + height, left : left + width]
    down, right = image.shape[0] / size[0], image.shape[1] / size[1]
    # Rounding must not put the end beyond the image.
    end = min((left + width) * right, image.shape[1]), min((top + height) * down, image.shape[0])
    region = (left * right, top * down, *end)
    if image.dtype != np.uint8 or no_data is not None:
        return resample(image, (height, width), region, no_data)
    return _pillow_resize(image, (height, width), region)


def hflip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror left and right with probability one half."""
    if rng.random() < 0.5:
        return image
    if image.itemsize > 1 or image.shape[2] > 4:
        return np.ascontiguousarray(image[:, ::-1])
    flipped = np.empty(image.shape, np.uint8)
    for channel in range(image.shape[2]):  # channel by channel is six times as fast as moving whole pixels
        flipped[..., channel] = image[:, ::-1, channel]
    return flipped


def vflip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror top and bottom with probability one half."""
    return image if rng.random() < 0.5 else image[::-1]


def turn(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn a square image by 0 to 3 quarters."""
    return np.rot90(image, int(rng.integers(4)))


def jitter_colors(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation, in random order, as torchvision's ColorJitter does on Pillow images.

    Each is multiplied by its own uniform number from max(0, 1 - `factor`)..1 + `factor`. Grey images (C = 1) have no
    saturation. Raises ValueError for other than 1 or 3 channels.
    """
    channels = image.shape[2]
    if channels not in (1, 3):
        raise ValueError(f"color_jitter is for images of 1 or 3 channels, these have {channels}; set color_jitter to 0")
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color][: 2 if channels == 1 else 3]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    for i in rng.permutation(len(enhancers)):
        picture = enhancers[i](picture).enhance(rng.uniform(max(0.0, 1 - factor), 1 + factor))
    return np.asarray(picture).reshape(image.shape)


def resize(image: np.ndarray, size: Size, no_data: float | None = None) -> np.ndarray:
    """Resize an image [H, W, C] to `size`, by channels, as `resample` does in other types than uint8.

    Of uint8 the mean difference to Pillow is at most .2 of 255.
    """
    height, width, channels = image.shape
    if (height, width) == size:
        return image
    if image.dtype != np.uint8 or no_data is not None:
        return resample(image, size, no_data=no_data)
    if cykooz is None or channels > 4:
        return _pillow_resize(image, size, (0, 0, width, height))
    kind = cykooz.PixelType[("U8", "U8x2", "U8x3", "U8x4")[channels - 1]]
    bicubic = cykooz.ResizeAlg.convolution(cykooz.FilterType.catmull_rom)
    source = cykooz.ImageData(width, height, kind, _bytes(image))
    target = cykooz.ImageData(size[1], size[0], kind)
    # Not with a crop box: version 4.0 reads beyond the image for some of them.
    cykooz.Resizer().resize(source, target, cykooz.ResizeOptions(bicubic, use_alpha=False))
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(*size, channels)


def _pillow_resize(image: np.ndarray, size: Size, box: tuple[float, float, float, float]) -> np.ndarray:
    """Resize the part of an image from (left, top) to (right, bottom)."""
    planes = [image] if image.shape[2] == 3 else [image[..., i] for i in range(image.shape[2])]
    pictures = [Image.fromarray(plane).resize((size[1], size[0]), Image.Resampling.BICUBIC, box) for plane in planes]
    return np.dstack([np.asarray(picture) for picture in pictures])


def _bytes(image: np.ndarray) -> bytes:
    height, width, channels = image.shape
    if image.strides[1:] != (channels, 1):
        return image.tobytes()
    # Whole rows as values: value by value, as `tobytes` goes through a part of an image, takes half as long again.
    return image.reshape(height, width * channels).view(f"V{width * channels}").tobytes()
