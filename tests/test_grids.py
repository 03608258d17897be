"""Number grids: the error that is promised, zero kept exactly, order kept, nothing that overflows; and gradients."""

from itertools import product

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from afina.errors import InputError
from afina.techniques.quantize import Granularity, Grid, dequantize, fake_quantize, quantize
from afina.techniques.quantize.grids import BITS

GRIDS = [
    *(Grid(bits, signed, "affine") for bits, signed in product(BITS, (True, False))),
    *(Grid(bits, signed, "absmax", full) for bits, signed, full in product(BITS, (True, False), (True, False))),
]
LARGEST = torch.finfo(torch.float32).max
# Sixteen bits use most of what float32 can tell apart: half a step is then known to a few thousandths of it.
HALF = 0.505

_grids = st.sampled_from(GRIDS)
_number = st.floats(-1e6, 1e6, width=32)
_numbers = st.lists(_number, min_size=1, max_size=40)


def _fitted(values: list[float], grid: Grid, power_of_two: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The values, and the scale and zero point of the grid that covers them."""
    x = torch.tensor(values)
    return x, *grid.scales(x.min(), x.max(), power_of_two)


def _ends(scale: torch.Tensor, zero: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    return (grid.low - zero) * scale, (grid.high - zero) * scale


@pytest.mark.parametrize("bits", BITS)
def test_a_grid_has_the_codes_that_its_bits_and_signs_say(bits):
    assert (Grid(bits, True, "affine").low, Grid(bits, True, "affine").high) == (
        -(2 ** (bits - 1)),
        2 ** (bits - 1) - 1,
    )
    assert (Grid(bits, False, "affine").low, Grid(bits, False, "affine").high) == (0, 2**bits - 1)
    restricted, full = Grid(bits, full=False), Grid(bits, full=True)
    assert (restricted.low, full.low) == (-restricted.high, -full.high - 1)
    for grid in (restricted, full, Grid(bits, False)):
        limits = torch.iinfo(grid.dtype)
        assert limits.min <= grid.low < grid.high <= limits.max
        assert limits.bits == (8 if bits <= 8 else 16)


@settings(max_examples=400, deadline=None)
@given(_grids, _numbers, st.booleans())
def test_the_error_inside_the_range_is_at_most_half_a_step(grid, values, power_of_two):
    x, scale, zero = _fitted(values, grid, power_of_two)
    low, high = _ends(scale, zero, grid)
    error = (fake_quantize(x, scale, zero, grid) - x).abs()
    inside = (x >= low) & (x <= high)
    assert (error[inside] <= HALF * scale).all()
    # The zero point is rounded, which moves the ends by up to half a step: no value of the range loses more than one.
    assert (error <= 1.01 * scale).all()


@settings(max_examples=200, deadline=None)
@given(_grids, _numbers, st.booleans())
def test_quantizing_again_changes_nothing(grid, values, power_of_two):
    x, scale, zero = _fitted(values, grid, power_of_two)
    once = fake_quantize(x, scale, zero, grid)
    assert torch.equal(fake_quantize(once, scale, zero, grid), once)


@settings(max_examples=200, deadline=None)
@example(Grid(2, scheme="affine"), [500_000.0, 1_000_000.0], False)  # between two steps
@given(_grids, _numbers, st.booleans())
def test_zero_is_written_exactly_and_codes_are_whole_numbers_of_the_grid(grid, values, power_of_two):
    x, scale, zero = _fitted([*values, 0.0], grid, power_of_two)
    codes = quantize(x, scale, zero, grid)
    assert torch.equal(codes, codes.round())
    assert ((codes >= grid.low) & (codes <= grid.high)).all()
    assert torch.equal(codes.to(grid.dtype).float(), codes)
    assert dequantize(codes, scale, zero)[-1] == 0
    assert torch.equal(dequantize(codes, scale, zero), fake_quantize(x, scale, zero, grid))


@settings(max_examples=200, deadline=None)
@given(_grids, _numbers, st.booleans())
def test_larger_values_never_get_smaller_codes(grid, values, power_of_two):
    x, scale, zero = _fitted(values, grid, power_of_two)
    assert (quantize(x.sort()[0], scale, zero, grid).diff() >= 0).all()


@settings(max_examples=200, deadline=None)
@given(_grids, st.floats(-LARGEST, LARGEST, width=32), st.floats(-LARGEST, LARGEST, width=32), st.booleans())
def test_nothing_overflows_at_the_extremes(grid, first, second, power_of_two):
    low, high = sorted((first, second))
    scale, zero = grid.scales(torch.tensor(low), torch.tensor(high), power_of_two)
    assert scale.isfinite()
    assert scale > 0
    assert grid.low <= zero <= grid.high
    x = torch.tensor([low, high, 0.0, -LARGEST, LARGEST, 1e-45, -1e-45])
    back = fake_quantize(x, scale, zero, grid)
    assert back.isfinite().all()
    assert back[2] == 0


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("power_of_two", [False, True])
def test_the_widest_ranges_there_are_do_not_overflow(grid, power_of_two):
    ends = torch.tensor([-LARGEST, LARGEST])
    scale, zero = grid.scales(*ends, power_of_two)
    assert fake_quantize(ends, scale, zero, grid).isfinite().all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_empty_and_constant_ranges_have_a_scale(grid):
    zeros = torch.zeros(3)
    scale, zero = grid.scales(zeros, zeros)
    assert (scale == 1).all()
    assert (fake_quantize(zeros, scale, zero, grid) == 0).all()
    for value in (5.0, -5.0, 1e-45):
        constant = torch.tensor(value)
        scale, zero = grid.scales(constant, constant)
        assert scale > 0
        assert (fake_quantize(constant, scale, zero, grid) - constant).abs() <= HALF * scale


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_ranges_that_are_not_finite_are_refused(wrong):
    with pytest.raises(FloatingPointError, match="finite"):
        Grid(8).scales(torch.tensor([0.0, wrong]), torch.ones(2))


@settings(max_examples=100, deadline=None)
@given(_grids, _numbers)
def test_powers_of_two_are_the_next_above(grid, values):
    x, plain, _ = _fitted(values, grid, False)
    scale, _ = grid.scales(x.min(), x.max(), True)
    assert torch.frexp(scale)[0] == 0.5
    if x.any():
        assert plain <= scale * (1 + 1e-6)
        assert scale <= 2 * plain * (1 + 1e-6)


def test_absmax_has_its_zero_point_in_the_middle():
    low, high = torch.tensor(-1.0), torch.tensor(3.0)
    assert Grid(8).scales(low, high)[1] == 0
    assert Grid(8, signed=False).scales(low, high)[1] == 128
    # The full range covers -2 with a smaller step than the restricted one, which has no code below -127.
    assert Grid(8, full=True).scales(torch.tensor(-2.0), torch.tensor(0.0))[0] == 2 / 128
    assert Grid(8, full=False).scales(torch.tensor(-2.0), torch.tensor(0.0))[0] == pytest.approx(2 / 127)


def test_halves_are_rounded_to_even():
    one, none = torch.tensor(1.0), torch.tensor(0)
    assert quantize(torch.tensor([0.5, 1.5, 2.5, -0.5]), one, none, Grid(8)).tolist() == [0, 2, 2, 0]


def test_bits_that_are_no_grid_are_refused_with_those_that_are():
    for bits in (0, 1, 9, 32):
        with pytest.raises(InputError, match="2, 3, 4, 5, 6, 7, 8, 16"):
            Grid(bits)


@pytest.mark.parametrize("text", ["row", "block", "block:1", "block:0", "block:-4", "block:x", "channel:3", "tensor:"])
def test_granularities_that_do_not_exist_are_refused(text):
    if text == "tensor:":
        assert str(Granularity.parse(text)) == "tensor"
        return
    with pytest.raises(InputError, match="granularity"):
        Granularity.parse(text)


@pytest.mark.parametrize("text", ["tensor", "channel", "block:32"])
def test_a_granularity_is_written_as_it_is_read(text):
    assert str(Granularity.parse(text)) == text


def test_each_weight_gets_the_scale_of_its_block_and_the_last_block_may_be_short():
    blocks = Granularity.parse("block:4")
    assert blocks.blocks(10) == 3
    spread = blocks.spread(torch.tensor([[1.0, 2.0, 3.0]]), 10)
    assert spread.tolist() == [[1, 1, 1, 1, 2, 2, 2, 2, 3, 3]]


def test_the_gradient_passes_inside_the_range_and_stops_outside():
    grid, scale, zero = Grid(4), torch.tensor(0.5), torch.tensor(0)
    x = torch.tensor([-9.0, -3.6, -0.2, 0.0, 1.3, 3.7, 9.0], requires_grad=True)
    fake_quantize(x, scale, zero, grid).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("grid", [Grid(3), Grid(8), Grid(4, False, "affine")], ids=str)
def test_the_gradient_to_the_scale_is_that_of_learned_step_sizes(grid):
    """Inside, the slope of `(round(x/s)) s` with the rounding held still: what is left is round(x/s) - x/s."""
    zero = torch.tensor(0 if grid.signed else 3)
    x = torch.linspace(-8, 8, 101)
    scale = torch.tensor([0.37], requires_grad=True)
    fake_quantize(x, scale, zero, grid).sum().backward()
    s = 0.37
    codes = torch.round(x / s) + zero
    inside = (codes >= grid.low) & (codes <= grid.high)
    share = torch.where(inside, torch.round(x / s) - x / s, codes.clamp(grid.low, grid.high) - zero)
    expected = share.sum() / (len(x) * max(grid.high, -grid.low)) ** 0.5
    assert scale.grad.item() == pytest.approx(expected.item(), rel=1e-4)


def test_clipped_values_pull_the_scale_by_the_true_slope():
    """Outside the range the output is `high s`: finite differences see that slope exactly."""
    grid, zero, step = Grid(4), torch.tensor(0), 1e-3
    x = torch.full((16,), 100.0)
    scale = torch.tensor([0.5], requires_grad=True)
    fake_quantize(x, scale, zero, grid).sum().backward()
    moved = [float(fake_quantize(x, torch.tensor([0.5 + d]), zero, grid).sum()) for d in (-step, step)]
    slope = (moved[1] - moved[0]) / (2 * step)
    assert scale.grad.item() * (16 * grid.high) ** 0.5 == pytest.approx(slope, rel=1e-3)


def test_each_scale_gets_the_gradient_of_its_own_weights():
    x = torch.tensor([[0.3, 50.0], [0.3, 0.3]])
    scale = torch.full((2, 1), 1.0, requires_grad=True)
    fake_quantize(x, scale, torch.zeros(2, 1), Grid(4)).sum().backward()
    assert scale.grad[0] > 1
    assert scale.grad[1] < 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_halves_are_counted_in_32_bits(dtype: torch.dtype, learned: bool, bits: int):
    """Under autocast activations are halves, which count to 2,048 or 256: codes must not be rounded to those."""
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_(learned)
    grid = Grid(bits, signed=False, scheme="affine")
    scale, zero = grid.scales(x.detach().float().min(), x.detach().float().max())
    step = 1.01 * float(scale)
    scale.requires_grad_(learned)
    found = fake_quantize(x, scale, zero, grid)
    assert found.dtype == dtype
    expected = fake_quantize(x.detach().float(), scale.detach(), zero, grid).to(dtype)
    near = torch.finfo(dtype).eps if learned else 0.0  # one divides by the scale, the other multiplies
    torch.testing.assert_close(found.detach(), expected, rtol=near, atol=step * learned)
    if learned:
        found.float().sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == dtype
        assert scale.grad is not None
        assert scale.grad.dtype == torch.float32
        assert bool(scale.grad.isfinite())
