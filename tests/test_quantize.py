"""Quantization of a network: precisions as asked, noise as promised, every kind of layer, clear errors."""

import gc
import itertools
import json
import weakref

import pytest
import small_networks
import torch
from conftest import DIGITS, GREY, SmallNet, digits, only
from torch import nn
from torch.nn import functional as F

from afina.data import open_data
from afina.errors import AfinaError, InputError, NothingToDo
from afina.graph import Network, capture
from afina.graph.cost import layer_rows
from afina.graph.statistics import watch
from afina.graph.stored import attribute
from afina.runtimes import IntegerPolicy
from afina.techniques.context import Context
from afina.techniques.quantize import FLOAT, Precision, QuantizeConfig, Source, apply
from afina.techniques.quantize.apply import finish, prepare
from afina.techniques.quantize.config import CALIBRATIONS
from afina.techniques.quantize.contrast import with_contrast
from afina.techniques.quantize.equalize import equalize
from afina.techniques.quantize.prepared import Prepared
from afina.techniques.quantize.technique import TECHNIQUE
from afina.techniques.quantize.weights import round_layers
from afina.training import FitConfig, fit
from afina.types import TaskSpec

# What is fast, for tests of what does not depend on how well ranges and codes are chosen.
QUICK = {"calibration": "minmax", "rounding": "nearest", "equalize": "none"}
FEWER = ("int8", "int6", "int4", "int3", "int2")


def _context(images: torch.Tensor | None = None, batch: int = 64) -> Context:
    images = digits(0, 128)[0] if images is None else images
    return Context(calibration=lambda: iter(images.split(batch)), images=len(images))


def _outputs(network: Network, images: torch.Tensor) -> torch.Tensor:
    with network.inference():
        return only(network(images))


def _snr(network: Network, quantized: Network, images: torch.Tensor | None = None) -> float:
    """Signal-to-noise ratio of the outputs, in dB, on digits that nothing was calibrated on."""
    images = digits(1438)[0] if images is None else images
    exact, found = _outputs(network, images), _outputs(quantized, images)
    return float(10 * torch.log10(exact.square().sum() / (exact - found).square().sum()))


def _accuracy(network: Network) -> float:
    images, targets = digits(1438)
    return float((_outputs(network, images).argmax(1) == targets).float().mean())


def _means(network: Network, images: torch.Tensor, kind: str) -> list[torch.Tensor]:
    """Mean outputs by channel `[C]` of the convolutions, in the order of the graph."""
    found: list[torch.Tensor] = []
    watch(network, images, lambda n: kind in str(n.target), lambda _, value: found.append(value.mean((0, 2, 3))))
    return found


def _calls(network: Network, name: str) -> list[torch.fx.Node]:
    return [node for node in network.graph.nodes if name in str(node.target)]


# Precisions


def test_int8_loses_nothing_that_can_be_seen(digits_network):
    quantized, _ = apply(digits_network, QuantizeConfig(), _context())
    assert _snr(digits_network, quantized) > 30
    assert _accuracy(quantized) >= _accuracy(digits_network) - 0.006


def test_four_bit_weights_without_training_lose_next_to_nothing(digits_network):
    quantized, _ = apply(digits_network, QuantizeConfig(weights="int4"), _context())
    assert _snr(digits_network, quantized) > 18
    assert _accuracy(quantized) >= _accuracy(digits_network) - 0.01


def test_rounding_by_the_outputs_beats_rounding_to_nearest(digits_network):
    found = {}
    for rounding in ("nearest", "gram"):
        config = QuantizeConfig(weights="int3", activations="none", rounding=rounding)
        found[rounding] = _snr(digits_network, apply(digits_network, config, _context())[0])
    assert found["gram"] > found["nearest"] + 3


def test_rounding_to_nearest_leaves_the_mean_output_of_each_layer_where_it_was(digits_network):
    images = digits(0, 32)[0]
    config = QuantizeConfig(weights="int3", activations="none", rounding="nearest", equalize="none")
    quantized, _ = apply(digits_network, config, _context(images))
    source = Source.of(digits_network)
    plain = Prepared(source, config)
    round_layers(plain, Context())
    # The first layer, since what others get is what the layers before them have left of it.
    exact, moved, without = (_means(n, images, "conv2d")[0] for n in (source.network, quantized, plain.network))
    assert (moved - exact).abs().max() < 1e-4
    assert (without - exact).abs().max() > 1e-2


