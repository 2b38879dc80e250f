"""The classifier against what the authors' fine-tuning code computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maejax.interop import fair
from maejax.models.arrays import named_arrays, with_arrays
from maejax.models.classifier import Classifier


@pytest.mark.parametrize("pooling", ["cls", "gap"])
def test_logits_equal_the_authors(golden, pooling):
    g = golden(f"fair_finetune_{pooling}")
    size, patch, dim, layers, heads, labels, _ = (int(v) for v in g["config"])
    model = Classifier(
        labels=labels, pooling=pooling, image_size=(size, size), patch_size=patch, dim=dim, layers=layers,
        heads=heads, posemb="learnable", rngs=nnx.Rngs(0),
    )  # fmt: skip
    model = with_arrays(model, fair.to_ours(g["weights"]))
    x = jnp.asarray(g["images"][0].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(jax.jit(Classifier.__call__)(model, x), g["logits"], rtol=1e-5, atol=1e-6)

    def loss(model):
        return -(jax.nn.log_softmax(model(x)) * g["soft_targets"][0]).sum(-1).mean()

    ours = named_arrays(jax.jit(jax.grad(loss))(model))
    theirs = fair.to_ours(g["grads"])
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert np.abs(ours[name] - expected).max() < 1e-5 * np.abs(expected).max() + 1e-8, name


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling is cls or gap, not max"):
        Classifier(labels=2, pooling="max", rngs=nnx.Rngs(0))
