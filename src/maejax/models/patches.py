"""Images to patches and back, and the fixed positions of a patch grid."""

import jax
import jax.numpy as jnp
import numpy as np


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Cut images [B, H, W, C] into flattened patches [B, N, P].

    Patches run row by row. A patch is flattened as (row, column, channel), the channel last, as in the authors' code.
    H and W must be multiples of `patch_size`.
    """
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    tiles = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, patch_size * patch_size * channels)


def unpatchify(patches: jax.Array, grid: tuple[int, int], patch_size: int) -> jax.Array:
    """Join flattened patches [B, N, P] of a (rows, columns) grid to images [B, H, W, C]."""
    batch, _, pixels = patches.shape
    rows, columns = grid
    tiles = patches.reshape(batch, rows, columns, patch_size, patch_size, pixels // patch_size**2)
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * patch_size, columns * patch_size, -1)


def sincos_table(grid: tuple[int, int], dim: int, *, cls: bool = True) -> np.ndarray:
    """Compute the fixed sine-cosine positions [1 + N, D], float32, of a (rows, columns) grid; D is a multiple of 4.

    As in the authors' code, the frequencies are 10000^-(i / (D/4)) for i in 0..D/4-1. The first half of the channels
    encodes the column and the second half the row, each as (sines, cosines). The row of the cls token is zero; without
    `cls` there is none: [N, D].
    """
    frequencies = 10000.0 ** -(np.arange(dim // 4) / (dim / 4))
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    angles = [np.outer(axis.reshape(-1), frequencies) for axis in (columns, rows)]
    table = np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)
    return np.concatenate([np.zeros((int(cls), dim)), table]).astype(np.float32)


def rotary_angles(grid: tuple[int, int], width: int) -> np.ndarray:
    """Compute the angles [N, width], float32, by which rotary positions turn a head; its width is a multiple of 4.

    As DINOv3 does (Simeoni et al. 2025, section 3.2): places are the centres of patches in -1..1 along each axis, and
    periods 100^(i / (width/4)) for i in 0..width/4-1. The first quarter is of the row, the second of the column; the
    second half repeats the first.
    """
    periods = 100.0 ** (np.arange(width // 4) / (width / 4))
    centres = [(np.arange(side) + 0.5) / side * 2 - 1 for side in grid]
    rows, columns = np.meshgrid(*centres, indexing="ij")
    quarters = [2 * np.pi * axis.reshape(-1, 1) / periods for axis in (rows, columns)]
    return np.tile(np.concatenate(quarters, axis=1), 2).astype(np.float32)


def take_patches(patches: jax.Array, order: jax.Array) -> jax.Array:
    """Take patches by index: [B, N, D] by [B, K] to [B, K, D]; [1, N, D] serves every sample."""
    if patches.shape[0] == 1:
        return patches[0][order]
    return jnp.take_along_axis(patches, order[..., None], axis=1)
