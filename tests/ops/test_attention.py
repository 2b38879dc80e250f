"""The forms of attention: what they compute, which one runs where, and that the compilers take them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from maejax.data.pipeline import Batch
from maejax.models import masking
from maejax.models.build import abstract_model, initial_model
from maejax.models.description import MAE, Compute, Decoder, ViT
from maejax.ops import attention
from maejax.ops.attention import attend, chosen_form
from maejax.ops.attention_tpu import attend_on_chip, attend_packed_on_chip
from maejax.training.mesh import split
from maejax.training.optim import build_optimizer
from maejax.training.state import abstract_state, make_step

from ..bounds import assert_close, rounding


def described(platform, devices=1):
    """Compile for devices that are not here; the platform "tpu v3" is a kind of "tpu"."""
    device = AbstractDevice(device_kind=platform.replace("tpu", "TPU"), num_cores=1, platform=platform.split()[0])
    mesh = AbstractMesh((devices,), ("data",), (AxisType.Auto,), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def operands(batch, queries, tokens, dim, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(batch, n, dim)), dtype) for n in (queries, tokens, tokens, queries)]


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(function, q, k, v, g):
    out, backward = jax.vjp(function, q, k, v)
    return out, *backward(g)


def exact_attention(q, k, v, g, heads):
    """Compute attention and the gradients of q, k and v in float64: two forms in float32 differ by both roundings."""
    q, k, v, g = (np.asarray(a, np.float64).reshape(*a.shape[:2], heads, -1).swapaxes(1, 2) for a in (q, k, v, g))
    scale = q.shape[-1] ** -0.5
    scores = scale * q @ k.swapaxes(2, 3)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    back = g @ v.swapaxes(2, 3)
    back = scale * weights * (back - (back * weights).sum(-1, keepdims=True))
    found = (weights @ v, back @ k, back.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ g)
    return [a.swapaxes(1, 2).reshape(a.shape[0], a.shape[2], -1) for a in found]


@pytest.mark.parametrize(
    ("batch", "queries", "tokens", "dim", "heads"),
    [(3, 50, 50, 128, 2), (2, 13, 21, 256, 8), (41, 9, 9, 128, 1), (3, 13, 21, 1280, 16)],
    ids=["head-64", "tail-of-head-32", "blocks-beyond-the-batch", "head-80-across-groups"],
)
def test_kernel_equals_exact_attention_and_so_do_its_gradients(monkeypatch, batch, queries, tokens, dim, heads):
    monkeypatch.setattr("maejax.ops.attention_tpu.BLOCK_BYTES", 2_500_000)  # 20 samples of the 41
    given = operands(batch, queries, tokens, dim)
    exact = exact_attention(*given, heads)
    kernel = value_and_gradients(lambda *qkv: attend_on_chip(*qkv, heads, True), *given)
    plain = value_and_gradients(lambda *qkv: attend(*qkv, heads, "xla"), *given)
    monkeypatch.setattr(attention, "FEWEST_SCORES", 0)
    in_pieces = value_and_gradients(lambda *qkv: attend(*qkv, heads, "xla"), *given)
    for found, wanted in zip([*kernel, *plain, *in_pieces], [*exact] * 3, strict=True):
        assert_close(found, wanted, rounding(dim // heads + 2 * tokens))


@pytest.mark.parametrize(("samples", "dtype"), [(3, "float32"), (41, "bfloat16")])
def test_kernel_takes_queries_keys_and_values_side_by_side(monkeypatch, samples, dtype):
    monkeypatch.setattr("maejax.ops.attention_tpu.BLOCK_BYTES", 1_250_000)  # 20 samples of the 41
    *given, g = operands(samples, 9, 9, 256, dtype)
    apart = value_and_gradients(lambda *qkv: attend_on_chip(*qkv, 8, True), *given, g)
    out, backward = jax.vjp(lambda qkv: attend_packed_on_chip(qkv, 8, True), jnp.concatenate(given, axis=-1))
    np.testing.assert_array_equal(out, apart[0])
    np.testing.assert_array_equal(backward(g)[0], jnp.concatenate(apart[1:], axis=-1))


def test_kernel_in_half_precision_sums_in_single():
    exact = value_and_gradients(lambda *qkv: attend(*qkv, 4, "xla"), *operands(2, 13, 21, 128))
    half = value_and_gradients(lambda *qkv: attend_on_chip(*qkv, 4, True), *operands(2, 13, 21, 128, jnp.bfloat16))
    for a, b in zip(half, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        assert_close(a, b, 3 * 2**-8)  # the queries, keys and values are rounded by 2^-8 each


@pytest.fixture
def interpreted(monkeypatch):
    """Run the TPU's kernel on the four CPU devices."""
    monkeypatch.setattr("maejax.ops.platform.target_platform", lambda: "tpu")
    for kernel in (attend_on_chip, attend_packed_on_chip):
        monkeypatch.setattr(attention, kernel.__name__, functools.partial(kernel, interpret=True))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        yield mesh


