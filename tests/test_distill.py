"""Distillation: what is learned from inside a teacher, with which losses, and what is refused."""

import pytest
import torch
from conftest import GREY, digits, only
from test_training import Said
from torch import nn
from torch.nn import functional as F

import afina
from afina.data import open_data
from afina.errors import InputError
from afina.graph import Network, capture
from afina.training import FitConfig, evaluate, fit
from afina.training.features import FeatureLoss, find_pairs, places_of, tapped
from afina.training.losses import Objective
from afina.types import TaskSpec


class Narrow(nn.Module):
    """A student of another shape: half as wide, one block less, the same resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.last = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.first(x)))
        x = torch.relu(self.norm2(self.second(x)))
        return self.last(x.mean((2, 3)))


@pytest.fixture(scope="module")
def data():
    return open_data("digits", seed=0)


@pytest.fixture
def student(data) -> Network:
    torch.manual_seed(1)
    return capture(Narrow(), GREY, data.task)


def test_pairs_are_the_last_places_of_each_resolution_that_both_have(student, digits_network):
    pairs = find_pairs(student, digits_network, "auto")
    assert [(own.shape, theirs.shape) for own, theirs in pairs] == [
        ((8, 8, 8), (16, 8, 8)),
        ((16, 4, 4), (32, 4, 4)),
    ]
    order = [node.name for node in digits_network.graph.nodes]
    for _, theirs in pairs:
        later = [p for p in places_of(digits_network) if p.grid == theirs.grid]
        assert max(order.index(p.node) for p in later) == order.index(theirs.node)


def test_layers_can_be_named_by_the_user(student, digits_network):
    ((own, theirs),) = find_pairs(student, digits_network, "second:inner")
    assert (own.layer, theirs.layer) == ("second", "inner")
    ((own, theirs),) = find_pairs(digits_network, digits_network, "down")
    assert own == theirs


def test_feature_maps_are_known_by_where_layers_put_their_channels():
    """Also with channels last, as in Swin and ConvNeXt; views and attention's own tensors are left out."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.wide = nn.Conv2d(1, 12, 3, padding=1), nn.LayerNorm(12), nn.Linear(12, 20)
            self.mix = nn.Linear(20, 20)
            self.attention, self.head = nn.MultiheadAttention(20, 4, batch_first=True), nn.Linear(20, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.wide(self.norm(self.stem(x).permute(0, 2, 3, 1))))
            x = x.flatten(1, 2)
            x = x + self.mix(x)
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    network = capture(Mixed().eval(), GREY, TaskSpec("classification", tuple("0123456789")))
    known = {(place.channels, place.grid, place.channels_last) for place in places_of(network)}
    assert {(12, (8, 8), False), (12, (8, 8), True), (20, (8, 8), True), (20, (64,), True)} <= known
    assert {grid for _, grid, _ in known} == {(8, 8), (64,)}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("secnd:inner", "second"),
        ("second:iner", "inner"),
        ("first:inner", "differ in resolution"),
    ],
)
def test_a_layer_that_is_not_there_or_does_not_fit_is_named(student, digits_network, asked, said):
    with pytest.raises(InputError, match=said):
        find_pairs(student, digits_network, asked)


def test_a_network_that_is_its_teacher_has_no_loss_from_inside(digits_network):
    loss = FeatureLoss(find_pairs(digits_network, digits_network, "auto"), 1.0, 1.0, 1.0)
    nodes = [own.node for own, _ in loss.pairs]
    with digits_network.inference():
        _, found = tapped(digits_network, digits(0, 32)[0], nodes)
        assert float(loss(found, found)) == pytest.approx(0, abs=1e-6)


