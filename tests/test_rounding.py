"""Rounding weights by what their layer reads: never worse than to nearest, near the optimum where it can be counted."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afina.techniques.quantize import Granularity, Grid, quantize
from afina.techniques.quantize.rounding import round_weights
from afina.techniques.quantize.scales import best_scales

CHANNEL = Granularity("channel")


def _layer(stack=1, outputs=4, inputs=24, rows=200, seed=0):
    """Weights, and the second moment of inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(stack, outputs, inputs, generator=generator, dtype=torch.float64)
    mixed = torch.randn(stack, inputs, inputs, generator=generator, dtype=torch.float64) * 0.5
    x = torch.randn(stack, rows, inputs, generator=generator, dtype=torch.float64) @ (torch.eye(inputs) + mixed)
    return w, x.transpose(1, 2) @ x / rows


def _loss(values, w, h):
    return ((values - w) @ h * (values - w)).sum(2)


def _nearest(w, grid, granularity, power_of_two=False, importance=None):
    """Codes of the nearest values, with the scales that suit the weights (or the inputs' energies) best."""
    importance = torch.ones(len(w), w.shape[2], dtype=w.dtype) if importance is None else importance
    scale, zero = best_scales(w, importance, grid, granularity, power_of_two)
    s, z = _spread(scale, zero, granularity, w.shape[2])
    return (quantize(w, s, z, grid) - z) * s


def _spread(scale, zero, granularity, inputs):
    parts = [torch.stack([granularity.spread(part, inputs) for part in value]).double() for value in (scale, zero)]
    return parts[0], parts[1]


def _is_on_grid(found, grid, granularity):
    s, z = _spread(found.scale, found.zero, granularity, found.values.shape[2])
    codes = found.values / s + z
    whole = torch.allclose(codes, codes.round(), atol=1e-5)
    return whole and bool((codes.round() >= grid.low).all() and (codes.round() <= grid.high).all())


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from((2, 3, 4, 8)),
    st.sampled_from(("tensor", "channel", "block:5", "block:8")),
    st.sampled_from(("absmax", "affine")),
    st.booleans(),
    st.integers(1, 3),
    st.integers(0, 1000),
)
def test_the_outputs_never_lose_more_than_by_rounding_to_nearest(bits, text, scheme, power_of_two, stack, seed):
    grid, granularity = Grid(bits, scheme=scheme), Granularity.parse(text)
    w, h = _layer(stack=stack, inputs=18, seed=seed)
    found = round_weights(w, h, grid, granularity, power_of_two)
    assert _is_on_grid(found, grid, granularity)
    if power_of_two:
        assert (torch.frexp(found.scale)[0] == 0.5).all()
    if text == "tensor":
        assert found.scale.unique().numel() == 1
    # A ten-thousandth of the inputs' energy is added to each, so that inputs that never vary do no harm.
    ridge = 1e-4 * h.diagonal(dim1=1, dim2=2).mean(1)
    damped = h + torch.diag_embed(ridge[:, None].expand(-1, h.shape[1]))
    plain = _nearest(w, grid, granularity, power_of_two, damped.diagonal(dim1=1, dim2=2))
    mine, theirs = _loss(found.values, w, damped), _loss(plain, w, damped)
    if text == "tensor":  # rows that share a scale are weighed by their energies
        energy = _loss(0 * w, w, damped)
        mine, theirs = (mine / energy).sum(), (theirs / energy).sum()
    assert (mine <= theirs * (1 + 1e-6) + 1e-12).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("text", ["tensor", "channel", "block:8"])
def test_few_bits_lose_much_less_than_by_rounding_to_nearest(bits, text):
    grid, granularity = Grid(bits), Granularity.parse(text)
    w, h = _layer(outputs=16, inputs=64, rows=400)
    found = round_weights(w, h, grid, granularity)
    assert _loss(found.values, w, h).sum() < 0.6 * _loss(_nearest(w, grid, granularity), w, h).sum()


@pytest.mark.parametrize("bits", [2, 3])
def test_tiny_layers_come_near_the_best_of_all_roundings(bits):
    """Inputs here depend on each other strongly: to nearest, the outputs lose twice as much as they must."""
    grid, ratios = Grid(bits), []
    codes = torch.tensor(list(product(range(grid.low, grid.high + 1), repeat=6)), dtype=torch.float64)
    for seed in range(12):
        w, h = _layer(outputs=3, inputs=6, seed=seed)
        scale, zero = best_scales(w, torch.ones(1, 6, dtype=torch.float64), grid, CHANNEL)
        found = round_weights(w, h, grid, CHANNEL, scales=(scale, zero))
        assert torch.equal(found.scale, scale.double())
        best = torch.stack([_loss((codes * scale[0, row])[None], w[:, row : row + 1], h).min() for row in range(3)])
        ratios.append(_loss(found.values, w, h)[0] / best)
    ratio = torch.stack(ratios)
    assert ratio.min() >= 1 - 1e-9
    assert ratio.mean() < 1.5
    assert (ratio < 1 + 1e-6).float().mean() > 0.5


