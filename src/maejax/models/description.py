"""Descriptions of networks, and of how they are computed: frozen values that need no JAX.

All raise ValueError if a value does not fit.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from maejax.models.code import name_code
from maejax.models.stack import Stack

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
POOLED = {  # input of the head of a classifier, in words
    "cls": "cls",
    "gap": "the mean of the patches",
    "avg": "the mean of the patches",
    "cls+avg": "cls and the mean of the patches",
    "map": "attention pooling",
}
IMAGE_TYPES = ("uint8", "uint16", "int16", "float16", "float32")
CUSTOM = ("custom", "custom_target", "custom_values")  # fields that are stored only where they are used


class _Json:
    def to_json(self) -> dict[str, Any]:
        """Return the description for JSON; `stored.from_json` reads it. Code of others becomes its name."""

        def used(items: list[tuple[str, Any]]) -> dict[str, Any]:
            kept = {name: value for name, value in items if value or name not in CUSTOM}
            return {name: name_code(value) if callable(value) else value for name, value in kept.items()}

        return dataclasses.asdict(self, dict_factory=used)  # type: ignore[call-overload]


@dataclass(frozen=True, kw_only=True)
class ViT(_Json, Stack):
    """A vision transformer: the encoder of every model here."""

    kind: ClassVar[str] = "encoder"
    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels, each a multiple of the patch size."""
    patch_size: int = 16
    """Side of a square patch in pixels."""
    channels: int = 3
    """Channels of an image, C."""
    mean: tuple[float, ...] = ()
    """Mean of each channel: of uint8 on the 0..1 scale, of other types in the values' own units.
    Empty: of uint8 ImageNet's for 3 channels and .5 otherwise, of other types 0."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel, as `mean`. Empty: as there, of other types 1."""
    image_type: str = "uint8"
    """Type of the values of an image."""
    bands: tuple[str, ...] = ()
    """Name of each channel; empty if they have none."""
    no_data: float | None = None
    """Value of pixels that are missing; None if none has it. Of floats, NaN is missing too."""
    cls_token: bool = True
    """Put a learned token before the patches."""
    cls_position: bool = True
    """Add a position to the cls token too; DeiT III and timm's encoders with registers do not."""
    registers: int = 0
    """Number of further learned tokens before the patches, without positions (Darcet et al. 2024)."""
    pre_norm: bool = False
    """Normalise the tokens before the first block, and embed patches without a bias, as CLIP does."""
    final_norm: bool = True
    """Normalise the tokens after the last block; a classifier with mean pooling does not."""
    attention_pool: bool = False
    """Pool the tokens by attention with a learned query, as SigLIP does (Zhai et al. 2022, "MAP head")."""

    def __post_init__(self):
        super().__post_init__()
        if self.image_type not in IMAGE_TYPES:
            raise ValueError(f"images are {', '.join(IMAGE_TYPES)}, not {self.image_type}")
        for name, usual, own in (("mean", IMAGENET_MEAN, 0.0), ("std", IMAGENET_STD, 1.0)):
            of_bytes = usual if self.channels == 3 else (0.5,) * self.channels
            given = getattr(self, name) or (of_bytes if self.image_type == "uint8" else (own,) * self.channels)
            object.__setattr__(self, name, tuple(given))
        object.__setattr__(self, "bands", tuple(self.bands))
        object.__setattr__(self, "image_size", tuple(self.image_size))
        height, width = self.image_size
        if min(height, width) < 1 or height % self.patch_size or width % self.patch_size:
            near = "x".join(str(max(1, round(side / self.patch_size)) * self.patch_size) for side in self.image_size)
            sizes = f"patches of {self.patch_size} pixels do not divide an image of {height} x {width}"
            raise ValueError(f"{sizes}; take {near}, or another patch size")
        if not self.cls_token or self.posemb == "rotary":
            object.__setattr__(self, "cls_position", False)  # no other value has a meaning
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"{self.channels} channels need as many means and deviations: {self.mean}, {self.std}")
        if self.bands and len(self.bands) != self.channels:
            raise ValueError(f"{self.channels} channels need as many names: {', '.join(self.bands)}")

    @property
    def encoder(self) -> "ViT":
        """The encoder of the model: this itself."""
        return self

    @property
    def may_miss(self) -> bool:
        """True if pixels of an image may be missing."""
        return self.no_data is not None or self.image_type.startswith("float")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patches(self) -> int:
        """N, the number of patches of an image."""
        return self.grid[0] * self.grid[1]

    @property
    def prefix(self) -> int:
        """Number of tokens before those of the patches: cls and registers."""
        return self.cls_token + self.registers

    @property
    def pixels(self) -> int:
        """P, the number of values of a patch."""
        return self.patch_size**2 * self.channels