@pytest.mark.parametrize("which", ["weights", "activations"])
def test_more_bits_make_less_noise(digits_network, which):
    noise = []
    for name in FEWER:
        given = {"weights": "int8", "activations": "int8", which: name}
        noise.append(_snr(digits_network, apply(digits_network, QuantizeConfig(**given, **QUICK), _context())[0]))
    assert all(finer > coarser + 1 for finer, coarser in itertools.pairwise(noise)), noise


def test_sixteen_bits_are_as_good_as_float(digits_network):
    config, images = QuantizeConfig(weights="int16", activations="int16", **QUICK), digits(0, 128)[0]
    assert _snr(digits_network, apply(digits_network, config, _context())[0], images) > 70


@pytest.mark.parametrize(("weights", "dtype", "least"), [("fp16", torch.float16, 60), ("bf16", torch.bfloat16, 40)])
def test_sixteen_bit_floats_are_stored_so_and_computed_in_float(digits_network, weights, dtype, least):
    quantized, record = apply(digits_network, QuantizeConfig(weights=weights, activations="none"), _context())
    assert quantized.module.get_buffer("inner.weight").dtype == dtype
    assert _snr(digits_network, quantized) > least
    assert {row.precision for row in layer_rows(quantized)} == {weights}
    assert record.after["bytes"] < 0.52 * record.before["bytes"] + 400
    assert not _calls(quantized, "quantize_per")


@pytest.mark.parametrize("scheme", ["absmax", "affine"])
@pytest.mark.parametrize(
    ("bits", "full"), [(2, True), (2, False), (3, True), (4, False), (5, True), (8, False), (16, True)]
)
def test_weights_are_codes_of_the_bits_asked_for(digits_network, bits, full, scheme):
    config = QuantizeConfig(weights=f"int{bits}", activations="none", scheme=scheme, full_range=full, **QUICK)
    quantized, record = apply(digits_network, config, Context())
    lowest = -(2 ** (bits - 1)) + (scheme == "absmax" and not full)
    assert record.touched == ("stem", "down", "inner", "head")
    for name in record.touched:
        codes = quantized.module.get_buffer(f"{name}.weight")
        assert codes.dtype == (torch.int16 if bits == 16 else torch.int8)
        assert codes.min() >= lowest
        assert codes.max() <= 2 ** (bits - 1) - 1
        zeros = quantized.module.get_buffer(f"{name}.weight_zero_point")
        assert scheme == "affine" or not zeros.any()


def test_int8_keeps_to_seven_bits_where_the_processor_saturates(digits_network):
    quantized, record = apply(
        digits_network, QuantizeConfig(policy=IntegerPolicy(int8_weight_bits=7), **QUICK), _context()
    )
    assert all(quantized.module.get_buffer(f"{name}.weight").abs().max() <= 63 for name in record.touched)


