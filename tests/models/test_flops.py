"""The FLOP of the published algorithm, against the paper's own ratios and an independent count."""

import pytest

from maejax.models.flops import train_flop, vit_flop

DECODER = {"dec_dim": 512, "dec_layers": 8}
SIZES = {"B": (768, 12, 16), "L": (1024, 24, 16), "H": (1280, 32, 14)}


@pytest.mark.parametrize(("size", "gflop"), [("B", 58.7), ("L", 124.5), ("H", 291)])
def test_flop_of_one_image(size, gflop):
    dim, layers, patch = SIZES[size]
    patches = (224 // patch) ** 2
    flop = train_flop(
        patches=patches, visible=patches // 4, pixels=3 * patch**2, dim=dim, layers=layers, **DECODER
    )  # fmt: skip
    assert flop / 1e9 == pytest.approx(gflop, rel=0.005)


def test_mask_tokens_in_the_encoder_cost_what_the_paper_says():
    """Table 1c: with mask tokens in the encoder 3.3 times the FLOP; its decoder: less than 10 % a token."""
    decoder = vit_flop(197, 512, 8)
    assert (vit_flop(197, 1024, 24) + decoder) / (vit_flop(50, 1024, 24) + decoder) == pytest.approx(3.3, abs=0.1)
    assert 0.08 < decoder / vit_flop(197, 1024, 24) < 0.1
