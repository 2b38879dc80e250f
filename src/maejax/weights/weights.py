"""Weights between two layouts: arrays by our names, the model's description, and their origin."""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from maejax.data.augment import usual_crop_ratio
from maejax.errors import WeightsError
from maejax.models.build import abstract_model
from maejax.models.description import MAE, PLAIN, Classifier, Compute, Network, ViT
from maejax.models.patches import sincos_table
from maejax.models.trees import mismatches, named_arrays, with_arrays
from maejax.version import __version__

HEAD_SIZE = 64  # of most published ViTs; the widths of one head cannot be read from a packed projection
# Heads of the published ViTs whose heads are wider: SigLIP's so400m, H of the paper (Table 2 of Dosovitskiy et al.), g
# and G of timm. DINOv3's H+ has heads of 64, its 7B 32 heads. SigLIP's giant has 16, DINOv2's of the same width 24.
WIDER_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}
DINOV3_HEADS, SIGLIP_HEADS = {4096: 32}, {**WIDER_HEADS, 1536: 16}
STACKS = ("encoder.transformer.blocks.", "decoder.blocks.")

PIXELS_ASSUMED = "whether its targets were normalised is not in the file; pixels assumed (--norm-pix-loss)"
CROSS = "decoder of cross-attention"
PROBE_FOLDED = "the probe's BatchNorm is folded into its linear layer"


@dataclass(frozen=True)
class Weights:
    """A model's weights, whoever wrote them."""

    arrays: dict[str, np.ndarray]
    """By our names, such as `encoder.transformer.blocks.fc1.kernel` [layers, in, out]; those of an encoder alone begin
    with `encoder.` too. A probe's BatchNorm is `head_norm.mean`, `.var` and, if it has them, `.scale` and `.bias`."""
    config: Network
    layout: str
    """maejax, original, fair, timm or hf."""
    writer: str
    """The code that wrote the file, in words."""
    notices: tuple[str, ...] = ()
    """Sentences that a user must know before use."""
    classes: tuple[str, ...] = ()
    """Names of a classifier's classes, by number; empty if they are not known."""
    test_crop_ratio: float = 0.0
    """The flag of that name with which the model was validated; 0 where nothing tells."""

    @property
    def crop_ratio(self) -> float:
        """The crop ratio of validation, as `data.augment.center_crop` takes it."""
        return self.test_crop_ratio or usual_crop_ratio(self.config.encoder.image_size)


@dataclass(frozen=True)
class Facts:
    """Facts that a file of weights may lack; None where one is not known."""

    heads: int | None = None
    """Attention heads."""
    dec_heads: int | None = None
    """Attention heads of the decoder."""
    image_size: tuple[int, int] | None = None
    """Height and width in pixels."""
    norm_pix_loss: bool | None = None
    """Whether the targets were normalised per patch."""
    mask_ratio: float | None = None
    """Share of the patches that is hidden."""
    predict_share: float | None = None
    """Share of the hidden patches that a cross-attention decoder predicts in training."""
    pooling: str | None = None
    """Input of a classifier's head, as `Classifier.pooling`."""
    gelu: str | None = None
    """Activation, as `Stack.gelu`."""
    norm_eps: float | None = None
    """eps of the layer norms."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, as `ViT.mean`."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, as `ViT.std`."""

    @property
    def normalisation(self) -> dict[str, Any]:
        """Mean and deviation, those that are known."""
        return {name: tuple(value) for name in ("mean", "std") if (value := getattr(self, name))}

    def assumed_of_decoder(self, *, crosses: bool) -> list[str]:
        """List sentences on what is not known of a decoder; `crosses` if it is one of cross-attention."""
        said = [PIXELS_ASSUMED] if self.norm_pix_loss is None else []
        if not self.dec_heads:
            said.append("the decoder's number of heads is not in the file; 16 assumed (--dec-heads)")
        if crosses and not self.predict_share:
            said.append(
                "which share of the hidden patches it predicts is not in the file; all assumed (--predict-share)"
            )
        if crosses and not self.mask_ratio:
            said.append("the share of hidden patches is not in the file; 0.75 assumed (--mask-ratio)")
        return said


def normalisation_assumed(config: Network, known: Collection[str]) -> list[str]:
    """Return a sentence on what the images of a model are taken to be normalised by; none if both are `known`."""
    if len(known) == 2:
        return []
    mean, std = (" ".join(f"{value:g}" for value in getattr(config.encoder, name)) for name in ("mean", "std"))
    return [f"how images were normalised is not in the file; --mean {mean} --std {std} assumed"]


