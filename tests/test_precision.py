"""Mixed precision: what stays in 32 bits in training, what is told of loss scaling, and what 16-bit files hold."""

import math

import pytest
import torch
from conftest import DIGITS, GREY
from torch import nn

from afina.data import ImageData, open_data
from afina.errors import InputError, TrainingError
from afina.graph import Network, capture
from afina.progress import Progress
from afina.training import FitConfig, fit, layer_dtypes
from afina.training.overflow import find_overflow
from afina.training.policy import keep_in_32, summary
from afina.training.precision import LossScale, ScaleLog, make_fabric

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
    assert torch.equal(kept(example), small_network(example))
    assert set(kept.module.state_dict()) == set(small_network.module.state_dict())
    assert torch.equal(kept.train()(example), kept(example)) is False, "dropout can no longer be switched on"


def test_the_policy_lets_gradients_through_in_32_bits(small_network):
    kept = small_network.copy()
    keep_in_32(kept, ("*",))
    with make_fabric("bf16-mixed").autocast():
        loss = kept(kept.example()).square().sum()
    loss.backward()
    small_network(small_network.example()).square().sum().backward()
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


def test_skipped_steps_and_growth_are_counted_and_told(small_network, images):
    network, told = small_network.copy(), Told()
    with torch.no_grad():
        network.module.get_parameter("head.weight").mul_(3000)
    config = FitConfig(epochs=1, batch_size=256, precision="16-mixed", learning_rate=1e-3)
    _, curve = fit(network, images, config, progress=told)
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
                loss = network(network.example().to(fabric.device)).float().mean()
            fabric.backward(loss * 1e-3)
            optimizer.step()
    assert str(scale.take_log()) == "Loss scale: it grew 2 times; now 262144."
    assert scale.take_log() == ScaleLog(0, 0, 262144.0), "what was told is not told again"


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_where_losses_are_not_scaled_nothing_is_said_of_it(small_network, images, precision):
    told = Told()
    _, curve = fit(small_network, images, FitConfig(epochs=1, batch_size=512, precision=precision), progress=told)
    assert (curve[0].skipped, curve[0].grown, curve[0].loss_scale) == (0, 0, None)
    assert not any("scale" in line for line in told.lines)


# What overflowed


def test_a_collapsed_scale_names_the_layer_that_overflowed_first(small_network, images):
    network = small_network.copy()
    with torch.no_grad():
        network.module.get_parameter("inner.weight").mul_(1e6)
    config = FitConfig(epochs=9, batch_size=256, precision="16-mixed", augment=False)
    with pytest.raises(TrainingError, match=r"collapsed(.|\n)*inner overflows first: in fp16 .* inputs of at most"):
        fit(network, images, config)
    kept = FitConfig(epochs=1, batch_size=256, precision="16-mixed", augment=False, keep_fp32=("inner*",))
    assert math.isfinite(fit(network, images, kept)[1][0].loss), "what the error says to do does not help"


def test_where_the_forward_pass_is_finite_the_first_gradient_that_is_not_is_named(small_network):
    network = small_network.copy()
    for name in ("stem.weight", "inner.weight"):
        parameter = network.module.get_parameter(name)
        parameter.grad = torch.full_like(parameter, math.inf)
    found = find_overflow(network, network.example(), make_fabric("16-mixed").autocast())
    assert found == "The forward pass is finite; backwards, the gradient of inner.weight is the first that is not."


def test_images_and_weights_that_are_not_finite_are_named(small_network):
    images, off = small_network.example(), make_fabric("32").autocast()
    assert find_overflow(small_network, images, off) == ""
    assert find_overflow(small_network, images * math.inf, off).startswith("The images")
    network = small_network.copy()
    with torch.no_grad():
        network.module.get_parameter("norm.weight")[0] = math.nan
    assert find_overflow(network, images, off) == "norm.weight holds values that are not finite."
