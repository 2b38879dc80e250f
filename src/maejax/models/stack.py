"""The description of a stack of transformer blocks, which encoders and decoders share; it needs no JAX."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack of transformer blocks of one width, and the positions of the tokens that enter it.

    Raises ValueError if a value does not fit.
    """

    dim: int = 768
    """Width of the tokens."""
    layers: int = 12
    """Number of blocks."""
    heads: int = 12
    """Heads of each block."""
    posemb: Literal["sincos2d", "learnable", "rotary"] = "sincos2d"
    """Positions: fixed sine-cosine waves, learned, or ("rotary", an encoder's alone) queries and keys turned in each
    block by the place of their patch (Simeoni et al. 2025, section 3.2)."""
    layerscale: bool = False
    """Scale each branch of a block by a learned vector."""
    qk_norm: bool = False
    """Normalise the queries and keys of each head by layer norms before attention (Dehghani et al. 2023, section 2)."""
    qkv_bias: bool = True
    """Add a bias to queries, keys and values."""
    hidden: int = 0
    """E, the width of the MLP between its two layers; 0 for 4 D."""
    gated: bool = False
    """SwiGLU (Shazeer 2020): the first layer of the MLP gives a gate and a value, whose product SiLU(gate) value has
    width E. `gelu` is not used then."""
    gelu: Literal["erf", "tanh", "quick"] = "erf"
    """Activation: the exact GELU, the tanh approximation of the original MaskedAutoencoder-Jax, or x sigmoid(1.702 x),
    as in OpenAI's CLIP."""
    norm_eps: float = 1e-6
    """eps of the layer norms."""
    dropout: float = 0.0
    """Dropout rate."""
    droppath: float = 0.0
    """Stochastic depth of the last block; it rises linearly from 0 over the depth."""

    def __post_init__(self):
        for name in ("dim", "layers", "heads", "patch_size", "channels"):
            if getattr(self, name, 1) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        for name in ("hidden", "registers"):
            if getattr(self, name, 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give 0 or more")
        if self.dim % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.dim}")
        if self.posemb not in ("sincos2d", "learnable", "rotary"):
            raise ValueError(f"positions are sincos2d, learnable or rotary, not {self.posemb}")
        if self.posemb == "sincos2d" and self.dim % 4:
            raise ValueError(f"sine-cosine positions need a width divisible by 4, not {self.dim}")
        if self.posemb == "rotary" and self.dim // self.heads % 4:
            raise ValueError(f"rotary positions need heads of a width divisible by 4, not {self.dim // self.heads}")
        if self.gelu not in ("erf", "tanh", "quick"):
            raise ValueError(f"gelu is erf, tanh or quick, not {self.gelu}")

    @property
    def activation(self) -> str:
        """Name of the activation of the MLP, as `ops.dense.ACTIVATIONS` has it."""
        return "swiglu" if self.gated else self.gelu

    @property
    def mlp_dim(self) -> int:
        """E, the width of the MLP between its two layers."""
        return self.hidden or 4 * self.dim

    @property
    def fc1_dim(self) -> int:
        """Width of what the first layer of the MLP gives: E, or 2 E with a gate."""
        return self.mlp_dim * (2 if self.gated else 1)
