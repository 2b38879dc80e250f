"""Masks of any number of patches, as one computation: the same as with as many tokens as are visible."""

import jax
import numpy as np
import pytest

from maejax.models import masking
from maejax.models.any_mask import fill_hidden

from ..bounds import assert_close, rounding
from .test_mae import SUMS, tiny


@pytest.mark.parametrize(
    "model",
    [
        {"norm_pix_loss": True, "encoder": {"posemb": "rotary", "registers": 2, "qk_norm": True}},
        {"encoder": {"cls_token": False, "layerscale": True}, "mask_tokens": "encoder"},
        {"decoder": {"attention": "cross", "inputs": "all"}},
    ],
    ids=["rotary", "mask tokens in the encoder", "mixes"],
)
def test_any_number_of_visible_patches_is_computed_as_by_the_model(model):
    model, rng = tiny(**model), np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 16, 24, 3), np.uint8)
    order = np.asarray(masking.random(jax.random.key(1), 2, model.patches))
    visible = 5
    hidden = np.ones(order.shape, bool)
    np.put_along_axis(hidden, order[:, :visible], False, axis=1)
    found = jax.jit(fill_hidden)(model, images, hidden)
    wanted = jax.jit(lambda *args: model(*args, visible=visible, every=True))(images, order)
    guessed = np.take_along_axis(np.asarray(found.prediction), order[:, visible:, None], axis=1)
    assert_close(guessed, wanted.prediction, rounding(2 * SUMS))
    assert_close(found.loss, wanted.loss, rounding(2 * SUMS))