def test_every_device_attends_for_its_own_samples(interpreted):
    rows = jax.sharding.NamedSharding(interpreted, jax.sharding.PartitionSpec("data"))
    args = jax.device_put(operands(8, 5, 9, 128), rows)
    ours, plain = (value_and_gradients(lambda *qkv: attend(*qkv, 2, form), *args) for form in ("auto", "xla"))  # noqa: B023
    for a, b in zip(ours, plain, strict=True):
        assert a.sharding.is_equivalent_to(rows, 3)
        assert_close(a, b, rounding(64 + 2 * 9))


@pytest.mark.parametrize("scan", [False, True])
def test_all_layers_of_a_model_use_the_kernel(interpreted, scan):
    def build():
        encoder = ViT(image_size=(16, 16), patch_size=4, dim=128, layers=2, heads=2)
        return initial_model(MAE(encoder=encoder, decoder=Decoder(dim=128, layers=2, heads=4)), Compute(scan=scan))

    images, order = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.float32), jax.ShapeDtypeStruct((8, 16), jnp.int32)
    loss = jax.grad(lambda m, x, order: m(x, order).loss.mean())
    text = str(jax.make_jaxpr(loss)(jax.eval_shape(build), images, order))
    # Forward and backward of each layer; a scan has one body for all but the decoder's last.
    assert text.count(" pallas_call[") == (6 if scan else 8) <= text.count(" shard_map[")


@pytest.mark.parametrize(
    ("platform", "form", "shape", "heads", "dtype", "expected"),
    [
        ("tpu", "auto", (8, 50, 768), 12, "bfloat16", "pallas"),
        ("tpu", "auto", (8, 197, 512), 16, "float32", "pallas"),
        ("tpu", "xla", (8, 50, 768), 12, "bfloat16", "xla"),
        ("tpu", "cudnn", (8, 50, 768), 12, "bfloat16", "xla"),
        ("tpu", "auto", (8, 65, 1280), 16, "bfloat16", "pallas"),  # ViT-H: heads of 80
        ("tpu v3", "pallas", (8, 50, 768), 12, "bfloat16", "xla"),  # its compiler takes no such kernel
        ("tpu", "auto", (8, 50, 768), 16, "bfloat16", "xla"),  # heads of 48
        ("tpu", "auto", (8, 50, 192), 6, "bfloat16", "xla"),  # not whole groups of 128 lanes
        ("tpu", "auto", (8, 577, 768), 12, "bfloat16", "xla"),  # 384 pixels
        ("tpu", "auto", (7, 50, 768), 12, "bfloat16", "xla"),  # rows that do not divide over two devices
        ("gpu", "cudnn", (8, 50, 1280), 16, "bfloat16", "cudnn"),
        ("gpu", "cudnn", (8, 50, 768), 12, "float32", "xla"),
        ("gpu", "pallas", (8, 50, 768), 12, "bfloat16", "xla"),
        ("gpu", "auto", (8, 50, 768), 12, "bfloat16", "xla"),
        ("cpu", "pallas", (8, 50, 768), 12, "bfloat16", "xla"),
    ],
)
def test_a_form_that_does_not_fit_gives_way_to_plain_attention(platform, form, shape, heads, dtype, expected):
    q = jax.ShapeDtypeStruct(shape, dtype)
    with described(platform, devices=2):
        assert chosen_form(form, q, q, heads) == expected


