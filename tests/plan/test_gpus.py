"""GPUs that are not here: their names and descriptions, and the walk over a module compiled for them.

gpu_step.hlo holds calls of cuBLAS and cuDNN and messages as the compiler writes them for eight H100.
"""

import re
from pathlib import Path

import pytest

from maejax.plan import target
from maejax.plan.gpus import GPUS, describe, linked, read_gpus
from maejax.plan.hlo import parse
from maejax.plan.hlo_cost import module_cost
from maejax.plan.roofline import GPU_MEMORY, GPU_PRODUCTS, step_time
from maejax.plan.target import find_target

TOKENS = 128 * 50 * 768 * 2  # bfloat16: q, k, v or x
SCORES = 128 * 12 * 50 * 50 * 64  # multiplications of one product of attention
GRADIENTS = 7480065 * 4


def module():
    return module_cost(parse(Path(__file__).with_name("gpu_step.hlo").read_text()))


@pytest.mark.parametrize(
    ("name", "chip", "count"),
    [
        ("h100-8", "H100", 8), ("h100-64", "H100", 64), ("h200", "H200", 1), ("a100-40", "A100 40GB", 1),
        ("a100-80-8", "A100", 8), ("l40s-4", "L40S", 4), ("l4-1", "L4", 1), ("rtx4090", "RTX 4090", 1),
    ],
)  # fmt: skip
def test_names_are_of_a_card_and_a_number(name, chip, count):
    gpu, found = read_gpus(name) or pytest.fail(name)
    assert (gpu.chip, found) == (chip, count)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("h100-12", "h100-1 to h100-8 for one host, or a multiple of 8"),
        ("l4-0", "l4-1 to l4-8"),
        ("a100-8", "give the memory of the card too: a100-40, a100-80"),
        ("h300-8", "h300-8 is no TPU slice and no GPU: give v4-8, h100-1"),
        ("v100-8", "v100-8 is no TPU slice and no GPU"),
    ],
)
def test_other_names_are_refused(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        find_target(name)


def test_every_card_is_described_whole():
    for gpu in GPUS.values():
        text = describe(gpu)
        assert text.count("{") == text.count("}") == 3
        fields = dict(re.findall(r"(\w+): (\S+)", text))
        assert int(fields["device_memory_size"]) == gpu.described.memory
        assert int(fields["shared_memory_per_block_optin"]) < int(fields["shared_memory_per_core"])
        assert (int(fields["core_count"]), float(fields["clock_rate_ghz"])) == (gpu.cores, gpu.clock)
        assert linked(gpu, 8) == gpu.described and linked(gpu, 16).link <= gpu.described.link


def test_without_the_compiler_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(target.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'maejax\[cuda\]' \(5.3 GB"):
        find_target("h100-8")


def test_calls_of_libraries_count_what_they_compute_and_move():
    cost = module()
    assert not cost.kernels and not cost.unknown_loops
    product = 2 * 6400 * 768 * 3072
    assert cost.flop_by_type == {"bf16": product + 2 * SCORES * 2 + 2 * SCORES * 5}
    each = {work.name.rpartition(".")[0]: work.nbytes for work in cost.work if work.nbytes}
    hidden, sums = 6400 * 3072, 128 * 12 * 50 * 4
    assert each == {
        "cublas-lt-matmul": TOKENS + 768 * 3072 * 2 + 3072 * 4 + 4 * hidden,  # not the 33 MB that it may work in
        "loop_convert_fusion": (4 + 2 + 2) * hidden,
        "dot_product_attention_fwd": 4 * TOKENS + sums,
        "dot_product_attention_bwd": 8 * TOKENS + sums,
        "all-gather-start": 9 * (96 + 12) * 768 * 2,
        "all-reduce-start": 2 * GRADIENTS,
    }


def test_messages_of_several_arrays_count_in_full():
    assert module().messages == {
        ("all-gather", "bf16"): (1, 8 * (96 + 12) * 768 * 2),
        ("all-reduce", "f32"): (1, GRADIENTS),
    }


def test_time_of_a_card_is_a_share_of_its_peak_and_bandwidth():
    cost, chip = module(), linked(GPUS["h100"], 64)
    times = step_time(cost, chip, devices=64)
    ideal = [(sum(work.flop.values()) / chip.peak, work.nbytes / chip.bandwidth) for work in cost.work]
    assert times.roof == pytest.approx(sum(max(pair) for pair in ideal))
    assert times.mix == pytest.approx(sum(max(flop / GPU_PRODUCTS, moved / GPU_MEMORY) for flop, moved in ideal))
    gathered = 8 * (96 + 12) * 768 * 2
    assert times.messages == pytest.approx((2 * GRADIENTS + gathered) * 63 / 64 / 400e9)  # eight ports of 400 Gbit/s


@pytest.mark.slow
@pytest.mark.parametrize("name", ["h100-8", "b200-1", "a100-40-1", "l4-1", "rtx4090-1"])
def test_a_step_compiles_for_cards_that_are_not_here(maejax, monkeypatch, name):
    pytest.importorskip("jax_cuda12_plugin", reason="pip install 'maejax[cuda]'")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    small = "--image-size 32 --patch-size 8 --dim 128 --layers 1 --heads 2 --dec-dim 128 --dec-layers 1 --dec-heads 2"
    code, printed = maejax("plan", "--topology", name, *small.split(), "--train-batch-size", "64")
    assert code == 0, printed
    assert re.search(r"memory per device +peak [\d.]+ MiB of [\d.]+ GiB: fits +firm", printed), printed
    assert re.search(r"HLO FLOP .*bf16", printed, re.DOTALL) and re.search(r"step .* ms +estimate", printed)