def model_of(weights: Weights, compute: Compute = PLAIN) -> Any:
    """Build the model of weights: an nnx.Module, float32 parameters.

    A probe's BatchNorm is folded into its linear layer. Raises WeightsError if the arrays are not those of the model,
    or if a probe has no statistics.
    """
    arrays, config = weights.arrays, weights.config
    if isinstance(config, Classifier):
        arrays, config = fold_head_norm(arrays, config)
    if config.kind == "encoder":
        arrays = {name.removeprefix("encoder."): array for name, array in arrays.items()}
    try:
        model = with_arrays(abstract_model(config, compute), arrays)
    except ValueError as error:
        raise WeightsError(str(error)) from None
    if weights.classes:
        model.classes = weights.classes
    return model


def weights_of(model: Any) -> Weights:
    """Return the weights of a model, as `model_of` takes them."""
    prefix = "encoder." if model.config.kind == "encoder" else ""
    arrays = {prefix + name: np.asarray(array) for name, array in named_arrays(model).items()}
    classes = tuple(getattr(model, "classes", ()))
    return Weights(arrays, model.config, "maejax", f"maejax {__version__}", (), classes)


def blank_arrays(config: Network) -> dict[str, np.ndarray]:
    """List the arrays of a model by our names, as zeros that take no memory."""
    prefix = "encoder." if config.kind == "encoder" else ""
    named = named_arrays(abstract_model(config))
    return {prefix + name: np.broadcast_to(np.float32(0), array.shape) for name, array in named.items()}


def check(wanted: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray], what: str) -> None:
    """Check that a file holds exactly the wanted tensors; raises WeightsError with every difference."""
    if wrong := mismatches(wanted, given):
        raise WeightsError(f"{what} is not a whole model ({len(wrong)} tensors): {'; '.join(wrong)}")


def beyond_the_paper(config: Network) -> list[str]:
    """List in words the parts of a model that the MAE paper's does not have."""
    plain, encoder = ViT(), config.encoder
    parts = {
        "layerscale": "LayerScale",
        "qk_norm": "query-key normalisation",
        "qkv_bias": "attention without biases",
        "gated": "SwiGLU",
        "hidden": "MLP of another width than 4 D",
        "cls_token": "encoder without a cls token",
        "registers": "registers",
        "pre_norm": "norm before the blocks",
        "attention_pool": "attention pooling",
    }
    found = [words for name, words in parts.items() if getattr(encoder, name) != getattr(plain, name)]
    if encoder.posemb == "rotary":
        found.append("rotary positions")
    if encoder.cls_token and not encoder.cls_position:
        found.append("cls token without a position")
    if isinstance(config, MAE) and config.decoder.attention == "cross":
        found.append(CROSS)
    if isinstance(config, MAE) and config.decoder.custom is not None:
        found.append("decoder of another program")
    if isinstance(config, MAE) and config.target != "pixels":
        found.append(f"decoder that predicts {config.target}")
    return found


def fold_head_norm(given: Mapping[str, np.ndarray], config: Classifier) -> tuple[dict[str, np.ndarray], Classifier]:
    """Fold a probe's BatchNorm, with its running statistics, into its linear layer; other heads stay as they are.

    Raises WeightsError if there are no statistics.
    """
    if not config.head_norm:
        return dict(given), config
    if "head_norm.mean" not in given:
        raise WeightsError("the file lacks its BatchNorm's statistics, so its head cannot be used; its encoder can")
    arrays = {name: array for name, array in given.items() if not name.startswith("head_norm.")}
    norm = {name: array.astype(np.float64) for name, array in given.items() if name.startswith("head_norm.")}
    scale = norm.get("head_norm.scale", 1.0) / np.sqrt(norm["head_norm.var"] + config.head_norm)
    shift = norm.get("head_norm.bias", 0.0) - norm["head_norm.mean"] * scale
    kernel = arrays["head.kernel"].astype(np.float64)
    arrays["head.bias"] = (arrays["head.bias"] + shift @ kernel).astype(np.float32)
    arrays["head.kernel"] = (scale[:, None] * kernel).astype(np.float32)
    return arrays, replace(config, head_norm=0.0)


def unstack(arrays: Mapping[str, np.ndarray]) -> dict[tuple[str, int | None], np.ndarray]:
    """Split stacks of layers: {(name, layer): array}, the layer None outside a stack."""
    single: dict[tuple[str, int | None], np.ndarray] = {}
    for name, array in arrays.items():
        if name.startswith(STACKS):
            single |= {(name, layer): array[layer] for layer in range(len(array))}
        else:
            single[name, None] = array
    return single


def stack(single: Mapping[tuple[str, int | None], np.ndarray]) -> dict[str, np.ndarray]:
    """Join layers to stacks; the inverse of `unstack`."""
    arrays = {name: array for (name, layer), array in single.items() if layer is None}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for (name, layer), array in single.items():
        if layer is not None:
            stacks.setdefault(name, {})[layer] = array
    return arrays | {name: np.stack([layers[i] for i in range(len(layers))]) for name, layers in stacks.items()}


