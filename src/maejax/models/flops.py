"""The arithmetic that a masked autoencoder is worth, whatever a program does for it."""


def vit_flop(tokens: int, dim: int, layers: int) -> int:
    """Count the FLOP of the matrix products of a stack of blocks on one sample: 24 D^2 a token, 4 T D for attention."""
    return layers * tokens * (24 * dim * dim + 4 * tokens * dim)


def train_flop(*, patches: int, visible: int, pixels: int, dim: int, layers: int, dec_dim: int, dec_layers: int) -> int:
    """Count the FLOP of one training step on one image, of the published algorithm: forward, and twice that backward.

    All N patches are embedded and predicted, as the paper has it, though a program may leave out what nobody reads; no
    recomputation counts. ViT-B/16 at 224 pixels: 58.7 GFLOP, L 124.5, H/14 291.
    """
    encoder = 2 * patches * pixels * dim + vit_flop(1 + visible, dim, layers)
    decoder = 2 * (1 + visible) * dim * dec_dim + vit_flop(1 + patches, dec_dim, dec_layers)
    return 3 * (encoder + decoder + 2 * patches * dec_dim * pixels)
