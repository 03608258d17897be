"""Ranges from a stream: in bounded memory, exact extremes, outliers clipped by the methods that are there for it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afina.techniques.quantize import Grid, fake_quantize
from afina.techniques.quantize.ranges import METHODS, Histogram, range_of

ACTIVATIONS = [Grid(bits, signed=False, scheme="affine") for bits in (2, 4, 8)]
BYTE = ACTIVATIONS[-1]


def _seen(*batches: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def _error(x: torch.Tensor, ends: tuple[float, float], grid: Grid) -> float:
    scale, zero = grid.scales(torch.tensor(ends[0]), torch.tensor(ends[1]))
    return float((fake_quantize(x, scale, zero, grid) - x).double().square().sum())


def _heavy_tailed(count: int = 50_000) -> torch.Tensor:
    x = torch.randn(count, generator=torch.Generator().manual_seed(0))
    x[0], x[1] = 12.0, -10.0
    return x


_values = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50)
_streams = st.lists(_values, min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(_streams, st.sampled_from(METHODS), st.sampled_from(ACTIVATIONS))
def test_every_method_gives_a_finite_range_with_zero_in_it_and_no_wider_than_what_was_seen(batches, method, grid):
    low, high = range_of(_seen(*map(torch.tensor, batches)), grid, method)
    values = [value for batch in batches for value in batch]
    assert min(0.0, *values) <= low <= 0.0 <= high <= max(0.0, *values)


@settings(max_examples=60, deadline=None)
@given(_streams)
def test_minmax_is_exact(batches):
    values = [value for batch in batches for value in batch]
    assert range_of(_seen(*map(torch.tensor, batches)), BYTE, "minmax") == (min(0.0, *values), max(0.0, *values))


@settings(max_examples=60, deadline=None)
@given(_streams, st.sampled_from(ACTIVATIONS))
def test_least_squared_error_is_never_worse_than_minmax(batches, grid):
    seen = _seen(*map(torch.tensor, batches))
    values = torch.tensor([value for batch in batches for value in batch])
    found, plain = (_error(values, range_of(seen, grid, method), grid) for method in ("mse", "minmax"))
    # The histogram knows each value to a bin: 2 reach / 8192, and the reach is at most twice the largest value.
    blur = len(values) * (4 * float(values.abs().max()) / 8192) ** 2
    assert found**0.5 <= plain**0.5 + 2 * blur**0.5 + 1e-6


@pytest.mark.parametrize("method", ["mse", "percentile", "entropy"])
def test_two_outliers_in_fifty_thousand_values_do_not_set_the_range(method):
    low, high = range_of(_seen(_heavy_tailed()), ACTIVATIONS[1], method)
    assert -7.5 < low < -1
    assert 1 < high < 9


def test_the_percentile_keeps_all_but_a_share_at_each_end():
    x = _heavy_tailed(200_000)
    low, high = range_of(_seen(x), BYTE, "percentile")
    outside = float(((x < low) | (x > high)).float().mean())
    assert outside <= 1.5e-4
    assert -6 < low < -3
    assert 3 < high < 6


def test_clipping_outliers_loses_less_in_few_bits():
    x, grid = _heavy_tailed(), Grid(4, signed=False, scheme="affine")
    seen = _seen(x)
    errors = {method: _error(x, range_of(seen, grid, method), grid) for method in METHODS}
    assert errors["mse"] < 1.02 * min(errors.values())
    assert errors["mse"] < 0.5 * errors["minmax"]


def test_the_average_follows_the_batches_and_not_one_extreme_of_them():
    batches = [torch.tensor([-1.0, 1.0])] * 10 + [torch.tensor([-1.0, 100.0])]
    low, high = range_of(_seen(*batches), BYTE, "average")
    assert low == pytest.approx(-1)
    assert 1 < high < 20
    assert range_of(_seen(torch.tensor([-2.0, 3.0])), BYTE, "average") == (-2, 3)


def test_the_entropy_keeps_the_whole_of_a_uniform_distribution():
    x = torch.rand(50_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    low, high = range_of(_seen(x), BYTE, "entropy")
    assert low < -0.9
    assert high > 0.9


@pytest.mark.parametrize("method", METHODS)
def test_the_zeros_behind_a_relu_do_not_narrow_the_range(method):
    x = torch.randn(60_000, generator=torch.Generator().manual_seed(0)).relu()
    low, high = range_of(_seen(x), BYTE, method)
    assert low == 0
    assert high > 3


@pytest.mark.parametrize("method", METHODS)
def test_an_end_that_many_values_share_is_kept(method):
    """Black is a large part of many images, and the least value there is."""
    x = torch.cat([torch.full((4000,), -1.0), torch.linspace(-1, 2.3, 6000)])
    low, high = range_of(_seen(x), BYTE, method)
    assert low < -0.97
    assert high > 2.2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("x", [torch.zeros(9), torch.full((9,), 3.0), torch.full((9,), -3.0), torch.rand(99) * 0.1 + 5])
def test_values_that_never_vary_or_stay_far_from_zero_have_a_range(method, x):
    low, high = range_of(_seen(x), BYTE, method)
    assert low <= 0 <= high
    assert (low, high) == (0, 0) or max(-low, high) >= 0.3 * float(x.abs().max())


def test_nothing_but_one_value_counts_as_constant():
    assert _seen(torch.zeros(4)).constant
    assert _seen(torch.full((4,), 2.0), torch.full((2,), 2.0)).constant
    assert not _seen(torch.tensor([0.0, 1.0])).constant


def test_memory_does_not_grow_with_what_is_seen_and_nothing_is_lost_when_the_reach_grows():
    histogram = Histogram()
    for scale in (0.01, 1, 100, 1e4):
        histogram.add(torch.randn(1000, generator=torch.Generator().manual_seed(0)) * scale)
    assert histogram.counts.numel() == 8192
    assert histogram.counts.sum() == 4000
    held = [value for value in vars(histogram).values() if isinstance(value, torch.Tensor)]
    assert sum(t.numel() * t.element_size() for t in held) == 64 * 1024


@settings(max_examples=60, deadline=None)
@given(_streams)
def test_every_value_is_counted_in_the_bin_that_it_falls_into(batches):
    seen = _seen(*map(torch.tensor, batches))
    values = torch.tensor([value for batch in batches for value in batch], dtype=torch.float64)
    if seen.reach:
        centers, counts = seen.values()
        assert counts.sum() == len(values)
        spread = (2 * seen.reach / 8192) * 1.01
        assert ((centers[:, None] - values).abs().amin(0) <= spread).all()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_values_that_are_not_finite_are_refused(wrong):
    with pytest.raises(FloatingPointError, match="not finite"):
        _seen(torch.ones(3), torch.tensor([1.0, wrong]))


@pytest.mark.parametrize("value", [1e-45, 1e-38, 1e30, 9e35])
def test_extremes_of_float32_are_counted(value):
    seen = _seen(torch.tensor([0.0, value]), torch.tensor([-value]))
    for method in METHODS:
        low, high = range_of(seen, BYTE, method)
        scale, _ = BYTE.scales(torch.tensor(low), torch.tensor(high))
        assert scale.isfinite()
