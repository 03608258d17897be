"""What `analyse` finds in a graph: which units there are, what goes with them, what stays, and why."""

import time

import pytest
import torchvision
from small_networks import (
    TASK,
    Net,
    by_name,
    chain,
    depthwise,
    encoder_layer,
    flattened,
    grouped,
    known,
    network_of,
    other_norms,
    padded_shortcut,
    shuffled_channels,
    vision_transformer,
    windows,
)
from torch import nn
from torch.nn import functional as F

from afina.errors import InputError
from afina.graph import capture
from afina.graph.axes import Analysis, analyse
from afina.graph.stored import attribute
from afina.graph.surgery import remove
from afina.types import InputSpec


def test_the_output_and_the_input_of_a_network_are_fixed():
    network = known(chain)
    axes = analyse(network)
    assert {axis.name: axis.reason for axis in axes.fixed} == {"fc": "it reaches the network's output"}
    assert all(not (m.name == "conv1.weight" and m.dim == 1) for axis in axes.free for m in axis.members)


def test_an_axis_says_which_layers_make_and_read_it():
    axis = by_name(known(chain), "conv1")
    assert axis.size == 8
    assert axis.producers == ("conv1",)
    assert axis.consumers == ("conv2",)
    shrinks = {(m.name, m.dim) for m in axis.members}
    norm = {(f"bn.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")}
    assert shrinks == {("conv1.weight", 0), ("conv1.bias", 0), ("conv2.weight", 1)} | norm


def test_a_flattened_channel_owns_a_block_of_columns():
    axis = by_name(known(flattened), "conv")
    columns = next(m for m in axis.members if m.name == "fc1.weight").units
    assert columns.tolist() == [channel for channel in range(8) for _ in range(16)]


def test_a_padded_shortcut_ties_the_narrow_stage_to_the_middle_of_the_wide_one():
    network = known(padded_shortcut)
    wide = {a.name: a.size for a in analyse(network).free if "b2" in a.producers}
    assert wide == {"stem, a and 2 more": 8, "b2, c": 6}
    narrow = by_name(network, "stem, a and 2 more")
    b2 = next(m for m in narrow.members if m.name == "b2.weight" and m.dim == 0).units
    assert b2.tolist() == [-1, -1, 0, 1, 2, 3, 4, 5, 6, 7, -1, -1, -1, -1]
    pruned = remove(network, {narrow: [0, 1, 2], by_name(network, "b2, c"): [1, 2, 3, 5]})
    pads = [node.args[1] for node in pruned.graph.nodes if "pad" in str(node.target)]
    assert [amounts[-2:] for amounts in pads] == [[1, 3]]


def test_a_grouped_convolution_offers_whole_groups_and_channels_of_every_group():
    network = known(grouped)
    groups, channels = by_name(network, "first, mid"), by_name(network, "first")
    assert (groups.size, channels.size) == (4, 3)
    assert groups.crosses(channels)
    assert channels.crosses(groups)
    pruned = remove(network, {groups: [0, 2, 3], channels: [1, 2]})
    convolution = next(n for n in pruned.graph.nodes if n.args and len(n.args) > 6)
    assert convolution.args[6] == 3
    assert attribute(pruned.module, "mid.weight").shape == (12, 2, 3, 3)


def test_a_depthwise_convolution_shrinks_its_groups():
    network = known(depthwise)
    pruned = remove(network, {by_name(network, "expand, dw"): [0, 5, 6]})
    assert attribute(pruned.module, "dw.weight").shape == (3, 1, 3, 3)
    assert attribute(pruned.module, "project.weight").shape == (6, 3, 1, 1)