def test_the_losses_are_those_of_the_papers(student, digits_network):
    """By the formulas of the module's description, written out anew."""
    pairs = find_pairs(student, digits_network, "second:inner")
    with student.inference(), digits_network.inference():
        _, own = tapped(student, digits(0, 16)[0], [pairs[0][0].node])
        _, theirs = tapped(digits_network, digits(0, 16)[0], [pairs[0][1].node])
        s, t = own[pairs[0][0].node], theirs[pairs[0][1].node]
        features = FeatureLoss(pairs, 1.0, 0.0, 0.0)
        projected = torch.einsum("nchw,dc->ndhw", s, features.projections[0].weight)
        expected = (projected - t).square().mean() / (t - t.mean((0, 2, 3), keepdim=True)).square().mean()
        torch.testing.assert_close(features(own, theirs), expected)

        maps = [x.square().sum(1).flatten(1) for x in (s, t)]
        apart = [m / m.norm(dim=1, keepdim=True) for m in maps]
        torch.testing.assert_close(
            FeatureLoss(pairs, 0.0, 1.0, 0.0)(own, theirs), (apart[0] - apart[1]).square().sum(1).mean()
        )

        distances = [torch.pdist(x.mean((2, 3))) for x in (s, t)]
        expected = F.smooth_l1_loss(*(d / d.mean() for d in distances))
        torch.testing.assert_close(FeatureLoss(pairs, 0.0, 0.0, 1.0)(own, theirs), expected)


def test_projections_are_trained_with_the_student_and_no_part_of_it(student, digits_network, data):
    config = FitConfig(epochs=6, batch_size=64, features="auto", attention_weight=1.0, relation_weight=1.0, seed=3)
    result, _ = fit(student, data, config, teacher=digits_network)
    assert {n for n, _ in result.module.named_parameters()} == {n for n, _ in student.module.named_parameters()}
    assert evaluate(result, data).value > 0.5


def test_a_training_with_features_goes_on_after_it_was_cut_off(student, digits_network, data, tmp_path):
    config = FitConfig(epochs=2, learning_rate=0.05, features="auto")
    whole, curve = fit(student, data, config, teacher=digits_network)
    said = Said(stop_at=len(data.batches("train", GREY, batch_size=config.batch_size)) + 2)
    with pytest.raises(KeyboardInterrupt):
        fit(student, data, config, teacher=digits_network, checkpoint=tmp_path / "c", progress=said)
    again, curve_again = fit(student, data, config, teacher=digits_network, checkpoint=tmp_path / "c")
    assert [e.loss for e in curve_again] == [e.loss for e in curve]
    with whole.inference(), again.inference():
        assert torch.equal(only(whole(digits(0, 8)[0])), only(again(digits(0, 8)[0])))


def test_without_augmentation_the_teacher_is_asked_beforehand(student, digits_network, data, monkeypatch):
    seen = []
    forward = Objective.forward

    def watched(self, network, images, targets, taught=None):
        with digits_network.inference():
            seen.append(taught is not None and torch.allclose(only(taught), only(digits_network(images)), atol=1e-4))
        return forward(self, network, images, targets, taught)

    monkeypatch.setattr(Objective, "forward", watched)
    fit(student, data, FitConfig(epochs=2, augment=False), teacher=digits_network)
    assert seen
    assert all(seen)
    seen.clear()
    fit(student, data, FitConfig(epochs=1, augment=True), teacher=digits_network)
    assert not any(seen)


def test_a_student_of_another_shape_learns_without_labels(student, digits_network, data):
    result, record = afina.distill(digits_network, student, unlabelled=data, epochs=12, learning_rate=0.1)
    assert evaluate(result, data).value > 0.8
    assert record.step.technique == "distill"
    assert record.after["quality"] > 0.8


def test_unlabelled_images_teach_and_labelled_ones_judge(student, digits_network, data):
    result, record = afina.distill(digits_network, student, data, unlabelled=data, epochs=1, learning_rate=0.1)
    assert record.after["quality"] == pytest.approx(evaluate(result, data).value)


def test_a_teacher_with_other_outputs_is_refused(student, digits_network):
    other = Network(student.module, student.input, TaskSpec("classification", tuple("abcdefghij")))
    with pytest.raises(InputError, match="labels differs"):
        fit(other, open_data("digits", seed=0).without_labels(), FitConfig(epochs=1), teacher=digits_network)


def test_no_images_at_all_is_refused(student, digits_network):
    with pytest.raises(InputError, match="no images to learn from"):
        afina.distill(digits_network, student)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"feature_weight": -1.0}, "at least 0"),
        ({"features": "auto", "feature_weight": 0.0}, "all their weights are 0"),
    ],
)
def test_wrong_weights_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        FitConfig(**options)
