"""Networks that write into tensors compute what their module does; where it can be, nothing is written any more."""

import pytest
import torch
from conftest import only
from torch import nn

from afina.errors import Unsupported
from afina.graph import Network, capture
from afina.graph.writing import remove_writes, written
from afina.types import InputSpec, TaskSpec


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)
        self.register_buffer("table", torch.linspace(-1, 1, 64).reshape(8, 8))

    def forward(self, x):
        return self.head(self.change(x.mean(1)).flatten(1))


class MaskInPieces(_Head):
    """As windows that are shifted have it."""

    def change(self, x):
        mask = x.new_zeros(8, 8)
        for count, rows in enumerate((slice(0, 3), slice(3, -2), slice(-2, None))):
            mask[rows, 1:5] = count
        mask = mask.view(2, 4, 8).permute(1, 0, 2).reshape(8, 8)
        return x + mask.masked_fill(mask != 0, -3.0)


class OnesTimesTwo(_Head):
    def change(self, x):
        ones = torch.ones(8, 8)
        ones[2:4] += 1
        ones.mul_(2.0)
        return x * ones


class CopiedOver(_Head):
    """As attention with relative positions has it."""

    def change(self, x):
        scores = x @ x.transpose(1, 2)
        scores[:, :, :] = scores + self.table
        return scores.softmax(2)


class ReadBetween(_Head):
    def change(self, x):
        mask = x.new_zeros(8, 8)
        mask[1:3] = 2.0
        x = x + mask
        mask[4:] = 1.0
        return x * mask


class ReadThroughAView(_Head):
    def change(self, x):
        mask = x.new_full((8, 8), 0.5)
        row = mask[4] * 3
        mask[4] = 7.0
        return x + mask + row


class CopiedBetween(_Head):
    """`reshape` copies what lies transposed: the copy keeps the values of before."""

    def change(self, x):
        mask = x.new_zeros(8, 8)
        mask[1] = 1.0
        copy = mask.t().reshape(8, 8)
        mask[2] = 5.0
        return x + copy * mask


class WrittenUnseen(_Head):
    """Dropout gives what it reads where it does nothing, and does not say so."""

    def change(self, x):
        mask = x.new_zeros(8, 8)
        mask[1] = 1.0
        nn.functional.dropout(mask, 0.5, False).add_(3.0)
        return x + mask


class CopiedOverUnseen(_Head):
    def change(self, x):
        scores = x @ x.transpose(1, 2)
        same = nn.functional.dropout(scores, 0.5, False)
        scores[:, :, :] = scores * 2
        return scores + same


class FilledByTheImage(_Head):
    def change(self, x):
        mask = torch.zeros(8, 8)
        mask[2] = x.mean((0, 1))
        return x + mask


class CopiedOverAPart(_Head):
    def change(self, x):
        scores = x @ x.transpose(1, 2)
        scores[:, 2:] = scores[:, 2:] * 3
        return scores


class OldValuesThroughAView(_Head):
    """What is read after it was overwritten is the new value, also through a view of before."""

    def change(self, x):
        scores = x @ x.transpose(1, 2)
        first = scores[:, :4]
        scores[:, :, :] = scores * 2
        return scores + torch.cat((first, first), 1)


class SourceChangesLater(_Head):
    def change(self, x):
        scores, doubled = x @ x.transpose(1, 2), x * 2
        scores[:, :, :] = doubled
        doubled += 5
        return scores + doubled


class CopiedIntoTheImage(_Head):
    def forward(self, x):
        own = x[:, 0]
        own[:, :, :] = x[:, 1] * 2
        return self.head((x.mean(1) + own).flatten(1))


class WeightInPieces(_Head):
    """As attention without a bias for its keys has it: the weight goes on learning, so a capture keeps the write."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.linspace(1, 2, 8))

    def change(self, x):
        bias = self.bias.clone()
        bias[2:5].zero_()
        return x + bias


FREE = (MaskInPieces, OnesTimesTwo, CopiedOver)
KEPT = (
    ReadBetween,
    ReadThroughAView,
    CopiedBetween,
    WrittenUnseen,
    CopiedOverUnseen,
    FilledByTheImage,
    CopiedOverAPart,
    OldValuesThroughAView,
    SourceChangesLater,
    CopiedIntoTheImage,
    WeightInPieces,
)


@pytest.mark.parametrize("kind", [*FREE, *KEPT], ids=lambda kind: kind.__name__)
def test_networks_that_write_compute_what_their_module_does(kind, tmp_path):
    module = kind().eval()
    network = capture(module, InputSpec(8, 8), TaskSpec("classification", ("a", "b", "c")))
    loaded = Network.load(network.save(tmp_path / "network.pt2"))
    for count in (1, 5):
        images = torch.randn(count, 3, 8, 8)
        with torch.no_grad():
            wanted = module(images.clone())
            assert torch.equal(only(network(images.clone())), wanted)
            assert torch.equal(only(loaded(images.clone())), wanted)
    writes = [node for node in network.graph.nodes if written(node)]
    assert bool(writes) == (kind in KEPT)


@pytest.mark.parametrize("kind", [*FREE, *KEPT], ids=lambda kind: kind.__name__)
def test_with_frozen_weights_only_those_are_stored_that_nothing_else_changes(kind):
    module = kind().eval()
    network = capture(module, InputSpec(8, 8), TaskSpec("classification", ("a", "b", "c")))
    remove_writes(network.module, frozen=True)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(only(network(images.clone())), module(images.clone()))
    writes = [node for node in network.graph.nodes if written(node)]
    assert bool(writes) == (kind in KEPT and kind is not WeightInPieces)


def test_what_is_drawn_by_chance_is_no_constant():
    class Noise(_Head):
        def change(self, x):
            return x + x.new_zeros(8, 8).normal_()

    with pytest.raises(Unsupported, match=r"draws random numbers[\s\S]*aten\.normal_"):
        capture(Noise().eval(), InputSpec(8, 8), TaskSpec("classification", ("a", "b", "c")))