def original_positions(grid: tuple[int, int], dim: int) -> np.ndarray:
    """Compute the original's sine-cosine positions [1 + N, D]: as the authors', but the last frequency is 1/10000."""
    frequencies = 10000.0 ** -np.linspace(0, 1, dim // 4)
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = [np.outer(axis.reshape(-1), frequencies) for axis in (columns, rows)]
    waves = np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)
    return np.concatenate([np.zeros((1, dim)), waves]).astype(np.float32)


def positions_kind(pos_embed: np.ndarray, grid: tuple[int, int], *, cls: bool = True) -> str:
    """Recognise positions [1, 1 + N, D], or [1, N, D] without `cls`: "authors" or "original" sine-cosine, "learned"."""
    dim = pos_embed.shape[-1]
    if dim % 4 == 0 and pos_embed.shape[1] == grid[0] * grid[1] + cls:
        for kind, make in (("authors", sincos_table), ("original", original_positions)):
            if np.allclose(pos_embed[0], make(grid, dim)[not cls :], atol=1e-5):
                return kind
    return "learned"


def posemb_of(pos_embed: np.ndarray, grid: tuple[int, int], *, cls: bool = True) -> Any:
    """Infer the option `posemb` of a stack from its positions, as of `positions_kind`."""
    return "learnable" if positions_kind(pos_embed, grid, cls=cls) == "learned" else "sincos2d"


def anchor(state: Mapping[str, np.ndarray], name: str, what: str) -> np.ndarray:
    """Return a tensor from which sizes are read; raises WeightsError if it is missing."""
    if name not in state:
        raise WeightsError(f"{what} lacks {name}; it holds {', '.join(sorted(state)[:8])}")
    return state[name]


def depth(state: Iterable[str], prefix: str) -> int:
    """Count the layers by names such as PREFIX3.norm1.weight or PREFIX3/scale1."""
    found = [int(match[1]) for name in state if (match := re.match(re.escape(prefix) + r"(\d+)[./]", name))]
    return max(found, default=-1) + 1


def head_count(dim: int, given: int | None, wider: Mapping[int, int] = WIDER_HEADS) -> tuple[int, str]:
    """Infer a number of heads from the width as in published ViTs; returns it and a sentence if it is assumed.

    `wider` has those of widths whose heads are not of 64. Raises WeightsError if no published head size divides the
    width.
    """
    if given:
        return given, ""
    if dim not in wider and dim % HEAD_SIZE:
        raise WeightsError(
            f"the number of heads is not in the file, and its width {dim} is no multiple of 64: give --heads"
        )
    heads = wider.get(dim, dim // HEAD_SIZE)
    return heads, f"the number of heads is not in the file; {heads} assumed (--heads)"


def image_size_of(
    pos_embed: np.ndarray, patch_size: int, given: tuple[int, int] | None, rows: Sequence[int]
) -> tuple[tuple[int, int], int, str]:
    """Infer the image's size from positions [1, T, D]; `rows` are the numbers of rows of no patch, the likeliest first.

    Sine-cosine positions tell their grid. Learned ones are for the given size if it has N patches, else for a square.
    Also returns the number of rows of no patch, and a sentence if the size is assumed. Raises WeightsError if the
    patches are no square.
    """
    wanted = (given[0] // patch_size, given[1] // patch_size) if given else (0, 0)
    counts = {row: pos_embed.shape[1] - row for row in rows}
    own = next(
        (
            (grid, row)
            for row, patches in counts.items()
            for grid in grids(patches)
            if positions_kind(pos_embed, grid, cls=bool(row)) != "learned"
        ),
        None,
    )
    fits = next(((wanted, row) for row, patches in counts.items() if wanted[0] * wanted[1] == patches), None)
    square = next((((math.isqrt(patches),) * 2, row) for row, patches in counts.items() if is_square(patches)), None)
    if (found := own or fits or square) is None:
        patches = counts[rows[0]]
        raise WeightsError(
            f"the image size is not in the file, and its {patches} patches are no square: give --image-size HxW"
        )
    grid, row = found
    size = grid[0] * patch_size, grid[1] * patch_size
    if own or size == given:
        return size, row, ""
    return size, row, f"the image size is not in the file; {size[0]}x{size[1]} assumed (--image-size)"


def rotary_size(given: tuple[int, int] | None, patch_size: int) -> tuple[tuple[int, int], str]:
    """Return the image's size where positions are rotary, and a sentence if it is assumed: no tensor tells it."""
    if given:
        return given, ""
    side = 224 if 224 % patch_size == 0 else 14 * patch_size
    return (side, side), f"the image size is not in the file; {side}x{side} assumed (--image-size)"


def grids(patches: int) -> list[tuple[int, int]]:
    """List all grids of so many patches."""
    return [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]


def is_square(patches: int) -> bool:
    """Check whether so many patches are a square."""
    return patches > 0 and math.isqrt(patches) ** 2 == patches