def test_an_op_that_is_not_understood_fixes_what_reaches_it_and_is_named():
    def forward(m, x):
        x = F.local_response_norm(m.a(x), 2)
        return m.fc(F.relu(m.c(m.b(x))).mean((2, 3)).logcumsumexp(1))

    convs = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 8, 3), "c": nn.Conv2d(8, 6, 3)}
    axes = analyse(network_of(Net(forward, fc=nn.Linear(6, 3), **convs)))
    assert [axis.name for axis in axes.free] == ["b"]
    assert "c" in {axis.name for axis in axes.fixed}
    assert any(op.startswith("logcumsumexp (node ") for op in axes.unknown)
    reasons = {axis.name: axis.reason for axis in axes.fixed}
    assert "not understood" in reasons["c"]
    assert "logcumsumexp" in reasons["c"]


@pytest.mark.parametrize("along", ["softmax", "select", "convolution", "cumsum", "argmax"])
def test_what_runs_along_an_axis_fixes_it(along):
    def forward(m, x):
        x = m.conv(x)
        match along:
            case "softmax":
                x = x.softmax(1)
            case "select":
                x = x * x[:, 3:4] * x[:, 2].unsqueeze(1)
            case "convolution":
                x = x * m.gate(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
            case "cumsum":
                x = x.cumsum(1)
            case "argmax":
                x = x * x.argmax(1, keepdim=True)
        return m.fc(m.last(x).mean((2, 3)))

    gate = nn.Conv1d(1, 1, 3, padding=1)
    net = Net(forward, conv=nn.Conv2d(3, 8, 3), last=nn.Conv2d(8, 6, 1), fc=nn.Linear(6, 3), gate=gate)
    axes = analyse(network_of(net))
    assert [axis.name for axis in axes.free] == ["last"]
    assert next(a for a in axes.fixed if a.name == "conv").reason


def test_attention_has_axes_for_heads_head_dimension_embedding_and_hidden_units():
    for make, sizes in ((vision_transformer, (4, 6, 20, 32)), (encoder_layer, (4, 4, 16, 24))):
        axes = analyse(known(make))
        assert not axes.unknown
        assert {a.kind: a.size for a in axes.free} == dict(
            zip(("heads", "head-dim", "embedding", "hidden"), sizes, strict=True)
        )


def test_heads_reach_a_table_of_relative_positions_through_its_constant_index():
    heads = next(axis for axis in analyse(known(windows)).free if axis.kind == "heads")
    assert {("table", 1), ("qkv.weight", 0), ("proj.weight", 1)} <= {(m.name, m.dim) for m in heads.members}


def test_only_what_statistics_are_taken_over_is_normalised():
    found = {axis.kind: axis.normalised for axis in analyse(known(vision_transformer)).free}
    assert found == {"heads": False, "head-dim": False, "embedding": True, "hidden": False}
    groups = {axis.name: (axis.kind, axis.normalised) for axis in analyse(known(other_norms)).free}
    assert groups["conv"] == ("groups", False)
    assert groups["conv #2"] == ("embedding", True)


def test_a_grouped_convolution_has_an_axis_of_groups_and_a_depthwise_one_of_channels():
    assert {a.name: a.kind for a in analyse(known(grouped)).free}["first, mid"] == "groups"
    assert {a.name: a.kind for a in analyse(known(depthwise)).free}["expand, dw"] == "channels"


def test_halves_that_are_interleaved_go_together():
    sizes = {axis.name: axis.size for axis in analyse(known(shuffled_channels)).free}
    assert sizes == {"left, right": 4, "left, right, unit1": 2, "left, right and 2 more": 2, "last": 8}


def test_an_analysis_of_another_network_is_refused():
    network, other = known(chain), network_of(chain())
    with pytest.raises(InputError, match="another network"):
        remove(network, {by_name(network, "conv1"): [0]}, analysis=Analysis(other))


def test_a_large_network_is_analysed_in_seconds_on_one_core():
    # As deep as ResNet-152, and narrower: 60 million weights would take longer to draw than to analyse.
    blocks = torchvision.models.resnet.Bottleneck
    module = torchvision.models.ResNet(blocks, [3, 8, 36, 3], num_classes=3, width_per_group=16)
    network = capture(module, InputSpec(64, 64), TASK)
    start = time.process_time()
    axes = analyse(network)
    assert time.process_time() - start < 5
    assert not axes.unknown
    assert len(axes.free) == 105
