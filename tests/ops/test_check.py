"""Fast forms beside exact products: honest ones pass, and forms made to fail or to deviate are found."""

import functools

import jax
import jax.numpy as jnp
import pytest

from maejax.ops import attention, check, dense
from maejax.ops.attention import attend_plainly
from maejax.ops.attention_tpu import attend_on_chip, attend_packed_on_chip
from maejax.ops.check import Sizes, compare, compare_fast_forms

ENCODER = Sizes("encoder", rows=3, queries=5, tokens=5, dim=128, heads=1, mlp_dim=512)
LAST = Sizes("decoder's last block", rows=3, queries=6, tokens=9, dim=128, heads=2, mlp_dim=512)


def plainly(q, k, v, heads, lengths=None):
    """Compute what cuDNN does, of arrays without padding."""
    return attend_plainly(q, k, v, heads)


@pytest.fixture
def tpu(monkeypatch):
    """Take this machine for a TPU, whose kernel Pallas interprets; sums stay those of the CPU."""
    monkeypatch.setattr("maejax.ops.platform.target_platform", lambda: "tpu")
    for kernel in (attend_on_chip, attend_packed_on_chip):
        monkeypatch.setattr(attention, kernel.__name__, functools.partial(kernel, interpret=True))


@pytest.fixture
def gpu(monkeypatch):
    """Take this machine for a GPU, on which cuDNN computes what plain products do."""
    monkeypatch.setattr(attention, "target_platform", lambda: "gpu")
    monkeypatch.setattr(attention, "attend_by_cudnn", plainly)


def test_nothing_is_compared_on_cpu(monkeypatch):
    monkeypatch.setattr(check, "compare", None)
    assert compare_fast_forms([ENCODER, LAST], jnp.bfloat16) == []


@pytest.mark.parametrize(("sizes", "dtype"), [(LAST, jnp.float32), (ENCODER, jnp.bfloat16)])
def test_honest_forms_pass_within_rounding(tpu, monkeypatch, sizes, dtype):
    monkeypatch.setattr(dense, "PIECE_BYTES", 3 * 3 * 512 * jnp.dtype(dtype).itemsize)  # three tokens of three samples
    found = compare_fast_forms([sizes], dtype)
    assert [(each.form, each.part) for each in found] == [("pieces", sizes.part), ("pallas", sizes.part)]
    for each in found:
        assert each.ok and each.error == "", each
        # They differ where values are rounded. One more place that rounds would take half of the bound.
        assert max(each.forward, each.gradient) < (0.47 if each.form == "pieces" else 0.55) * each.bound, each
        assert each.forward > 0 or dtype == jnp.float32


def test_attention_that_was_chosen_by_name_is_not_compared(tpu, monkeypatch):
    monkeypatch.setattr(check, "compare", lambda form, *_: form)
    assert compare_fast_forms([LAST], jnp.float32, attention=False) == ["pieces"]


def test_cudnn_is_compared_on_gpu_in_half_precision_alone(gpu):
    (found,) = compare_fast_forms([LAST], jnp.bfloat16)
    assert found.ok and found.form == "cudnn" and found.forward > 0
    assert compare_fast_forms([LAST], jnp.float32) == []


def refuse(out):
    raise NotImplementedError("no such heads\nand a long trace")


def end_late(out):
    """Raise where the compiled program runs."""

    def fail(_):
        raise RuntimeError("the device is lost")

    return out + jax.pure_callback(fail, jax.ShapeDtypeStruct((), out.dtype), 0.0)


def excess(out):
    """Return a share that rounding cannot explain: 1 %, but 2 % where values are held to .8 %."""
    return 0.01 if out.dtype == jnp.float32 else 0.02


FAULTS = {
    "raises": refuse,
    "raises when it runs": end_late,
    "too large": lambda out: out + jax.lax.stop_gradient(excess(out) * out),
    "a wrong head of one token": lambda out: out.at[-1, -1, :64].set(0),
    "not a number": lambda out: out + jnp.zeros_like(out).at[0, 0, 0].set(jnp.nan),
    "wrong in its gradient": lambda out: (1 + excess(out)) * out - jax.lax.stop_gradient(excess(out) * out),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("form", ["pallas", "cudnn", "pieces"])
def test_a_form_that_fails_or_deviates_is_found(request, monkeypatch, form, fault):
    request.getfixturevalue("gpu" if form == "cudnn" else "tpu")
    module, name, honest = {
        "pallas": (attention, "attend_on_chip", attend_plainly),
        "cudnn": (attention, "attend_by_cudnn", plainly),
        "pieces": (check, "mlp_in_pieces", check.mlp_in_pieces),
    }[form]
    monkeypatch.setattr(module, name, lambda *args, **more: FAULTS[fault](honest(*args, **more)))
    found = compare(form, LAST, jnp.bfloat16 if form == "cudnn" else jnp.float32)
    assert not found.ok
    if "raises" in fault:
        expected = "NotImplementedError: no such heads" if fault == "raises" else "RuntimeError: INTERNAL"
        assert expected in found.error and "long trace" not in str(found)
        assert str(found).startswith(f"{check.NAMES[form]} in the {LAST.part}: ")
    elif fault == "wrong in its gradient":
        assert found.forward <= found.bound < found.gradient, found
    else:
        assert not found.forward <= found.bound, found


def test_all_sizes_count(tpu, monkeypatch):
    """A form that is wrong where queries are fewer than keys is found there alone."""

    def wrong(q, k, v, heads):
        return attend_plainly(q, k, v[:, ::-1] if q.shape[1] < k.shape[1] else v, heads)

    monkeypatch.setattr(attention, "attend_on_chip", wrong)
    found = compare_fast_forms([ENCODER, LAST], jnp.bfloat16)
    assert [(each.form, each.part) for each in found if not each.ok] == [("pallas", LAST.part)]


def test_a_comparison_takes_few_samples_and_the_pieces_of_all(tpu, monkeypatch):
    seen = []
    honest = check.mlp_in_pieces

    def watched(x, fc1, fc2, activate, ends):
        seen.append((x.shape, list(ends)))
        return honest(x, fc1, fc2, activate, ends)

    monkeypatch.setattr(check, "mlp_in_pieces", watched)
    monkeypatch.setattr(dense, "PIECE_BYTES", 1000 * 3 * 512 * 2)  # three tokens of a thousand samples
    monkeypatch.setattr(check, "MOST_ROWS", 2)
    many = Sizes("encoder", rows=1000, queries=5, tokens=5, dim=128, heads=2, mlp_dim=512)
    assert compare("pieces", many, jnp.bfloat16).ok
    assert seen[0] == ((2, 5, 128), [2])
