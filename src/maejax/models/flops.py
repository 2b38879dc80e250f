"""The arithmetic of the published algorithm, which a program may do in another way."""

from maejax.models.description import MAE, Classifier, Stack, ViT


def stack_flop(stack: Stack, tokens: int) -> int:
    """Count the FLOP of the matrix products of a stack on one sample.

    A token takes 8 D^2 for projections, 4 D E for the MLP (6 D E if it is gated) and 4 T D for attention.
    """
    mlp = (6 if stack.gated else 4) * stack.dim * stack.mlp_dim
    return stack.layers * tokens * (8 * stack.dim**2 + mlp + 4 * tokens * stack.dim)


def embed_flop(encoder: ViT) -> int:
    """Count the FLOP of embedding all patches of one image."""
    return 2 * encoder.patches * encoder.pixels * encoder.dim


def pretrain_flop(model: MAE, *, frozen: bool = False) -> int:
    """Count the FLOP of one training step on one image: forward, and twice that backward where weights are trained.

    All N patches are embedded and predicted, as in the paper, though a program may leave out values that nobody reads.
    Recomputation does not count. With `frozen` the decoder alone is trained. A whole step of ViT-B/16 at 224 pixels
    has 58.7 GFLOP, of L 124.5, of H/14 291.
    """
    encoder, decoder = model.encoder, model.decoder
    encode = embed_flop(encoder) + stack_flop(encoder, encoder.prefix + model.visible)
    embed = 2 * (encoder.prefix + model.visible) * encoder.dim * decoder.dim
    decode = stack_flop(decoder, encoder.prefix + encoder.patches) + 2 * encoder.patches * decoder.dim * encoder.pixels
    return encode + 2 * embed + 3 * decode if frozen else 3 * (encode + embed + decode)


def classify_flop(model: Classifier) -> int:
    """Count the FLOP of the encoder of a classifier on one image, forward."""
    return embed_flop(model.encoder) + stack_flop(model.encoder, model.encoder.prefix + model.encoder.patches)