@pytest.mark.parametrize("granularity", ["tensor", "channel", "block:9", "block:40"])
def test_scales_are_shared_as_asked(digits_network, granularity):
    config = QuantizeConfig(weights="int4", activations="none", granularity=granularity, **QUICK)
    quantized, _ = apply(digits_network, config, _context())
    scale, codes = (quantized.module.get_buffer(f"inner.weight{end}") for end in ("_scale", ""))
    if granularity == "tensor":
        assert scale.unique().numel() == 1
    elif granularity == "channel":
        assert scale.unique().numel() == len(scale) == 32
    else:
        block = int(granularity.removeprefix("block:"))
        assert scale.numel() == 32 * -(-288 // block)
        assert codes.shape == (scale.numel(), block)
    assert _snr(digits_network, quantized) > 10


def test_finer_granularity_makes_less_error_in_the_weights(digits_network):
    found = []
    for granularity in ("block:9", "channel", "tensor"):
        config = QuantizeConfig(weights="int3", activations="none", granularity=granularity, **QUICK)
        prepared, _ = prepare(Source.of(digits_network), config, _context())
        weight = prepared.network.module.get_parameter("inner.weight").detach()
        found.append(float((prepared.weights["inner.weight"](weight) - weight).detach().square().sum()))
    assert found[0] < 0.8 * found[1] < 0.8 * found[2]


@pytest.mark.parametrize("rounding", ["nearest", "gram"])
def test_scales_are_powers_of_two_where_asked(digits_network, rounding):
    config = QuantizeConfig(weights="int4", power_of_two=True, rounding=rounding, calibration="mse", equalize="none")
    quantized, record = apply(digits_network, config, _context())
    scales = [quantized.module.get_buffer(f"{name}.weight_scale") for name in record.touched]
    scales += [torch.tensor(node.args[1]) for node in _calls(quantized, "dequantize_per_tensor")]
    assert len(scales) > len(record.touched)
    assert all((torch.frexp(scale)[0] == 0.5).all() for scale in scales)
    assert _snr(digits_network, quantized) > 8


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_every_way_to_find_ranges_works_and_is_named(digits_network, calibration):
    config = QuantizeConfig(calibration=calibration, rounding="nearest", equalize="none")
    quantized, record = apply(digits_network, config, _context())
    assert _snr(digits_network, quantized) > 24
    told = next(note for note in record.notes if note.startswith("Ranges of activations"))
    assert calibration == "auto" or calibration in told


def test_auto_is_about_as_good_as_the_best_way_to_find_ranges(digits_network):
    found = {}
    for calibration in CALIBRATIONS:
        config = QuantizeConfig(activations="int4", calibration=calibration, rounding="nearest", equalize="none")
        found[calibration] = _snr(digits_network, apply(digits_network, config, _context())[0])
    auto = found.pop("auto")
    assert auto > max(found.values()) - 1.5, (auto, found)


def test_each_layer_can_have_a_precision_of_its_own(digits_network):
    layers = (("stem", FLOAT), ("down", Precision("int4", "int8")), ("head", Precision("bf16", "none")))
    quantized, record = apply(digits_network, QuantizeConfig(layers=layers, **QUICK), _context())
    rows = {row.name: row.precision for row in layer_rows(quantized)}
    assert rows == {"stem": "fp32", "down": "int4", "inner": "int8", "head": "bf16"}
    assert record.skipped == {"stem": "asked to stay in float"}
    assert set(record.touched) == {"down", "inner", "head"}
    assert record.step.config["layers"]["down"] == "int4 x int8"


# The record


def test_the_record_has_precision_and_noise_of_every_layer(digits_network):
    _, record = apply(digits_network, QuantizeConfig(weights="int4", **QUICK), _context())
    assert set(record.layers) == {"stem", "down", "inner", "head"}
    for row in record.layers.values():
        assert row["precision"] == "int4 x int8"
        assert 5 < row["snr_db"] < 60


def test_the_bytes_of_the_record_are_those_of_codes_scales_and_biases(digits_network):
    _, record = apply(digits_network, QuantizeConfig(weights="int2", **QUICK), _context())
    weights, outputs = 144 + 4608 + 9216 + 320, 16 + 32 + 32 + 10
    assert record.after["bytes"] == weights / 4 + 4 * outputs + 4 * outputs
    assert record.after["macs"] == record.before["macs"]


def test_layers_whose_weights_reach_far_are_pointed_out(digits_network):
    network = digits_network.copy()
    with torch.no_grad():
        network.module.get_parameter("inner.weight")[3, 4, 1, 1] = 9.0
    _, record = apply(network, QuantizeConfig(**QUICK), _context())
    told = record.layers["inner"]
    assert told["weights_reach"] > 20
    # With one range for all weights all have a step some 30 times as long; with ranges of their own, one channel of 32.
    assert told["weights_lost_db"] == pytest.approx(29, abs=3)
    assert told["weights_left_db"] == pytest.approx(14, abs=3)
    assert told["weights_remedy"] == "scale per channel"
    assert not {"weights_reach", "weights_remedy"} & set(record.layers["down"])
    _, plain = apply(network, QuantizeConfig(**QUICK, granularity="tensor"), _context())
    assert plain.layers["inner"]["weights_left_db"] > told["weights_left_db"] + 6


def test_after_training_outliers_are_those_of_the_trained_weights(digits_network):
    source = Source.of(digits_network)
    prepared, _ = prepare(source, QuantizeConfig(**QUICK), _context())
    with torch.no_grad():
        prepared.network.module.get_parameter("inner.weight")[3, 4, 1, 1] = 9.0
    prepared.adopt(prepared.network)
    _, record = finish(digits_network, prepared, _context(), (), 0.0)
    assert record.layers["inner"]["weights_reach"] > 20


def test_weights_that_are_zero_but_for_outliers_are_told_with_numbers_that_mean_something(digits_network):
    network = digits_network.copy()
    with torch.no_grad():
        weight = network.module.get_parameter("inner.weight")
        weight[:] = 0.0
        weight[3, 4, 1, 1] = 9.0
    _, record = apply(network, QuantizeConfig(**QUICK), _context())
    assert record.layers["inner"]["weights_reach"] > 20
    assert -60 <= record.layers["inner"]["weights_left_db"] <= record.layers["inner"]["weights_lost_db"] <= 60


def test_inputs_that_reach_far_are_told_with_what_they_cost_and_the_remedy(digits_network):
    images = digits(0, 64)[0].clone()
    images[::8, 0, 0, 0] = 60.0
    context = Context(calibration=lambda: iter([images]), images=64)
    _, record = apply(digits_network, QuantizeConfig(**{**QUICK, "calibration": "mse"}, activations="int4"), context)
    told = record.layers["stem"]
    assert told["inputs_reach"] > 15
    assert told["inputs_lost_db"] > 10
    assert told["inputs_left_db"] < told["inputs_lost_db"]
    (note,) = [note for note in record.notes if "outliers" in note]
    assert "stem" in note
    assert told["inputs_remedy"] in note


# What is left as it was, what is the same again


def test_the_input_network_is_left_as_it_was(digits_network):
    before = {name: value.clone() for name, value in digits_network.module.state_dict().items()}
    nodes = [node.name for node in digits_network.graph.nodes]
    apply(digits_network, QuantizeConfig(), _context(digits(0, 32)[0]))
    assert nodes == [node.name for node in digits_network.graph.nodes]
    assert all(torch.equal(before[name], value) for name, value in digits_network.module.state_dict().items())


@pytest.mark.parametrize("config", [{}, {"weights": "int4"}, {"equalize": "none"}], ids=str)
def test_what_all_precisions_start_from_is_shared_and_never_written(digits_network, config):
    source = Source.of(digits_network)
    before = [tensor.clone() for tensor in source.network.tensors]
    prepared = Prepared(source, QuantizeConfig(**config))
    for name in prepared.weights:
        assert attribute(prepared.network.module, name) is attribute(source.network.module, name)
    context = _context(digits(0, 32)[0])
    moved, _ = equalize(source, QuantizeConfig(**config), context)
    finish(digits_network, prepare(moved, QuantizeConfig(**config), context)[0], context, (), 0.0)
    assert all(torch.equal(was, now) for was, now in zip(before, source.network.tensors, strict=True))


PRECISIONS = {
    "int8": {},
    "int4 in blocks with a tail": {"weights": "int4", "granularity": "block:20"},
    "int2 alone": {"weights": "int2", "activations": "none"},
    "int16": {"weights": "int16", "activations": "int16"},
    "affine": {"weights": "int4", "scheme": "affine", "activations": "int4"},
    "fp16": {"weights": "fp16", "activations": "none"},
    "bf16": {"weights": "bf16", "activations": "none"},
}


@pytest.mark.parametrize("case", PRECISIONS)
def test_a_quantized_network_saves_and_loads_with_equal_outputs_for_any_batch(digits_network, case, tmp_path):
    quantized, _ = apply(digits_network, QuantizeConfig(**PRECISIONS[case], **QUICK), _context())
    loaded = Network.load(quantized.save(tmp_path / "q.pt2"))
    assert (loaded.input, loaded.task) == (digits_network.input, digits_network.task)
    for batch in (1, 3, 40):
        images = digits(0, batch)[0]
        assert torch.equal(_outputs(quantized, images), _outputs(loaded, images))


def test_the_same_images_give_the_same_result(digits_network):
    config = QuantizeConfig(weights="int3", calibration="mse")
    first, second = (apply(digits_network, config, _context())[0] for _ in range(2))
    assert torch.equal(_outputs(first, digits()[0]), _outputs(second, digits()[0]))


def test_what_is_simulated_is_what_is_written(digits_network):
    prepared, notes = prepare(Source.of(digits_network), QuantizeConfig(weights="int4", **QUICK), _context())
    images = digits(1438)[0]
    simulated = _outputs(prepared.network, images)
    written, _ = finish(digits_network, prepared, _context(), notes, 0.0)
    # Biases are put on the steps of their products when the graph is written: far below a step of the outputs.
    assert _snr(prepared.network, written) > 35
    assert (simulated.argmax(1) == _outputs(written, images).argmax(1)).float().mean() > 0.995


def test_one_calibration_serves_many_precisions(digits_network):
    source, passes = Source.of(digits_network), []

    def calibration():
        passes.append(1)
        return iter(digits(0, 64)[0].split(32))

    context = Context(calibration=calibration, images=64)
    Prepared(source, QuantizeConfig()).watch(context)
    Prepared(source, QuantizeConfig(weights="int4", activations="int4")).watch(context)
    assert len(passes) == 1


# Placement


def test_an_activation_is_quantized_once_and_the_output_stays_float(digits_network):
    quantized, _ = apply(digits_network, QuantizeConfig(**QUICK), _context())
    codes = _calls(quantized, "quantized_decomposed.quantize_per_tensor")
    sources = [node.args[0].name for node in codes]
    assert len(sources) == len(set(sources))
    # The image, three activations, the inner convolution's own output, the mean.
    assert len(sources) == 6
    output = next(node for node in quantized.graph.nodes if node.op == "output")
    assert "linear" in str(output.all_input_nodes[0].target)


def test_biases_are_whole_steps_of_their_products(digits_network):
    quantized, _ = apply(digits_network, QuantizeConfig(**QUICK), _context())
    for node in _calls(quantized, "aten.conv2d"):
        step = quantized.module.get_buffer(str(node.args[1].args[1].target)).double() * node.args[0].args[1]
        steps = quantized.module.get_parameter(str(node.args[2].target)).double() / step
        assert torch.allclose(steps, steps.round(), atol=2e-3)


def test_sums_stay_in_float_where_asked(digits_network):
    quantized, _ = apply(digits_network, QuantizeConfig(policy=IntegerPolicy(additions="float"), **QUICK), _context())
    assert len(_calls(quantized, "quantized_decomposed.quantize_per_tensor")) == 5
    (added,) = _calls(quantized, "aten.add")
    assert "mean" in str(next(iter(next(iter(added.users)).users)).target)


# Layers of every kind

LAYERS = ("conv", "linear")
NETWORKS = (
    "depthwise", "grouped", "other_ranks", "transposed", "squeeze_excitation", "flattened", "shuffled_channels",
    "padded_shortcut", "split_and_permuted", "other_norms", "shuffled_pixels", "vision_transformer", "encoder_layer",
    "windows", "chain", "products", "residual", "norm_first",
)  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_of_every_kind_are_quantized_with_little_noise_or_named(name):
    torch.manual_seed(0)
    network = small_networks.known(getattr(small_networks, name))
    images = torch.randn(48, *network.input.shape, generator=torch.Generator().manual_seed(1))
    config = QuantizeConfig(calibration="minmax", equalize="none")
    quantized, record = apply(network, config, _context(images, 16))
    # Norms and attention divide by what they see: noise counts for more there.
    assert _snr(network, quantized, images) > 18
    assert _outputs(quantized, images[:1]).shape == (1, 3)
    # What multiplies by a bare parameter (einsum, matmul) is no layer that could be named.
    layers = {row.name for row in layer_rows(network) if row.macs and row.parameters and row.kind.startswith(LAYERS)}
    assert layers <= {name.removesuffix(".in_proj_weight") for name in (*record.touched, *record.skipped)}


def test_transposed_convolutions_stay_in_float_and_say_why():
    network = small_networks.network_of(small_networks.transposed())
    images = torch.randn(8, *network.input.shape)
    _, record = apply(network, QuantizeConfig(**QUICK), _context(images))
    assert set(record.skipped) == {"up", "grouped"}
    assert all("transposed" in why for why in record.skipped.values())


class _Tied(nn.Module):
    """One convolution that is used twice, on inputs of other sizes."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1, bias=bias)
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.inner(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.inner(4 * x)).mean(dim=(2, 3)))


class _OddBiases(nn.Module):
    """One bias that two convolutions add, and one that is written into before it is used, also by a tied layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.inner.bias = self.stem.bias
        self.mixed, self.head = nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.inner(torch.relu(self.stem(x)))).mean(dim=(2, 3))
        bias = self.mixed.bias.clone()
        bias[4:8].zero_()
        return self.head(F.linear(torch.relu(F.linear(x, self.mixed.weight, bias)), self.mixed.weight, bias))


