"""The walk over a scheduled module, against numbers worked out by hand for step.hlo, a small one in the TPU's style."""

from pathlib import Path

import pytest

from maejax.plan.hlo import parse, parse_instruction, parse_shapes
from maejax.plan.hlo_cost import convolution_flop, module_cost
from maejax.plan.roofline import KERNEL_UTILISATION, step_time
from maejax.training.chips import CHIPS

TEXT = Path(__file__).with_name("step.hlo").read_text()
TURNS = 4
X = 104 * 256 * 2  # bf16[100,200] in tiles of 8 x 128
LAYER = 200 * 128 * 2  # bf16[200,64], one of four
SAVED = 104 * 128 * 4  # f32[100,64], one of four
GRADIENT, PART = 512 * 128 * 4, 128 * 128 * 4
KERNEL = 40_000_000  # what it says of itself


@pytest.mark.parametrize(
    ("text", "plain", "padded", "space"),
    [
        ("f32[100,64]{1,0:T(8,128)}", 25600, SAVED, 0),
        ("f32[100,64]{0,1:T(8,128)}", 25600, 64 * 128 * 4, 0),  # columns are the fast axis
        ("bf16[100,200]{1,0:T(8,128)(2,1)S(1)}", 40000, X, 1),
        ("u8[1,64,64,3]{2,1,3,0:T(8,128)(4,1)}", 12288, 3 * 64 * 128, 0),
        ("f32[192]{0:T(256)}", 768, 1024, 0),
        ("f32[3,5]{1,0}", 60, 60, 0),
        ("pred[]", 1, 1, 0),
    ],
)
def test_shapes_take_whole_tiles(text, plain, padded, space):
    (shape,) = parse_shapes(text)
    assert (shape.nbytes, shape.padded, shape.space) == (plain, padded, space)


def test_traffic_counts_tiles_slices_and_turns():
    cost = module_cost(parse(TEXT))
    each = {work.name: (work.times, work.nbytes) for work in cost.work if work.nbytes}
    assert each == {
        "copy-start": (1, X),  # read once; it goes to on-chip memory
        "product": (TURNS, LAYER),  # one layer of the stack; x and the product are on the chip
        "stored": (TURNS, SAVED),  # written in place
        "scattered": (1, GRADIENT + PART),
        "kernel": (1, 2 * X),  # given the same array twice, of which it reads one part each
    }
    assert cost.unknown_loops == cost.kernels == []
    assert cost.nbytes == X + TURNS * (LAYER + SAVED) + GRADIENT + PART + 2 * X


def test_a_kernel_that_does_not_say_what_it_computes_is_named():
    cost = module_cost(parse(TEXT.replace('"flops":"40000000",', "")))
    assert cost.kernels == ["tpu_custom_call"]


def test_arithmetic_and_messages():
    cost = module_cost(parse(TEXT))
    assert cost.flop_by_type == {"bf16": TURNS * 2 * 100 * 200 * 64 + KERNEL}
    assert cost.messages == {("reduce-scatter", "f32"): (1, 512 * 128 * 4)}


def test_batched_products_on_tpu_are_convolutions_with_holes():
    """Attention scores: a batch of 8 products 17 x 64 x 17, as the TPU compiler writes them."""
    shapes = parse_shapes("f32[8,17,64]{2,1,0}"), parse_shapes("f32[8,17,64]{2,1,0}")
    text = "f32[8,17,17]{1,2,0} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf"
    assert convolution_flop(parse_instruction("c", text), *(s[0] for s in shapes)) == 2 * 8 * 17 * 64 * 17


def test_time_takes_the_slower_of_memory_and_arithmetic():
    chip = next(chip for chip in CHIPS if chip.name == "v4")
    times = step_time(module_cost(parse(TEXT)), chip, devices=4)
    flop, memory = 2 * 100 * 200 * 64 / chip.peak, LAYER / chip.bandwidth
    rest = (X + TURNS * SAVED + GRADIENT + PART) / chip.bandwidth
    kernel = KERNEL / chip.peak
    assert flop < memory < 1000 / chip.clock and kernel > 2 * X / chip.bandwidth
    assert times.roof == pytest.approx(TURNS * memory + rest + kernel)
    assert times.mix == pytest.approx(TURNS * 1000 / chip.clock + rest + kernel / KERNEL_UTILISATION)
    assert times.mix - times.in_kernels == pytest.approx(TURNS * 1000 / chip.clock + rest + kernel)
    assert times.messages == pytest.approx(GRADIENT * 3 / 4 / (2 * chip.link))