@dataclass(frozen=True, kw_only=True)
class Decoder(Stack):
    """The decoder of a masked autoencoder."""

    dim: int = 512
    layers: int = 8
    heads: int = 16
    attention: Literal["self", "cross"] = "self"
    """self: visible and mask tokens attend to all of them (He et al. 2022). cross: mask tokens attend to visible tokens
    alone (Fu et al. 2025, section 3.2)."""
    inputs: Literal["last", "blocks", "all"] = "all"
    """What the blocks of a cross-attention decoder read: the normalised output of the last block of the encoder, or
    each its own learned mix of the outputs of all blocks, or a mix of these and the input of the first block (Fu et al.
    2025, section 3.4). Where it is mixed, the final norm of the encoder is not trained."""
    predict_share: float = 1.0
    """Share of the hidden patches that a cross-attention decoder predicts in training, above 0 and at most 1."""
    custom: Callable[..., Any] | str | None = None
    """A decoder of the user's code, see `MaskedAutoencoder`: what builds it, or its name if that was read from a file.
    It decides what the fields above mean."""

    def __post_init__(self):
        super().__post_init__()
        if self.posemb == "rotary":
            raise ValueError("the positions of a decoder are sincos2d or learnable, not rotary")
        if self.attention not in ("self", "cross") or self.inputs not in ("last", "blocks", "all"):
            raise ValueError(f"a decoder with attention {self.attention} and inputs {self.inputs} is not known here")
        if not 0 < self.predict_share <= 1:
            raise ValueError(f"the share of predicted patches is above 0 and at most 1, not {self.predict_share}")
        if self.attention == "self" and self.predict_share < 1:
            raise ValueError("a share of the hidden patches is predicted by a cross-attention decoder alone")
        if self.attention == "cross" and self.qk_norm:
            raise ValueError("cross-attention has no query-key normalisation")

    @property
    def mixes(self) -> bool:
        """True if the blocks read mixes of all blocks of the encoder."""
        return self.attention == "cross" and self.inputs != "last"


@dataclass(frozen=True, kw_only=True)
class MAE(_Json):
    """A masked autoencoder (He et al. 2022): an encoder, and a decoder for the pixels of hidden patches."""

    kind: ClassVar[str] = "mae"
    encoder: ViT = ViT()
    decoder: Decoder = Decoder()
    mask_ratio: float = 0.75
    """Share of the patches that is hidden."""
    norm_pix_loss: bool = False
    """Predict each patch normalised by its own mean and standard deviation (section 3)."""
    target: Literal["pixels", "components", "features", "custom"] = "pixels"
    """What is predicted of a patch: pixels, their largest principal components (Table 1d), a teacher's features, or
    what `custom_target` computes."""
    components: int = 96
    """Number of principal components."""
    teacher: ViT | None = None
    """The teacher of features; it has as many patches."""
    teacher_blocks: int = 0
    """Number of last blocks of the teacher whose outputs are averaged; 0 for its final tokens."""
    loss_on: Literal["hidden", "all"] = "hidden"
    """Patches that training predicts."""
    mask_tokens: Literal["decoder", "encoder"] = "decoder"
    """Where mask tokens enter (Table 1c)."""
    custom_target: Callable[..., Any] | str | None = None
    """A function of the user's code: normalised images float32 [B, H, W, C] to values [B, N, `custom_values`]; or its
    name if that was read from a file."""
    custom_values: int = 0

    def __post_init__(self):
        if self.target not in ("pixels", "components", "features", "custom"):
            raise ValueError(f"a target is pixels, components, features or custom, not {self.target}")
        if (self.target == "custom") != bool(self.custom_target and self.custom_values):
            raise ValueError("the target custom needs custom_target and custom_values, and no other has them")
        if self.norm_pix_loss and self.target != "pixels":
            raise ValueError(f"patches are normalised one by one where pixels are predicted, not {self.target}")
        if self.decoder.attention == "cross" and (self.loss_on, self.mask_tokens) != ("hidden", "decoder"):
            raise ValueError("a decoder of cross-attention has mask tokens of its own, for hidden patches")
        if self.target == "features" and (self.teacher is None or self.teacher.grid != self.encoder.grid):
            raise ValueError(f"features are predicted of a teacher with {self.encoder.grid} patches")
        object.__setattr__(self, "encoder", dataclasses.replace(self.encoder, attention_pool=False))
        if not 0 < self.visible < self.encoder.patches:
            share = f"{self.visible} of {self.encoder.patches}"
            raise ValueError(f"mask ratio {self.mask_ratio} leaves {share} patches visible; give a share, such as 0.75")

    @property
    def visible(self) -> int:
        """K, the number of patches that stay visible: int(N * (1 - ratio)), as in the authors' code."""
        return int(self.encoder.patches * (1 - self.mask_ratio))

    @property
    def hidden(self) -> int:
        """N - K, the number of hidden patches."""
        return self.encoder.patches - self.visible

    @property
    def predicted(self) -> int:
        """M, the number of hidden patches that training predicts: the nearest to their share, the last of the order."""
        return self.predicted_of(self.visible)

    def predicted_of(self, visible: int) -> int:
        """Return M for another number of visible patches."""
        if self.loss_on == "all":
            return self.encoder.patches
        return max(1, round((self.encoder.patches - visible) * self.decoder.predict_share))

    @property
    def drawable(self) -> bool:
        """True if what is predicted can be drawn as pixels."""
        return self.target in ("pixels", "components")

    @property
    def values(self) -> int:
        """Number of values that are predicted of a patch: P for pixels."""
        if self.target == "features" and self.teacher:
            return self.teacher.dim
        if self.target == "custom":
            return self.custom_values
        return self.encoder.pixels if self.target == "pixels" else min(self.components, self.encoder.pixels)


