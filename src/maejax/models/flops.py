"""The arithmetic of the published algorithm, which a program may do in another way."""

from maejax.models.description import MAE, Classifier, ViT
from maejax.models.stack import Stack


def stack_flop(stack: Stack, tokens: int) -> int:
    """Count the FLOP of the matrix products of a stack on one sample.

    A token takes 8 D^2 for projections, 4 D E for the MLP (6 D E if it is gated) and 4 T D for attention.
    """
    mlp = (6 if stack.gated else 4) * stack.dim * stack.mlp_dim
    return stack.layers * tokens * (8 * stack.dim**2 + mlp + 4 * tokens * stack.dim)


def encode_flop(encoder: ViT) -> int:
    """Count the FLOP of encoding all patches of one image, forward."""
    return embed_flop(encoder) + stack_flop(encoder, encoder.prefix + encoder.patches)


def embed_flop(encoder: ViT) -> int:
    """Count the FLOP of embedding all patches of one image."""
    return 2 * encoder.patches * encoder.pixels * encoder.dim


def pretrain_flop(model: MAE, *, frozen: bool = False) -> int:
    """Count the FLOP of one training step on one image: forward, and twice that backward where weights are trained.

    All N patches are embedded and predicted, as in the paper, though a program may leave out values that nobody reads.
    A decoder of cross-attention predicts M, one of the user's code is not counted. A teacher encodes whole images.
    Recomputation does not count. With `frozen` the decoder alone is trained. A whole step of ViT-B/16 at 224 pixels
    has 58.7 GFLOP, of L 124.5, of H/14 291.
    """
    encoder, decoder = model.encoder, model.decoder
    tokens = encoder.prefix + (encoder.patches if model.mask_tokens == "encoder" else model.visible)
    encode = embed_flop(encoder) + stack_flop(encoder, tokens)
    if decoder.custom is not None:
        embed, predicted, decode = 0, 0, 0
    elif decoder.attention == "cross":
        embed, predicted = cross_source_flop(model, tokens), model.predicted
        decode = cross_flop(decoder, predicted, tokens)
    else:
        embed, predicted = 2 * tokens * encoder.dim * decoder.dim, encoder.patches
        decode = stack_flop(decoder, encoder.prefix + encoder.patches)
    decode += 2 * predicted * decoder.dim * model.values
    teach = encode_flop(model.teacher) if model.teacher else 0
    return teach + (encode + 2 * embed + 3 * decode if frozen else 3 * (encode + embed + decode))


def cross_source_flop(model: MAE, tokens: int) -> int:
    """Count the FLOP of the keys and values of all cross-attention blocks, and of the mixes that they read."""
    encoder, decoder = model.encoder, model.decoder
    mixed = (encoder.layers + (decoder.inputs == "all")) if decoder.mixes else 0
    return decoder.layers * 2 * tokens * encoder.dim * (2 * decoder.dim + mixed)


def cross_flop(decoder: Stack, queries: int, tokens: int) -> int:
    """Count the FLOP of the mask tokens of all cross-attention blocks: `stack_flop` with half of the projections."""
    mlp = (6 if decoder.gated else 4) * decoder.dim * decoder.mlp_dim
    return decoder.layers * queries * (4 * decoder.dim**2 + mlp + 4 * tokens * decoder.dim)


def classify_flop(model: Classifier) -> int:
    """Count the FLOP of the encoder of a classifier on one image, forward."""
    return encode_flop(model.encoder)