def lowered(platform, form, batch):
    """Lower forward and backward of ViT-B's decoder attention, the last block's 147 queries, in bfloat16."""
    q, k = (jax.ShapeDtypeStruct((batch, tokens, 512), jnp.bfloat16) for tokens in (147, 197))
    both = jax.jit(lambda *args: value_and_gradients(lambda *qkv: attend(*qkv, 16, form), *args))
    with described(platform):
        return both.trace(q, k, k, q).lower(lowering_platforms=("cuda" if platform == "gpu" else platform,)).as_text()


def test_the_kernel_lowers_for_tpu():
    text = lowered("tpu", "auto", 8)
    assert text.count("@tpu_custom_call") == 2 and "stablehlo.exponential" not in text
    assert "@tpu_custom_call" not in lowered("tpu", "xla", 8)


@pytest.fixture
def cudnn(monkeypatch):
    """Let JAX lower for NVIDIA's library without it: it asks for the version first."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)


def test_cudnn_attention_lowers_for_gpu_odd_tokens_too(cudnn):
    text = lowered("gpu", "cudnn", 8)
    assert "@__cudnn$fmhaSoftmax(" in text and "@__cudnn$fmhaSoftmaxBackward(" in text
    assert "stablehlo.exponential" not in text and "cudnn" not in lowered("gpu", "xla", 8)


def test_a_training_step_over_four_gpus_lowers_with_cudnn_attention(cudnn, monkeypatch):
    monkeypatch.setattr(attention, "target_platform", lambda: "gpu")

    def build():
        encoder = ViT(image_size=(16, 16), patch_size=4, dim=64, layers=1, heads=2)
        config = MAE(encoder=encoder, decoder=Decoder(dim=64, layers=1, heads=4))
        return initial_model(config, Compute(dtype="bfloat16", attention="cudnn"))

    def losses(model, batch, microstep):
        return model(model.normalize(batch.images), masking.random(jax.random.key(0), 8, 16)).loss

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    shapes = {"images": ((8, 16, 16, 3), jnp.uint8), "valid": ((8,), jnp.bool)}
    arrays = {name: jax.ShapeDtypeStruct(*shape, sharding=split(mesh)) for name, shape in shapes.items()}
    batch = Batch(**arrays, labels=None, index=None)
    optimizer = build_optimizer("adamw", lambda step: 1e-3, weight_decay=0.1)
    with jax.set_mesh(mesh):
        step = make_step(losses, optimizer, lambda step: 1e-3, sharding="fsdp")
        traced = step.trace(abstract_state(build, optimizer, mesh, "fsdp"), batch)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for call in ("@__cudnn$fmhaSoftmax(", "@__cudnn$fmhaSoftmaxBackward("):
        assert text.count(call) == 2, call


def test_an_encoder_for_any_batch_has_no_kernel():
    model = abstract_model(ViT(image_size=(16, 16), dim=128, heads=2, layers=1), Compute())
    (batch,) = jax.export.symbolic_shape("B")
    images = jax.ShapeDtypeStruct((batch, 16, 16, 3), jnp.float32)
    with described("tpu"):
        text = jax.export.export(jax.jit(type(model).__call__), platforms=["tpu", "cpu"])(model, images)
    assert "tpu_custom_call" not in text.mlir_module()


def test_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="attention is one of auto, xla, pallas, cudnn, not flash"):
        initial_model(ViT(), Compute(attention="flash"))
