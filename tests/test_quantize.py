"""int8: close to the float network, weights on the promised grid, bounded memory, named layers."""

import pytest
import torch
from conftest import DIGITS, SmallNet
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from afina.errors import AfinaError, InputError, NothingToDo
from afina.graph import Network, capture
from afina.techniques.context import Context
from afina.techniques.quantize import QuantizeConfig, apply
from afina.techniques.quantize.observers import HistogramObserver
from afina.types import InputSpec, TaskSpec


def _digits(count=256):
    images = torch.tensor(load_digits().images[:count], dtype=torch.float32)[:, None] / 16
    return (images - 0.3) / 0.3


def _context(images=None):
    images = _digits() if images is None else images
    return Context(calibration=lambda: iter(images.split(64)))


def _signal_to_noise(network: Network, quantized: Network, images: torch.Tensor) -> float:
    with network.inference(), quantized.inference():
        exact, rounded = network(images), quantized(images)
    return float(10 * torch.log10(exact.square().sum() / (exact - rounded).square().sum()))


def test_outputs_stay_close_to_the_float_networks(small_network):
    quantized, _ = apply(small_network, QuantizeConfig(), _context())
    assert _signal_to_noise(small_network, quantized, _digits()) > 25


@pytest.mark.parametrize("bits", [7, 8])
def test_weights_are_stored_as_int8_within_the_bits_asked_for(small_network, bits):
    quantized, record = apply(small_network, QuantizeConfig(weight_bits=bits), _context())
    limit = 2 ** (bits - 1) - 1
    for name in record.touched:
        weight = quantized.module.get_buffer(f"{name}.weight")
        assert weight.dtype == torch.int8
        assert weight.abs().max() <= limit


def test_every_layer_is_reported_under_the_users_name(small_network):
    _, record = apply(small_network, QuantizeConfig(skip=("inner",)), _context())
    assert set(record.touched) == {"stem", "head"}
    assert set(record.skipped) == {"inner"}
    assert record.after["bytes"] < record.before["bytes"]


def test_the_input_network_is_left_as_it_was(small_network):
    before = {name: value.clone() for name, value in small_network.module.state_dict().items()}
    nodes = [node.name for node in small_network.graph.nodes]
    apply(small_network, QuantizeConfig(), _context())
    assert nodes == [node.name for node in small_network.graph.nodes]
    assert all(torch.equal(before[name], value) for name, value in small_network.module.state_dict().items())


def test_a_quantized_network_saves_and_loads_with_equal_outputs(small_network, tmp_path):
    quantized, _ = apply(small_network, QuantizeConfig(), _context())
    loaded = Network.load(quantized.save(tmp_path / "q.pt2"))
    with quantized.inference(), loaded.inference():
        assert torch.equal(quantized(_digits()), loaded(_digits()))


def test_the_same_images_give_the_same_result(small_network):
    first, _ = apply(small_network, QuantizeConfig(), _context())
    second, _ = apply(small_network, QuantizeConfig(), _context())
    assert torch.equal(first(_digits()), second(_digits()))


def test_shared_weights_get_scales_of_their_own():
    class Tied(SmallNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.norm(self.stem(x)))
            return self.head(torch.relu(self.inner(torch.relu(self.inner(x)))).mean(dim=(2, 3)))

    torch.manual_seed(0)
    network = capture(Tied(), InputSpec(8, 8, (0.3,), (0.3,), "L"), DIGITS)
    quantized, _ = apply(network, QuantizeConfig(), _context())
    assert _signal_to_noise(network, quantized, _digits()) > 20


def test_no_images_is_one_clear_error(small_network):
    with pytest.raises(InputError, match="calibrate"):
        apply(small_network, QuantizeConfig(), Context())
    with pytest.raises(InputError, match="no calibration images"):
        apply(small_network, QuantizeConfig(), Context(calibration=lambda: iter(())))


def test_activations_that_are_not_finite_are_one_clear_error(small_network):
    images = _digits().clone()
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(AfinaError, match="not finite"):
        apply(small_network, QuantizeConfig(), _context(images))


def test_a_network_without_weights_is_nothing_to_do():
    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :10]

    network = capture(Plain(), InputSpec(8, 8, (0.3,), (0.3,), "L"), DIGITS)
    with pytest.raises(NothingToDo):
        apply(network, QuantizeConfig(), _context())


def test_bits_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match="weight_bits"):
        QuantizeConfig(weight_bits=3)


def test_a_constant_activation_does_not_break_the_scale():
    observer = HistogramObserver(torch.uint8, 0, 255)
    observer(torch.zeros(4, 4))
    scale, zero = observer.calculate_qparams()
    assert scale.item() > 0
    assert zero.item() == 0


_values = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=50)


@settings(max_examples=60, deadline=None)
@given(st.lists(_values, min_size=1, max_size=4))
def test_the_chosen_range_holds_zero_exactly_and_never_loses_more_than_the_full_range(batches):
    observer = HistogramObserver(torch.uint8, 0, 255)
    for batch in batches:
        observer(torch.tensor(batch))
    scale, zero = (float(v) for v in observer.calculate_qparams())
    assert scale > 0
    assert 0 <= zero <= 255
    values = torch.tensor([v for batch in batches for v in batch], dtype=torch.float64)
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    plain = max((high - low) / 255, 1e-9)
    mine = _error(values, scale, zero)
    full = _error(values, plain, round(-low / plain))
    # The histogram knows a value to half a bin; the reach is at most twice the largest value.
    bin_error = (2 * 2 * max(-low, high) / 8192) ** 2 * len(values)
    assert mine <= full * 1.05 + bin_error + (2 * full * bin_error) ** 0.5 + 1e-9


def _error(values: torch.Tensor, scale: float, zero: float) -> float:
    codes = (torch.round(values / scale) + zero).clamp(0, 255)
    return float(((codes - zero) * scale - values).square().sum())


def test_memory_does_not_grow_with_the_number_of_images():
    observer = HistogramObserver(torch.uint8, 0, 255)
    for scale in (0.01, 1, 100, 1e4):
        observer(torch.randn(1000) * scale)
    assert observer.counts.numel() == 8192
    assert observer.counts.sum() == 4000


def test_regression_networks_are_quantized_too():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 1))
    network = capture(module, InputSpec(8, 8, (0.3,), (0.3,), "L"), TaskSpec("regression", ("count",)))
    quantized, _ = apply(network, QuantizeConfig(), _context())
    assert _signal_to_noise(network, quantized, _digits()) > 25
