"""Pruning real networks: smaller as promised, trainable, saved and loaded, the same on the runtimes."""

import pytest
import torch
from conftest import DIGITS, GREY
from torch import nn

from afina.errors import InputError, NothingToDo
from afina.graph import Network, capture
from afina.graph.cost import cost_of
from afina.graph.network import Network as _Network
from afina.techniques.context import Context
from afina.techniques.prune import PruneConfig, apply
from afina.types import InputSpec, TaskSpec

_INPUT, _TASK = InputSpec(64, 64), TaskSpec("classification", tuple(map(str, range(1000))))


def _zoo(name: str) -> Network:
    import torchvision

    torch.manual_seed(0)
    return capture(getattr(torchvision.models, name)(), _INPUT, _TASK)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v2", "mobilenet_v3_small"])
def test_networks_that_people_use_are_halved_train_save_and_load(name, tmp_path):
    network = _zoo(name)
    pruned, record = apply(network, PruneConfig(ratio=0.5), Context())
    assert cost_of(pruned).macs < 0.4 * cost_of(network).macs
    assert record.after["parameters"] == cost_of(pruned).parameters < 0.65 * record.before["parameters"]
    pruned.train()(pruned.example()).square().mean().backward()
    assert all(p.grad is not None for p in pruned.module.parameters())
    loaded = _Network.load(pruned.eval().save(tmp_path / "n.pt2"))
    with pruned.inference(), loaded.inference():
        assert torch.equal(pruned(pruned.example(3)), loaded(pruned.example(3)))


def test_units_that_carry_nothing_go_first_and_cost_nothing(small_network):
    weight = small_network.module.get_parameter("head.weight")
    stem, norm = small_network.module.get_parameter("inner.weight"), small_network.module.get_parameter("norm.weight")
    with torch.no_grad():
        for parameter in (weight, stem):
            parameter[:, ::2] = 0
    assert norm is not None
    images = torch.randn(16, 1, 8, 8)
    context = Context(calibration=lambda: iter([images]))
    pruned, _ = apply(small_network, PruneConfig(ratio=0.5), context)
    with small_network.inference(), pruned.inference():
        assert torch.allclose(small_network(images), pruned(images), atol=1e-5)


@pytest.mark.parametrize("criterion", ["fit", "magnitude", "taylor", "batchnorm", "random"])
def test_the_same_seed_gives_the_same_network(small_network, criterion):
    context = Context(calibration=lambda: iter([torch.ones(4, 1, 8, 8)]), seed=3)
    first, second = (apply(small_network, PruneConfig(0.5, criterion=criterion), context)[0] for _ in range(2))
    for key, value in first.module.state_dict().items():
        assert torch.equal(value, second.module.state_dict()[key])


def test_without_images_the_record_says_that_magnitude_was_used(small_network):
    _, record = apply(small_network, PruneConfig(0.5), Context())
    assert record.step.config["criterion"] == "magnitude"
    assert any("no calibration images" in note for note in record.notes)


def test_kept_channels_are_the_multiple_asked_for():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 40, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40 * 36, 10))
    pruned, _ = apply(capture(module, GREY, DIGITS), PruneConfig(0.45, multiple=8), Context())
    assert pruned.module.get_parameter("0.weight").shape[0] == 24


@pytest.mark.parametrize(
    "config", [{"ratio": 0.0}, {"ratio": 1.0}, {"ratio": -1}, {"criterion": "magnitud"}, {"multiple": 0}]
)
def test_a_configuration_that_is_not_possible_is_one_clear_error(small_network, config):
    with pytest.raises(InputError):
        apply(small_network, PruneConfig(**config), Context())


def test_a_network_with_no_free_axis_is_nothing_to_do():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(NothingToDo):
        apply(capture(module, GREY, DIGITS), PruneConfig(0.5), Context())
