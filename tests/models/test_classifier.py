"""The classifier against what the authors' fine-tuning code computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maejax.models.build import initial_model
from maejax.models.classifier import BATCH_NORM_EPS, ImageClassifier
from maejax.models.description import Classifier, ViT
from maejax.models.trees import named_arrays, with_arrays
from maejax.tasks.classify import Drawn, encode_batch
from maejax.training.losses import cross_entropy, is_encoder, probe_losses, update_stats
from maejax.training.optim import FINETUNE_DECAYED, ParameterRules, build_optimizer, for_trained
from maejax.training.state import Frozen, TrainState, make_step
from maejax.weights import torch_names

from ..bounds import assert_close, assert_trained_alike


def authors_model(g, **options):
    size, patch, dim, layers, heads, labels, _ = (int(v) for v in g["config"])
    encoder = ViT(image_size=(size, size), patch_size=patch, dim=dim, layers=layers, heads=heads, posemb="learnable")
    return initial_model(Classifier(encoder=encoder, labels=labels, **options))


@pytest.mark.parametrize("pooling", ["cls", "gap"])
def test_logits_equal_the_authors(golden, pooling):
    g = golden(f"fair_finetune_{pooling}")
    model = authors_model(g, pooling=pooling)
    model = with_arrays(model, torch_names.to_ours(g["weights"]))
    x = jnp.asarray(g["images"][0].transpose(0, 2, 3, 1))
    assert_close(jax.jit(ImageClassifier.__call__)(model, x), g["logits"])

    def loss(model):
        return -(jax.nn.log_softmax(model(x)) * g["soft_targets"][0]).sum(-1).mean()

    ours = named_arrays(jax.jit(jax.grad(loss))(model))
    theirs = torch_names.to_ours(g["grads"])
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert_close(ours[name], expected, name=name)


def step_by_step(g, targets, model, step, optimizer, weights):
    """Train on the golden batches; return losses, the arrays after them, and the model."""
    state = TrainState(jnp.zeros((), jnp.int32), with_arrays(model, weights), None)
    state = TrainState(state.step, state.model, jax.jit(optimizer.init)(state.model))
    losses = []
    for images, wanted in zip(g["images"], targets, strict=True):
        batch = Drawn(images.transpose(0, 2, 3, 1), wanted, np.ones(6, bool))
        state, metrics, _ = step(state, batch)
        losses.append(float(metrics["train/loss"]))
    return losses, named_arrays(state.model), state.model


def close(ours, theirs):
    for name, expected in theirs.items():
        array = np.asarray(ours[name])
        if name.endswith("qkv.bias"):
            # Softmax ignores what all scores share: the keys' bias has no gradient, and Adam blows its rounding up.
            array, expected = (np.delete(a, slice(a.shape[1] // 3, 2 * a.shape[1] // 3), 1) for a in (array, expected))
        assert_trained_alike(array, expected, name=name)


@pytest.mark.parametrize("pooling", ["cls", "gap"])
def test_fine_tuning_equals_the_authors(golden, pooling):
    g = golden(f"fair_finetune_{pooling}")
    model = authors_model(g, pooling=pooling)
    optimizer = build_optimizer(
        "adamw", lambda step: 1e-3, weight_decay=0.05, b1=0.9, b2=0.999, rules=ParameterRules(FINETUNE_DECAYED, 0.65)
    )

    def losses(model, batch, microstep):
        return cross_entropy(model(batch.x), batch.targets, "ce")

    step = make_step(losses, optimizer, lambda step: 1e-3)
    found, arrays, after = step_by_step(g, g["soft_targets"], model, step, optimizer, torch_names.to_ours(g["weights"]))
    assert_close(found, list(g["losses"]))
    close(arrays, torch_names.to_ours(g["after"]))
    x = jnp.asarray(g["images"][0].transpose(0, 2, 3, 1))
    assert_close(jax.jit(ImageClassifier.__call__)(after, x), g["eval_logits_after"])


def linear_names(weights):
    """Translate the authors' linear probe, whose head is (batch norm, linear)."""
    encoder = {name: value for name, value in weights.items() if not name.startswith("head.")}
    return {
        **torch_names.to_ours(encoder), "head.kernel": weights["head.1.weight"].T, "head.bias": weights["head.1.bias"],
        "head_norm.mean": weights["head.0.running_mean"], "head_norm.var": weights["head.0.running_var"],
    }  # fmt: skip


def test_linear_probing_equals_the_authors(golden):
    g = golden("fair_linear")
    model = authors_model(g, head_norm=BATCH_NORM_EPS)
    optimizer = for_trained(build_optimizer("lars", lambda step: 0.1, weight_decay=0.0), is_encoder)
    step = make_step(probe_losses, optimizer, lambda step: 0.1, frozen=Frozen(is_encoder, encode_batch, update_stats))
    found, arrays, after = step_by_step(
        g, np.eye(model.config.labels)[g["labels"]], model, step, optimizer, linear_names(g["weights"])
    )
    assert_close(found, list(g["losses"]))
    close(arrays, linear_names(g["after"]))
    x = jnp.asarray(g["images"][0].transpose(0, 2, 3, 1))
    assert_close(after(x), g["eval_logits_after"])
    # The encoder has no optimizer state.
    assert {name.rpartition(".trace.")[2] for name in named_arrays(optimizer.init(model)) if ".trace." in name} == {
        "head.kernel", "head.bias"
    }  # fmt: skip


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match=r"pooling is cls, gap, avg, cls\+avg, map, not max"):
        Classifier(labels=2, pooling="max")
