"""The FLOP of the published algorithm, against the paper's own ratios and an independent count."""

import pytest

from maejax.models.description import MAE, ViT
from maejax.models.flops import pretrain_flop, stack_flop
from maejax.models.stack import Stack

SIZES = {"B": ViT(), "L": ViT(dim=1024, layers=24, heads=16), "H": ViT(dim=1280, layers=32, heads=16, patch_size=14)}


@pytest.mark.parametrize(("size", "gflop"), [("B", 58.7), ("L", 124.5), ("H", 291)])
def test_flop_of_one_image(size, gflop):
    assert pretrain_flop(MAE(encoder=SIZES[size])) / 1e9 == pytest.approx(gflop, rel=0.005)


def test_mask_tokens_in_the_encoder_cost_what_the_paper_says():
    """Table 1c: with mask tokens in the encoder 3.3 times the FLOP; its decoder: less than 10 % a token."""
    decoder, encoder = stack_flop(Stack(dim=512, layers=8, heads=16), 197), SIZES["L"]
    ratio = (stack_flop(encoder, 197) + decoder) / (stack_flop(encoder, 50) + decoder)
    assert ratio == pytest.approx(3.3, abs=0.1)
    assert 0.08 < decoder / stack_flop(encoder, 197) < 0.1