def test_inputs_that_do_not_depend_on_each_other_are_rounded_to_nearest():
    w, _ = _layer(inputs=12)
    h = torch.diag_embed(torch.rand(1, 12, dtype=torch.float64) + 0.5)
    grid = Grid(8)
    found = round_weights(w, h, grid, CHANNEL)
    s, z = _spread(found.scale, found.zero, CHANNEL, 12)
    assert torch.allclose(found.values, (quantize(w, s, z, grid) - z) * s)


@pytest.mark.parametrize("inputs", [1, 3, 31, 33])
def test_the_last_block_may_be_short_or_the_only_one(inputs):
    grid, granularity = Grid(4), Granularity.parse("block:16")
    w, h = _layer(inputs=inputs, rows=300)
    found = round_weights(w, h, grid, granularity)
    assert found.scale.shape == (1, 4, granularity.blocks(inputs))
    assert _is_on_grid(found, grid, granularity)
    assert (_loss(found.values, w, h) <= _loss(_nearest(w, grid, granularity), w, h) * 1.01 + 1e-12).all()


def test_one_scale_for_a_tensor_is_one_for_all_groups():
    w, h = _layer(stack=3, outputs=2, inputs=9)
    found = round_weights(w, h, Grid(4), Granularity("tensor"))
    assert found.scale.unique().numel() == 1
    assert found.zero.unique().numel() == 1


def test_groups_are_rounded_as_layers_of_their_own():
    w, h = _layer(stack=3, outputs=4, inputs=9)
    together = round_weights(w, h, Grid(4), CHANNEL)
    for group in range(3):
        alone = round_weights(w[group : group + 1], h[group : group + 1], Grid(4), CHANNEL)
        assert torch.allclose(alone.values[0], together.values[group])


@pytest.mark.parametrize("text", ["channel", "block:4"])
def test_many_outputs_are_rounded_as_each_would_be_alone(text):
    w, h = _layer(outputs=700, inputs=9)
    together = round_weights(w, h, Grid(4), Granularity.parse(text))
    for output in (0, 255, 256, 699):
        alone = round_weights(w[:, output : output + 1], h, Grid(4), Granularity.parse(text))
        for name in ("values", "scale", "zero", "error"):
            assert torch.allclose(getattr(alone, name)[:, 0], getattr(together, name)[:, output])


@pytest.mark.parametrize("bits", [2, 8])
def test_inputs_that_never_vary_and_weights_of_zero_do_no_harm(bits):
    w, h = _layer(inputs=10)
    h[:, 3], h[:, :, 3] = 0, 0
    w[:, 1] = 0
    found = round_weights(w, h, Grid(bits), CHANNEL)
    assert found.values.isfinite().all()
    assert (found.values[:, 1] == 0).all()
    nothing = round_weights(w, torch.zeros_like(h), Grid(bits), CHANNEL)
    assert nothing.values.isfinite().all()
    assert (nothing.values - w).abs().max() <= nothing.scale.max() * (0.51 if bits == 8 else 4)


def test_fewer_rows_than_inputs_are_enough():
    w, h = _layer(inputs=40, rows=7)
    found = round_weights(w, h, Grid(4), CHANNEL)
    assert found.values.isfinite().all()
    assert _loss(found.values, w, h).sum() < 0.3 * _loss(_nearest(w, Grid(4), CHANNEL), w, h).sum()


def test_wide_layers_are_rounded_in_panels_without_a_seam():
    w, h = _layer(outputs=2, inputs=300, rows=900)
    found = round_weights(w, h, Grid(3), CHANNEL)
    plain = _nearest(w, Grid(3), CHANNEL)
    assert _loss(found.values, w, h).sum() < 0.6 * _loss(plain, w, h).sum()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from((2, 4, 8)), st.sampled_from(("tensor", "channel", "block:7")), st.integers(0, 1000))
def test_scales_of_least_error_lose_no_more_than_the_whole_range(bits, text, seed):
    grid, granularity = Grid(bits), Granularity.parse(text)
    w, _ = _layer(inputs=18, seed=seed)
    low = w.amin() if text == "tensor" else None
    best = (_nearest(w, grid, granularity) - w).square().sum()
    limit = w.abs().amax(2, keepdim=True) if low is None else w.abs().amax()
    scale = limit / max(grid.high, 1)
    whole = (quantize(w, scale, torch.zeros(1), grid) * scale - w).square().sum()
    assert best <= whole * (1 + 1e-4)


@pytest.mark.parametrize("bits", [3, 4, 7])
@pytest.mark.parametrize("tails", [2.5, 30.0])
def test_scales_have_the_least_error_of_all_that_clip_up_to_seven_tenths(bits, tails):
    """The search stops early where nothing is gained any more."""
    torch.manual_seed(0)
    weights = torch.distributions.StudentT(tails).sample((1, 24, 300))
    grid, channel = Grid(bits, signed=True, scheme="absmax"), Granularity("channel")

    def errors(scale):
        return ((weights / scale).round().clamp(grid.low, grid.high) * scale - weights).square().sum(2, keepdim=True)

    full = weights.abs().amax(2, keepdim=True) / grid.high
    least = torch.stack([errors(full * share) for share in torch.linspace(0.3, 1.0, 36)]).amin(0)
    found, zero = best_scales(weights, torch.ones(1, 300), grid, channel)
    assert not zero.any()
    assert torch.allclose(errors(found), least, rtol=1e-4)
