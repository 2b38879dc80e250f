"""The forms that a model takes on GPUs compute what the plain ones do; this machine stands for a GPU."""

import jax
import jax.numpy as jnp
import pytest

from maejax.models import masking
from maejax.models.build import initial_model
from maejax.models.description import MAE, Compute, Decoder, ViT
from maejax.ops import attention, dense

from ..bounds import assert_close, rounding

ENCODER = ViT(image_size=(16, 16), patch_size=4, dim=32, layers=1, heads=2)
SELF, CROSS = Decoder(dim=32, layers=2, heads=2), Decoder(dim=32, layers=1, heads=2, attention="cross", inputs="all")


@pytest.fixture
def gpu(monkeypatch):
    """Return a function that takes this machine for a GPU; JAX computes what cuDNN would, masks included."""
    plain = jax.nn.dot_product_attention

    def take():
        for module in (attention, dense):
            monkeypatch.setattr(module, "target_platform", lambda: "gpu")
        monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, implementation, **more: plain(*a, **more))

    return take


def outcome(config, dtype):
    """Return the losses of three images and the gradient of their mean, through a model in a type."""
    model = initial_model(config, Compute(dtype=dtype, attention="cudnn"))
    images = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))
    order = masking.random(jax.random.key(1), 3, 16)  # 5 tokens enter the encoder, 12 or 17 the decoder

    def losses(model):
        loss = model(images, order).loss
        return loss.mean(), loss

    gradient, loss = jax.jit(jax.grad(losses, has_aux=True))(model)
    return loss, gradient


@pytest.mark.parametrize(
    ("decoder", "dtype"),
    [
        (SELF, "bfloat16"),
        pytest.param(SELF, "float32", marks=pytest.mark.slow),
        pytest.param(CROSS, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_forms_of_gpus_compute_what_plain_ones_do(gpu, decoder, dtype):
    config = MAE(encoder=ENCODER, decoder=decoder)
    plain = outcome(config, dtype)
    gpu()
    found = outcome(config, dtype)
    if dtype == "float32":
        assert_close(found, plain, rounding(3 * 17 * 128))
    else:
        assert_close(found[0], plain[0], 2**-8)
        for ours, theirs in zip(*map(jax.tree.leaves, (found[1], plain[1])), strict=True):
            assert jnp.linalg.norm(ours - theirs) <= 2**-5 * jnp.linalg.norm(theirs)
