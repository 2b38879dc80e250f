"""Diagnosis: the first layer that goes wrong is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maejax.models import masking
from maejax.models.build import initial_model
from maejax.models.description import MAE, Decoder, ViT
from maejax.tasks.diagnosis import first_bad_layer


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: spoil(m.predict.kernel, jnp.nan), "the parameter predict.kernel"),
        (lambda m: spoil(m.encoder.embed.kernel, 3e38), "encoder.embed"),
        (lambda m: spoil(m.encoder.transformer.blocks.fc2.kernel, 3e38, 1), "encoder.transformer.blocks[1]"),
        (lambda m: spoil(m.decoder.blocks.attention.proj.kernel, 3e38, 0), "decoder.blocks[0]"),
        (lambda m: spoil(m.predict.kernel, 1e30), "the loss"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_first_bad_layer_is_named(change, named):
    encoder = ViT(image_size=(8, 8), patch_size=4, dim=8, layers=2, heads=2)
    model = initial_model(MAE(encoder=encoder, decoder=Decoder(dim=8, layers=1, heads=2)))
    change(model)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    assert first_bad_layer(model, images, np.asarray(masking.random(jax.random.key(0), 2, 4))) == named


def spoil(parameter, value, layer=None):
    array = parameter[...]
    parameter[...] = jnp.full_like(array, value) if layer is None else array.at[layer].set(value)