@pytest.mark.parametrize(("rounding", "least"), [("nearest", 38), ("gram", 50)])
def test_biases_that_layers_share_or_compute_do_no_harm(rounding, least):
    torch.manual_seed(0)
    network = capture(_OddBiases(), GREY, DIGITS)
    quantized, record = apply(network, QuantizeConfig(weights="int4", rounding=rounding), _context())
    assert set(record.touched) >= {"stem", "inner", "mixed", "head"}
    assert not record.skipped
    assert _snr(network, quantized) > least


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("weights", "least"), [("int8", 25), ("int4", 12)])
def test_weights_that_layers_share_get_scales_of_their_own(bias, weights, least):
    torch.manual_seed(0)
    network = capture(_Tied(bias), GREY, DIGITS)
    quantized, record = apply(network, QuantizeConfig(weights=weights), _context())
    assert len(record.touched) == 4
    assert _snr(network, quantized) > least


class _Transform(nn.Module):
    """A fixed transform, kept as a buffer, that two linear layers multiply by, as CSATv2's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("waves", torch.cos(torch.outer(torch.arange(8.0), torch.arange(8.0) + 0.5) * torch.pi / 8))
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        across = F.linear(x, self.waves)
        return self.head(F.linear(across.transpose(2, 3), self.waves).flatten(1))


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weights_that_are_buffers_are_quantized_as_parameters_are(weights):
    torch.manual_seed(0)
    network = capture(_Transform(), GREY, DIGITS)
    quantized, record = apply(network, QuantizeConfig(weights=weights), _context())
    assert len(record.touched) == 3
    assert _snr(network, quantized) > 15


@pytest.mark.parametrize("wide", [9000])
@pytest.mark.parametrize("granularity", ["channel", "block:64", "block:100"])
def test_very_wide_layers_are_taken_in_blocks(wide, granularity):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, wide // 36, 3), nn.ReLU(), nn.Flatten(), nn.Linear(wide, 10))
    network = capture(module, GREY, DIGITS)
    found = []
    for rounding in ("nearest", "gram"):
        config = QuantizeConfig(
            weights="int3", activations="none", granularity=granularity, rounding=rounding, equalize="none"
        )
        found.append(_snr(network, apply(network, config, _context(batch=32))[0]))
    # Blocks of 100 cross the blocks of 1,024 inputs that the layer is taken in: its codes stay the nearest.
    assert found[1] > found[0] + (-1 if granularity == "block:100" else 2)


def test_networks_that_give_numbers_are_quantized_too():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 1))
    network = capture(module, GREY, TaskSpec("regression", ("count",)))
    assert _snr(network, apply(network, QuantizeConfig(), _context())[0]) > 25


@pytest.mark.parametrize(("count", "batch"), [(1, 64), (3, 64), (5, 2)])
def test_few_images_are_enough_to_run(digits_network, count, batch):
    quantized, _ = apply(digits_network, QuantizeConfig(), _context(digits(0, count)[0], batch))
    assert _outputs(quantized, digits(0, 7)[0]).isfinite().all()


# Constant and broken activations


class _Dead(SmallNet):
    """Its inner activations are zero, and a gate never varies."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        dead = torch.relu(self.inner(x) - 1e4)
        return self.head((F.hardsigmoid(dead + 9) * x + self.inner(dead)).mean(dim=(2, 3)))


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_activations_that_never_vary_do_no_harm_and_are_named(calibration):
    torch.manual_seed(0)
    network = capture(_Dead(), GREY, DIGITS)
    quantized, record = apply(network, QuantizeConfig(calibration=calibration, equalize="none"), _context())
    assert _snr(network, quantized) > 20
    assert any("never varied" in note for note in record.notes)


