"""Mixed precision: what stays in 32 bits in training, what is told of loss scaling, and what 16-bit files hold."""

import math
import re

import numpy as np
import pytest
import torch
from conftest import DIGITS, GREY, digits, only
from torch import nn
from torch.utils.data import TensorDataset

from afina.data import ImageData, open_data
from afina.errors import AfinaError, InputError, NothingToDo, TrainingError
from afina.graph import Network, capture
from afina.graph.cost import layer_rows
from afina.jobs.export import export
from afina.progress import Progress
from afina.runtimes import check_parity, get_runtime, relative_difference
from afina.techniques import quantize
from afina.techniques.context import Context
from afina.techniques.quantize import Precision, QuantizeConfig, Source, halves
from afina.techniques.quantize.effects import damages
from afina.techniques.quantize.prepared import Prepared
from afina.training import FitConfig, fit, layer_dtypes
from afina.training.overflow import find_overflow
from afina.training.policy import keep_in_32, summary
from afina.training.precision import LossScale, ScaleLog, make_fabric
from afina.types import Record

MIXED = [("bf16-mixed", "bf16"), ("16-mixed", "fp16")]


class Attending(nn.Module):
    """Norms, a softmax that is written out, and matrix products of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 2, stride=2)
        self.block = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU())
        self.norm, self.head = nn.GroupNorm(4, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.block(self.patches(x).flatten(2).transpose(1, 2))
        mixed = torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens
        return self.head(self.norm(mixed.mean(1)))


class Told(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def images() -> ImageData:
    return open_data("digits")


@pytest.fixture(scope="module")
def few() -> ImageData:
    """For trainings that nothing is to be learned in: 16 bits are slow on processors."""
    return open_data((TensorDataset(*digits(0, 256)), TensorDataset(*digits(256, 320))))


def _computed(network: Network, precision: str, *patterns: str) -> dict[str, tuple[str, ...]]:
    return {row.layer: row.computed for row in layer_dtypes(network, precision, patterns)}


# The policy


@pytest.mark.parametrize(("precision", "kind"), MIXED)
def test_products_run_in_16_bits_and_norms_and_softmax_in_32(precision, kind):
    network = capture(Attending(), GREY, DIGITS)
    rows = layer_dtypes(network, precision)
    computed = {row.kind: row.computed for row in rows if row.kind in ("layer_norm", "group_norm", "softmax")}
    assert computed == {"layer_norm": ("fp32",), "group_norm": ("fp32",), "softmax": ("fp32",)}
    for layer in ("patches", "block.1", "head"):
        assert _computed(network, precision)[layer] == (kind,)


@pytest.mark.parametrize(("precision", "kind"), MIXED)
def test_layers_that_are_named_stay_in_32_bits_with_all_that_is_in_them(small_network, precision, kind):
    assert _computed(small_network, precision, "inner*") == {
        "stem": (kind,),
        "norm": tuple(sorted((kind, "fp32"))),
        "inner": ("fp32",),
        "inner_norm": ("fp32",),
        "head": (kind,),
    }
    assert set(_computed(small_network, precision, "*").values()) == {("fp32",)}
    assert _computed(capture(Attending(), GREY, DIGITS), precision, "block")["block.1"] == ("fp32",)


def test_batch_norm_sums_in_32_bits_although_it_reads_16():
    """Sums of 65,536 numbers near 300 would be lost in 16 bits, where 300 + 1 steps are a quarter apart."""
    norm = nn.BatchNorm2d(1)
    values = 300 + torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for kind in (torch.bfloat16, torch.float16):
        norm.running_mean.zero_()
        norm(values.to(kind))
        assert float(norm.running_mean) == pytest.approx(float(values.to(kind).double().mean()) / 10, rel=1e-4)


def test_what_is_32_bits_already_is_as_it_was(small_network):
    kept = small_network.copy()
    keep_in_32(kept, ("inner", "dropout"))
    example = small_network.example()
    assert torch.equal(only(kept(example)), only(small_network(example)))
    assert set(kept.module.state_dict()) == set(small_network.module.state_dict())
    first, second = only(kept.train()(example)), only(kept(example))
    assert not torch.equal(first, second), "dropout can no longer be switched on"


def test_the_policy_lets_gradients_through_in_32_bits(small_network):
    kept = small_network.copy()
    keep_in_32(kept, ("*",))
    with make_fabric("bf16-mixed").autocast():
        loss = only(kept(kept.example())).square().sum()
    loss.backward()
    only(small_network(small_network.example())).square().sum().backward()
    ours, theirs = dict(kept.module.named_parameters()), dict(small_network.module.named_parameters())
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad)


def test_a_pattern_that_fits_no_layer_is_refused_with_the_name_that_comes_near(small_network, images):
    with pytest.raises(InputError, match=r"no layer 'haed'(.|\n)*head"):
        fit(small_network, images, FitConfig(epochs=1, precision="bf16-mixed", keep_fp32=("haed",)))
    with pytest.raises(InputError, match="keep_fp32"):
        FitConfig(keep_fp32="head")


def test_a_training_with_layers_kept_learns_and_gives_the_same_graph_back(small_network, images):
    config = FitConfig(epochs=2, batch_size=32, precision="bf16-mixed", keep_fp32=("stem", "head"), augment=False)
    trained, curve = fit(small_network, images, config)
    assert curve[-1].quality > 0.5
    assert [n.target for n in trained.graph.nodes] == [n.target for n in small_network.graph.nodes]


def test_the_summary_names_the_layers_that_differ(small_network):
    told = summary(layer_dtypes(small_network, "bf16-mixed", ("head",)))
    assert told == "Layers compute in: bf16: 2, bf16 with fp32: 2 (norm, inner_norm), fp32: 1 (head)."


# Loss scaling


def test_skipped_steps_and_growth_are_counted_and_told(small_network, few):
    network, told = small_network.copy(), Told()
    with torch.no_grad():
        network.module.get_parameter("head.weight").mul_(3000)
    config = FitConfig(epochs=1, batch_size=32, precision="16-mixed", learning_rate=1e-3)
    _, curve = fit(network, few, config, progress=told)
    assert curve[0].skipped > 0
    assert curve[0].loss_scale == 65536 / 2 ** curve[0].skipped
    assert (
        f"Loss scale: {curve[0].skipped} steps overflowed and were skipped; now {curve[0].loss_scale:g}." in told.lines
    )


def test_growth_of_the_scale_is_counted(small_network):
    fabric, network = make_fabric("16-mixed"), small_network.copy()
    optimizer = fabric.setup_optimizers(torch.optim.SGD(network.module.parameters(), lr=1e-6))
    scale = LossScale(fabric)
    scale.scaler.set_growth_interval(2)
    for _ in range(4):
        with scale.step(network, "here"):
            with fabric.autocast():
                loss = only(network(network.example().to(fabric.device))).float().mean()
            fabric.backward(loss * 1e-3)
            optimizer.step()
    assert str(scale.take_log()) == "Loss scale: it grew 2 times; now 262144."
    assert scale.take_log() == ScaleLog(0, 0, 262144.0), "what was told is not told again"


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_where_losses_are_not_scaled_nothing_is_said_of_it(small_network, few, precision):
    told = Told()
    _, curve = fit(small_network, few, FitConfig(epochs=1, batch_size=128, precision=precision), progress=told)
    assert (curve[0].skipped, curve[0].grown, curve[0].loss_scale) == (0, 0, None)
    assert not any("scale" in line for line in told.lines)


# What overflowed


def test_a_collapsed_scale_names_the_layer_that_overflowed_first(small_network, few):
    network = small_network.copy()
    with torch.no_grad():
        network.module.get_parameter("inner.weight").mul_(1e6)
    config = FitConfig(epochs=2, batch_size=16, precision="16-mixed", augment=False)
    with pytest.raises(TrainingError, match=r"collapsed(.|\n)*inner overflows first: in fp16 .* inputs of at most"):
        fit(network, few, config)
    kept = FitConfig(epochs=1, batch_size=32, precision="16-mixed", augment=False, keep_fp32=("inner*",))
    assert math.isfinite(fit(network, few, kept)[1][0].loss), "what the error says to do does not help"


def test_where_the_forward_pass_is_finite_the_first_gradient_that_is_not_is_named(small_network):
    network, autocast = small_network.copy(), make_fabric("16-mixed").autocast()

    def backward() -> None:
        for name in ("stem.weight", "inner.weight"):
            parameter = network.module.get_parameter(name)
            parameter.grad = torch.full_like(parameter, math.inf)

    found = find_overflow(network, network.example(), autocast, backward)
    assert found == "The forward pass is finite; backwards, the gradient of inner.weight is the first that is not."


def test_a_gradient_that_overflows_stops_the_training_and_is_named(few):
    """The forward pass is fine; no loss scale makes the gradient through the root of zero a number."""

    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.sqrt(self.second(torch.relu(self.first(x))).relu() * 0).mean((2, 3)))

    network = capture(Rooted(), GREY, DIGITS)
    config = FitConfig(epochs=2, batch_size=16, precision="16-mixed")
    with pytest.raises(TrainingError, match=r"the gradient of second\.(bias|weight) is the first that is not"):
        fit(network, few, config)


def test_images_and_weights_that_are_not_finite_are_named(small_network):
    images, off = small_network.example(), make_fabric("32").autocast()
    assert find_overflow(small_network, images, off, lambda: None) == ""
    assert find_overflow(small_network, images * math.inf, off, lambda: None).startswith("The images")
    network = small_network.copy()
    with torch.no_grad():
        network.module.get_parameter("norm.weight")[0] = math.nan
    assert find_overflow(network, images, off, lambda: None) == "norm.weight holds values that are not finite."


# Files in 16 bits


def _scaled(network: Network, factor: float) -> Network:
    """The same answers, with all that is between the second norm and the head `factor` times as large."""
    twin = network.copy()
    with torch.no_grad():
        twin.module.get_parameter("norm3.weight").mul_(factor)
        twin.module.get_parameter("norm3.bias").mul_(factor)
        twin.module.get_parameter("norm2.weight").mul_(factor)
        twin.module.get_parameter("norm2.bias").mul_(factor)
        twin.module.get_buffer("norm3.running_mean").mul_(factor)
        twin.module.get_parameter("inner.bias").mul_(factor)
        twin.module.get_buffer("norm3.running_var").mul_(factor**2)
        twin.module.get_parameter("head.weight").div_(factor)
    return twin


def _stored(network: Network) -> dict[str, str]:
    return {row.name: row.precision for row in layer_rows(network)}


def _halved(network: Network, weights: str = "fp16", **options) -> tuple[Network, Record]:
    images = digits(0, 128)[0]
    context = Context(calibration=lambda: iter(images.split(64)), images=128)
    return quantize.apply(network, QuantizeConfig(weights=weights, activations="none", **options), context)


@pytest.mark.parametrize("weights", ["fp16", "bf16"])
def test_layers_that_16_bits_hold_are_stored_in_them(digits_network, weights):
    halved, record = _halved(digits_network, weights)
    assert set(_stored(halved).values()) == {weights}
    assert not record.skipped


def test_a_layer_whose_weights_overflow_fp16_stays_in_32_bits_and_is_named(tmp_path):
    network = capture(Wide(1e5), GREY, DIGITS)
    halved, record = _halved(network)
    assert _stored(halved) == {"stem": "fp16", "wide": "fp32", "head": "fp16"}
    assert re.match(r"its largest weight is .*, and the type ends at 65504", record.skipped["wide"])
    assert "Stays in 32 bits: wide" in record.notes[0]
    assert set(_stored(_halved(network, "bf16")[0]).values()) == {"bf16"}, "bf16 holds it"
    for name in ("onnxruntime", "openvino"):
        if (runtime := get_runtime(name)).available():
            path = runtime.export(halved, tmp_path / f"model{runtime.suffix}")
            assert np.isfinite(only(runtime.load(path, threads=1)(network.example().numpy()))).all()
            assert check_parity(halved, path, None, threads=1) < 1e-3


def test_activations_beyond_fp16_keep_the_layers_that_give_and_read_them(digits_network):
    halved, record = _halved(_scaled(digits_network, 2.0**18))
    kept = {layer: reason for layer, reason in record.skipped.items() if "values up to" in reason}
    assert {"down", "inner", "head"} & set(kept)
    assert all(_stored(halved)[layer] == "fp32" for layer in kept)
    assert not _halved(_scaled(digits_network, 2.0**18), "bf16")[1].skipped


def test_weights_too_small_for_fp16_are_kept_where_the_outputs_need_them(digits_network):
    network = _scaled(digits_network, 2.0**-20)
    small = {
        n: float(p.detach().abs().max()) for n, p in Source.of(network).network.module.named_parameters() if p.ndim > 1
    }
    assert small["down.weight"] < 1e-5
    halved, record = _halved(network)
    assert re.search(r"of its weights become zero, which changes the outputs by", record.skipped["down"])
    assert _stored(halved)["down"] == "fp32"
    assert set(_stored(halved).values()) == {"fp16", "fp32"}


def test_weights_that_underflow_without_harm_are_stored_all_the_same(digits_network):
    network = digits_network.copy()
    with torch.no_grad():
        network.module.get_parameter("down.weight")[::4].mul_(1e-12)
        network.module.get_parameter("norm2.weight")[::4] = 1e-12
    assert not _halved(network)[1].skipped


def test_layers_are_kept_until_the_outputs_change_by_little(digits_network, monkeypatch):
    source, images = Source.of(digits_network), digits(0, 128)[0]
    context = Context(calibration=lambda: iter([images]), images=128)
    config = QuantizeConfig(weights="bf16", activations="none")
    prepared = Prepared(source, config)
    found = damages(prepared, lambda layer: [config.precision(layer)], images[:16], Progress())
    found.sort(key=lambda damage: damage.loss)
    monkeypatch.setattr(halves, "_ALL", sum(d.loss for d in found[:2]) * 1.001)
    _, kept = halves.keep_wide(source, config, context)
    assert list(kept) == [found[3].layer, found[2].layer]
    assert all("rounding its weights, which changes the outputs by" in reason for reason in kept.values())


def test_where_no_layer_fits_it_is_an_error_that_says_why():
    network = capture(Wide(1e5), GREY, DIGITS)
    with torch.no_grad():
        for name in ("stem", "head"):
            network.module.get_parameter(f"{name}.weight")[0] = 1e5
    with pytest.raises(NothingToDo, match=r"No layer can be stored in fp16(.|\n)*largest weight"):
        _halved(network)


def test_weights_that_are_not_finite_are_an_error(digits_network):
    network = digits_network.copy()
    with torch.no_grad():
        network.module.get_parameter("head.weight")[0, 0] = math.inf
    with pytest.raises(AfinaError, match="head hold a value that is not a finite number"):
        _halved(network)


def test_a_layer_whose_precision_is_given_is_taken_at_its_word_unless_it_overflows(digits_network, monkeypatch):
    monkeypatch.setattr(halves, "_ALL", 0.0)
    halved, _ = _halved(digits_network, layers=(("inner", Precision("fp16", "none")),))
    assert _stored(halved) == {"stem": "fp32", "down": "fp32", "inner": "fp16", "head": "fp32"}
    network = capture(Wide(1e5), GREY, DIGITS)
    halved, _ = _halved(network, layers=tuple((layer, Precision("fp16", "none")) for layer in ("wide", "head")))
    assert _stored(halved)["wide"] == "fp32"


def test_an_export_in_half_names_what_it_keeps_and_answers_as_the_model(tmp_path):
    network, told = capture(Wide(1e5), GREY, DIGITS), Told()
    found = export(network, to="onnx", out=tmp_path / "half.onnx", half=True, progress=told)
    assert list(found.kept) == ["wide"]
    assert any(line.startswith("wide stays in 32 bits: its largest weight") for line in told.lines)
    answers = only(get_runtime("onnxruntime").load(tmp_path / "half.onnx", threads=1)(network.example().numpy()))
    with network.inference():
        assert relative_difference(only(network(network.example())).numpy(), answers) < 5e-3


class Wide(nn.Module):
    """A layer with weights of `size`, and a layer behind it that brings its outputs down again."""

    def __init__(self, size: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.wide, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 16), nn.Linear(16, 10)
        with torch.no_grad():
            self.stem.weight.div_(size)
            self.stem.bias.div_(size)
            self.wide.weight.mul_(4 * size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.wide(torch.relu(self.stem(x)).mean((2, 3)))))
