"""Zeros in weights: as many as asked for, where they hurt least, and there to stay."""

import numpy as np
import pytest
import torch
from torch import nn

import afina
from afina.data import open_data
from afina.errors import InputError, NothingToDo
from afina.graph import Network
from afina.graph.statistics import Effect
from afina.graph.stored import attribute
from afina.techniques.context import Context
from afina.techniques.sparsify import SparsifyConfig, apply
from afina.training import FitConfig, fit


def images(count: int = 256, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def context() -> Context:
    return Context(calibration=lambda: iter(images().split(64)), images=256)


def zeros(network: Network, name: str) -> torch.Tensor:
    return attribute(network.module, name).detach() == 0


def test_each_layer_has_the_share_of_zeros_that_was_asked_for(small_network):
    sparse, record = apply(small_network, SparsifyConfig(layers={"inner": 0.75, "head": 0.5}), context())
    assert zeros(sparse, "inner.weight").float().mean() == pytest.approx(0.75, abs=0.01)
    assert zeros(sparse, "head.weight").float().mean() == pytest.approx(0.5, abs=0.01)
    assert not zeros(sparse, "stem.weight").any()
    assert record.touched == ("inner", "head")
    assert record.skipped == {"stem": "no weight is to go"}


def test_a_pattern_keeps_at_most_two_of_every_four_inputs(small_network):
    sparse, record = apply(small_network, SparsifyConfig(pattern="2:4"), context())
    groups = zeros(sparse, "inner.weight").permute(0, 2, 3, 1).reshape(-1, 4).sum(1)
    assert (groups == 2).all()
    assert (zeros(sparse, "head.weight").reshape(-1, 4).sum(1) == 2).all()
    assert record.skipped["stem"] == "4 does not divide its 1 inputs"


@pytest.mark.parametrize("config", [{"sparsity": 0.6}, {"pattern": "2:4"}], ids=["free", "2:4"])
def test_fit_changes_the_outputs_less_than_magnitude(small_network, config):
    effect = Effect(small_network, images(128, seed=9))
    changed = {
        criterion: effect.of(apply(small_network, SparsifyConfig(criterion=criterion, **config), context())[0])
        for criterion in ("fit", "magnitude")
    }
    assert changed["fit"] < 0.5 * changed["magnitude"]


def test_zeros_stay_zero_while_the_network_is_fine_tuned(small_network):
    data = open_data("digits", seed=0)
    sparse, _ = apply(small_network, SparsifyConfig(sparsity=0.7), context())
    before = zeros(sparse, "inner.weight")
    tuned, _ = fit(sparse, data, FitConfig(epochs=1, keep_zeros=True))
    assert torch.equal(zeros(tuned, "inner.weight"), before)
    assert not torch.equal(attribute(tuned.module, "inner.weight"), attribute(sparse.module, "inner.weight"))
    free, _ = fit(sparse, data, FitConfig(epochs=1))
    assert zeros(free, "inner.weight").sum() < before.sum()


def test_the_sparsity_is_shared_out_so_that_all_layers_together_have_it(small_network):
    network, record = afina.sparsify(small_network, "digits", sparsity="80%", images=256)
    total = sum(attribute(network.module, name).numel() for name in WEIGHTS)
    gone = sum(int(zeros(network, name).sum()) for name in WEIGHTS)
    assert gone / total == pytest.approx(0.8, abs=0.01)
    shares = [float(zeros(network, name).float().mean()) for name in WEIGHTS]
    assert np.ptp(shares) > 0.05
    assert {"quality", "nonzero"} <= record.after.keys()


WEIGHTS = ("stem.weight", "inner.weight", "head.weight")


def test_without_images_weights_go_by_magnitude_everywhere_alike(small_network):
    network, record = afina.sparsify(small_network, sparsity=0.5)
    weight, kept = attribute(small_network.module, "inner.weight"), attribute(network.module, "inner.weight")
    assert torch.equal(kept[kept != 0], weight[kept != 0])
    assert weight[kept == 0].abs().max() <= weight[kept != 0].abs().min()
    assert record.step.config["criterion"] == "magnitude"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sparsity": 0.0}, "not between 0 and 1"),
        ({"sparsity": "120%"}, "not between 0 and 1"),
        ({"pattern": "4:2"}, "keeps 4 weights of every 2"),
        ({"pattern": "two of four"}, "is not a pattern"),
        ({"pattern": "2:5"}, "fits no layer"),
        ({}, "either a sparsity or a pattern"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "either a sparsity or a pattern"),
        ({"sparsity": 0.5, "criterion": "magnitud"}, "Did you mean magnitude"),
        ({"sparsity": 0.5, "finetune": 1}, "needs images"),
    ],
)
def test_what_is_not_possible_is_one_clear_error(small_network, options, expected):
    with pytest.raises(InputError, match=expected):
        afina.sparsify(small_network, **options)


def test_a_layer_that_does_not_exist_is_named_with_the_nearest(small_network):
    with pytest.raises(InputError, match="Did you mean inner"):
        apply(small_network, SparsifyConfig(layers={"iner": 0.5}), context())


def test_a_network_without_such_layers_is_nothing_to_do():
    from conftest import DIGITS, GREY

    from afina.graph import capture

    module = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (64,)), nn.AdaptiveAvgPool1d(10), nn.Flatten())
    with pytest.raises(NothingToDo):
        apply(capture(module, GREY, DIGITS), SparsifyConfig(), context())