def test_what_is_quantized_already_is_told_so(digits_network):
    quantized, _ = apply(digits_network, QuantizeConfig(**QUICK), _context())
    with pytest.raises(NothingToDo, match=r"(?s)quantized already.*Start from the float network"):
        apply(quantized, QuantizeConfig(**QUICK), _context())


@pytest.mark.parametrize("image", [torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.3), digits(3, 4)[0]])
def test_images_that_are_all_the_same_are_refused(digits_network, image):
    with pytest.raises(InputError, match="40 calibration images are all the same"):
        apply(digits_network, QuantizeConfig(), _context(image.expand(40, -1, -1, -1), 16))


def test_ordinary_images_are_right_where_calibration_images_have_little_contrast(digits_network):
    images = digits(0, 128)[0]
    dull = images.mean() + 0.2 * (images - images.mean())
    quantized, record = apply(digits_network, QuantizeConfig(), _context(dull))
    assert _snr(digits_network, quantized) > 20
    assert _snr(digits_network, quantized, dull) > 20
    assert any("have 25% of the contrast" in note for note in record.notes)


def test_images_of_half_the_contrast_are_left_as_they_are():
    context = _context(0.5 * digits(0, 32)[0])
    assert with_contrast(context, GREY, QuantizeConfig()) == (context, ())