@dataclass(frozen=True, kw_only=True)
class Classifier(_Json):
    """An encoder and a linear layer on its pooled tokens."""

    kind: ClassVar[str] = "classifier"
    encoder: ViT = ViT()
    labels: int
    """Number of classes."""
    pooling: Literal["cls", "gap", "avg", "cls+avg", "map"] = "cls"
    """Input of the linear layer: the normalised cls token, or ("gap") the mean of the patch tokens with a norm of its
    own, or ("avg") the mean of the normalised patch tokens, or both of cls and avg, or ("map") the encoder's attention
    pooling. An encoder for "gap" loses its final norm."""
    head_norm: float = 0.0
    """eps of a batch normalisation before the linear layer, as a linear probe has; 0 for none."""

    def __post_init__(self):
        if self.pooling not in POOLED:
            raise ValueError(f"pooling is {', '.join(POOLED)}, not {self.pooling}")
        if "cls" in self.pooling and not self.encoder.cls_token:
            raise ValueError(f"pooling {self.pooling} needs a cls token, which the encoder lacks: choose gap or avg")
        if self.labels < 1:
            raise ValueError(f"a classifier needs at least 1 class, not {self.labels}")
        used = {"final_norm": self.pooling != "gap", "attention_pool": self.pooling == "map"}
        object.__setattr__(self, "encoder", dataclasses.replace(self.encoder, **used))

    @property
    def features(self) -> int:
        """Width of the input of the linear layer."""
        return self.encoder.dim * (2 if self.pooling == "cls+avg" else 1)


Network = ViT | MAE | Classifier


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a network is computed, never what it computes; chosen where it runs."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the matrix products."""
    remat: bool = False
    """Keep of each block only its input for the backward pass, and compute the rest again."""
    scan: bool = False
    """Run the blocks as one loop; see `vit.Transformer`."""
    attention: str = "auto"
    """Form of attention; see `ops.attention.attend`."""
    pieces: bool = True
    """Compute the MLP in pieces of the tokens on TPU; see `ops.dense.mlp`."""


# For evaluation: the same numbers on every machine, up to rounding, without fast forms that were not compared there.
PLAIN = Compute(attention="xla", pieces=False)


def change_encoder(model: Network, **changes: Any) -> Network:
    """Return a description with other values in its encoder."""
    encoder = dataclasses.replace(model.encoder, **changes)
    return encoder if isinstance(model, ViT) else dataclasses.replace(model, encoder=encoder)