def test_weights_alone_are_quantized_on_the_images_as_they_are(digits_network):
    context = _context(0.1 * digits(0, 32)[0])
    assert with_contrast(context, GREY, QuantizeConfig(activations="none")) == (context, ())
    assert with_contrast(context, GREY, QuantizeConfig())[0] is not context


def test_an_activation_that_never_varies_is_named(digits_network):
    network = digits_network.copy()
    with torch.no_grad():
        for name in ("norm3.weight", "norm3.bias"):
            network.module.get_parameter(name).zero_()
    _, record = apply(network, QuantizeConfig(**QUICK), _context())
    assert any("never varied on the calibration images" in note for note in record.notes)


def test_black_images_among_others_do_no_harm(digits_network):
    images = torch.cat([torch.zeros(20, 1, 8, 8), digits(0, 20)[0]])
    quantized, _ = apply(digits_network, QuantizeConfig(), _context(images))
    assert _snr(digits_network, quantized) > 25


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_one_clear_error_that_names_where(digits_network, wrong):
    images = digits(0, 64)[0].clone()
    images[3, 0, 2, 2] = wrong
    with pytest.raises(AfinaError, match=r"(?s)not finite.*input|not finite.*x"):
        apply(digits_network, QuantizeConfig(), _context(images))
    network = digits_network.copy()
    with torch.no_grad():
        network.module.get_parameter("down.weight")[0, 0, 0, 0] = wrong
    with pytest.raises(AfinaError, match=r"(?s)not finite numbers.*(conv2d|relu)_1 gives"):
        apply(network, QuantizeConfig(), _context())


def test_weights_that_are_not_finite_are_one_clear_error_that_names_the_layer(digits_network):
    network = digits_network.copy()
    with torch.no_grad():
        network.module.get_parameter("down.weight")[0, 0, 0, 0] = float("nan")
    with pytest.raises(AfinaError, match=r"(?s)down.*finite|finite.*down"):
        apply(network, QuantizeConfig(activations="none", rounding="nearest"), _context())


# What cannot be


def test_no_images_is_one_clear_error(digits_network):
    with pytest.raises(InputError, match="no calibration images"):
        apply(digits_network, QuantizeConfig(), Context())
    with pytest.raises(InputError, match="no calibration images"):
        apply(digits_network, QuantizeConfig(), Context(calibration=lambda: iter(())))


def test_weights_alone_need_no_images(digits_network):
    quantized, _ = apply(digits_network, QuantizeConfig(weights="int8", activations="none"), Context())
    assert _snr(digits_network, quantized) > 30


def test_nothing_to_change_is_said():
    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :10]

    with pytest.raises(NothingToDo):
        apply(capture(Plain(), GREY, DIGITS), QuantizeConfig(), _context())


def test_all_layers_in_float_is_nothing_to_do(digits_network):
    layers = tuple((name, FLOAT) for name in ("stem", "down", "inner", "head"))
    with pytest.raises(NothingToDo, match="asked to stay in float"):
        apply(digits_network, QuantizeConfig(layers=layers), _context())


WRONG = {
    "weights": ({"weights": "int9"}, "int8"),
    "weights that are misspelt": ({"weights": "in4"}, "Did you mean int4"),
    "activations": ({"activations": "fp16"}, "activations"),
    "float weights with integer activations": ({"weights": "fp16", "activations": "int8"}, "no runtime"),
    "granularity": ({"granularity": "row"}, "channel"),
    "scheme": ({"scheme": "symmetric"}, "absmax"),
    "calibration": ({"calibration": "min"}, "minmax"),
    "rounding": ({"rounding": "adaround"}, "gram"),
    "equalize": ({"equalize": "yes"}, "auto"),
}


WRONG_POLICIES = {
    "bits": ({"int8_weight_bits": 3}, "There are: 7, 8"),
    "a truth value as bits": ({"int8_weight_bits": True}, "int8_weight_bits is True"),
    "a number as a truth value": ({"concatenated_channels_share_scale": 1}, "is 1"),
    "fused functions": ({"fused_activation_functions": "most"}, "There are: clipping, all"),
    "misspelt additions": ({"additions": "in convolutions"}, "Did you mean in convolution"),
}


@pytest.mark.parametrize("case", WRONG_POLICIES)
def test_a_policy_that_does_not_exist_is_refused_with_those_that_do(case):
    values, expected = WRONG_POLICIES[case]
    with pytest.raises(InputError, match=r"(?s)" + expected):
        IntegerPolicy(**values)


def test_a_record_says_enough_to_quantize_again(digits_network):
    policy = IntegerPolicy(int8_weight_bits=7, symmetric_inputs_of_linear_layers="always")
    layers = (("down", Precision("int4", "none")), ("head", FLOAT))
    config = QuantizeConfig(granularity="tensor", layers=layers, policy=policy, **QUICK)
    first, record = apply(digits_network, config, _context())
    again = TECHNIQUE.read(json.loads(json.dumps(record.step.config)))
    assert again == config
    second, _ = apply(digits_network, again, _context())
    held = second.module.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in first.module.state_dict().items())


@pytest.mark.parametrize("case", WRONG)
def test_options_that_do_not_exist_are_refused_with_those_that_do(case):
    given, expected = WRONG[case]
    with pytest.raises(InputError, match=r"(?s)" + expected):
        QuantizeConfig(**given)


# Training


@pytest.mark.parametrize(
    ("weights", "activations", "learn", "gain"), [("int2", "int8", True, 0.05), ("int4", "int4", False, -0.006)]
)
def test_training_with_simulated_integers_wins_back_what_few_bits_lose(
    digits_network, weights, activations, learn, gain
):
    config = QuantizeConfig(weights=weights, activations=activations, rounding="nearest", equalize="none")
    prepared, notes = prepare(Source.of(digits_network), config, _context())
    before = _accuracy(prepared.network)
    prepared.learn(learn)
    training = FitConfig(
        epochs=2, optimizer="sgd", learning_rate=0.01, weight_decay=0.0, schedule="cosine", batch_size=64
    )
    trained, _ = fit(prepared.network, open_data("digits"), training, teacher=prepared.source.network)
    prepared.adopt(trained)
    quantized, _ = finish(digits_network, prepared, _context(), notes, 0.0)
    assert _accuracy(quantized) >= before + gain
    assert _accuracy(quantized) >= _accuracy(digits_network) - 0.05
    assert {row.precision for row in layer_rows(quantized)} == {weights}


def test_scales_are_trained_only_where_asked(digits_network):
    prepared = Prepared(Source.of(digits_network), QuantizeConfig(**QUICK))
    scales = [edge.scale for edge in (*prepared.activations.values(), *prepared.weights.values())]
    assert not any(scale.requires_grad for scale in scales)
    prepared.learn(True)
    assert all(scale.requires_grad for scale in scales)


def test_networks_on_their_way_to_integers_are_let_go(digits_network):
    prepared = Prepared(Source.of(digits_network), QuantizeConfig())
    held = [weakref.ref(network.module) for network in (prepared.network, prepared.unrounded, prepared.convert())]
    del prepared
    gc.collect()
    assert [ref() for ref in held] == [None] * 3
