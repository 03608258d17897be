"""Removing units: what is left answers as the whole network does without them, by two other ways to compute it."""

import copy

import pytest
import torch
from conftest import only
from small_networks import (
    SMALL,
    Net,
    assert_removal_is_masking,
    assert_removal_is_zeroing,
    by_name,
    chain,
    grouped,
    half,
    known,
    network_of,
    padded_shortcut,
    products,
    recurrent,
    residual,
    split_and_permuted,
    vision_transformer,
    windows,
)
from torch import nn
from torch.nn import functional as F

from afina.errors import InputError
from afina.graph.axes import Analysis, analyse
from afina.graph.network import Network
from afina.graph.stored import attribute
from afina.graph.surgery import masks, remove


@pytest.mark.parametrize("make", SMALL, ids=lambda make: make.__name__)
def test_removing_units_is_zeroing_what_reads_them(make):
    network = known(make)
    assert not analyse(network).unknown
    pruned = assert_removal_is_zeroing(network)
    # What is left is whole: it can be pruned again.
    assert_removal_is_zeroing(pruned)


@pytest.mark.parametrize("make", SMALL, ids=lambda make: make.__name__)
def test_any_axes_can_be_removed_together_and_what_is_left_trains_and_is_pruned_again(make):
    pruned = assert_removal_is_masking(known(make))
    assert_removal_is_masking(pruned)
    loss = F.cross_entropy(only(pruned.train()(pruned.example(4))), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pruned.module.parameters())


@pytest.mark.parametrize("make", [chain, grouped, padded_shortcut, split_and_permuted], ids=lambda make: make.__name__)
def test_each_axis_can_be_removed_on_its_own(make):
    network = known(make)
    for axis in analyse(network).free:
        remove_one = {axis: list(range(1, axis.size))} if axis.size > 1 else {axis: [0]}
        if axis.size > 1:
            assert_removal_is_zeroing(network, remove_one)


def test_the_original_is_left_as_it_was():
    network = network_of(residual())
    before, weights = network.module.code, copy.deepcopy(network.module.state_dict())
    remove(network, half(analyse(network).free))
    assert network.module.code == before
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.module.state_dict().items())


def test_weights_used_twice_shrink_once():
    def forward(m, x):
        x = m.stem(x)
        return m.fc(m.last(F.relu(m.block(F.relu(m.block(x))))).mean((2, 3)))

    net = Net(
        forward,
        stem=nn.Conv2d(3, 8, 1),
        block=nn.Conv2d(8, 8, 3, padding=1),
        last=nn.Conv2d(8, 4, 1),
        fc=nn.Linear(4, 3),
    )
    network = network_of(net)
    axis = by_name(network, "stem, block")
    pruned = remove(network, {axis: [0, 2, 4]})
    assert attribute(pruned.module, "block.weight").shape == (3, 3, 3, 3)
    assert only(pruned(pruned.example())).shape == (2, 3)


def test_attention_can_lose_heads_and_head_dimensions():
    def forward(m, x):
        tokens = m.patch(x).flatten(2).transpose(1, 2)
        q, k, v = m.q(tokens), m.k(tokens), m.v(tokens)
        q, k, v = (t.reshape(t.shape[0], 16, 4, 6).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return m.fc(m.proj(mixed.transpose(1, 2).flatten(2)).mean(1))

    linear = {name: nn.Linear(10, 24) for name in "qkv"}
    net = Net(forward, patch=nn.Conv2d(3, 10, 2, stride=2), proj=nn.Linear(24, 8), fc=nn.Linear(8, 3), **linear)
    network = network_of(net)
    axes = analyse(network)
    assert {a.name: a.size for a in axes.free} == {"patch": 10, "q, k": 6, "q, k, v": 4, "v": 6, "proj": 8}
    assert_removal_is_zeroing(network, half([a for a in axes.free if a.name != "q, k"]))
    # Reading fewer query and key dimensions is zeroing them where they are made; the scale stays the original's.
    axis = by_name(network, "q, k")
    pruned, twin = remove(network, {axis: [0, 3, 4]}), network.copy()
    with torch.no_grad():
        for member in axis.members:
            gone = torch.isin(torch.from_numpy(member.units), torch.tensor([1, 2, 5]))
            attribute(twin.module, member.name).movedim(member.dim, 0)[gone] = 0
    with twin.inference(), pruned.inference():
        torch.testing.assert_close(only(pruned(network.example())), only(twin(network.example())), atol=1e-5, rtol=1e-5)


def test_units_that_do_not_exist_are_refused():
    network = network_of(chain())
    axis = by_name(network, "conv1")
    for units in ([], [8], [-1]):
        with pytest.raises(InputError, match="conv1"):
            remove(network, {axis: units})
    with pytest.raises(InputError, match="not a free axis"):
        remove(network_of(residual()), {axis: [0]})


def test_the_scale_that_a_head_dimension_implies_stays_the_original_one():
    network = network_of(vision_transformer())
    axis = next(axis for axis in analyse(network).free if axis.kind == "head-dim")
    pruned = assert_removal_is_masking(network, {axis: [0, 2]})
    attention = next(n for n in pruned.graph.nodes if "scaled_dot_product" in str(n.target))
    assert attention.kwargs["scale"] == pytest.approx(6**-0.5)


def test_a_norm_over_removed_units_takes_its_statistics_over_those_that_are_left():
    def forward(m, x):
        return m.fc(F.layer_norm(m.conv(x).mean((2, 3)), (8,)))

    network = network_of(Net(forward, conv=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 3)))
    pruned = remove(network, {by_name(network, "conv"): [1, 4, 6]})
    weights, images = network.module.state_dict(), network.example()
    x = F.conv2d(images, weights["conv.weight"], weights["conv.bias"]).mean((2, 3))[:, [1, 4, 6]]
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = F.linear(x, weights["fc.weight"][:, [1, 4, 6]], weights["fc.bias"])
    with pruned.inference():
        torch.testing.assert_close(only(pruned(images)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spelled", ["mean", "var_mean", "norm", "amax", "logsumexp"])
def test_statistics_that_are_spelled_out_are_taken_over_the_units_that_are_left(spelled):
    def forward(m, x):
        x = m.conv(x)
        match spelled:
            case "mean":
                x = x - x.mean(1, keepdim=True)
            case "var_mean":
                var, mean = torch.var_mean(x, 1, keepdim=True)
                x = (x - mean) / (var + 1e-5).sqrt()
            case "norm":
                x = F.normalize(x, dim=1)
            case "amax":
                x = x * torch.sigmoid(x.amax(1, keepdim=True) - x.max(1, keepdim=True)[0].mean())
            case "logsumexp":
                x = x - x.logsumexp(1, keepdim=True)
        return m.fc(m.last(x).mean((2, 3)))

    network = network_of(Net(forward, conv=nn.Conv2d(3, 8, 3), last=nn.Conv2d(8, 6, 1), fc=nn.Linear(6, 3)))
    assert by_name(network, "conv").normalised
    assert_removal_is_masking(network, {by_name(network, "conv"): [0, 3, 5]})


def test_numbers_that_the_graph_spells_out_are_recomputed():
    def forward(m, x):
        x = m.norm(m.conv(x)).permute(0, 2, 3, 1)
        x = F.layer_norm(x.reshape(x.shape[0], 36, 12), (12,))
        a, b = x.split([4, 8], dim=-1)
        x = torch.cat([a * m.gate(b), b], -1).unflatten(-1, (3, 4)).flatten(-2).expand(-1, 36, 12)
        return m.fc(x.mean(1).view(-1, 12).repeat(1, 2))

    norm, gate = nn.GroupNorm(3, 12), nn.Linear(8, 4)
    network = network_of(Net(forward, conv=nn.Conv2d(3, 12, 3), norm=norm, gate=gate, fc=nn.Linear(24, 3)))
    for axis in analyse(network).free:
        if axis.size > 1:
            assert_removal_is_masking(network, {axis: list(range(1, axis.size))})


def test_what_is_broadcast_against_size_one_stays_so():
    def forward(m, x):
        x = m.conv(x)
        gate = m.one(x).sigmoid() + m.single + torch.zeros(1, 8, 1, 1)
        scale = m.row.expand(8, 1).reshape(8, 1, 1) * torch.ones(1, 1, 1, 1).repeat(1, 8, 1, 1)
        return m.fc((x * gate * scale).mean((2, 3)))

    net = Net(forward, conv=nn.Conv2d(3, 8, 3), one=nn.Conv2d(8, 1, 1), fc=nn.Linear(8, 3))
    net.single, net.row = nn.Parameter(torch.rand(1, 1, 1)), nn.Parameter(torch.rand(1, 1) + 0.5)
    network = network_of(net)
    axis = by_name(network, "conv")
    assert_removal_is_zeroing(network, {axis: [1, 2, 6]})
    assert_removal_is_masking(remove(network, {axis: [1, 2, 6]}))
    assert_removal_is_masking(network, {axis: [4]})


def test_ops_that_write_in_place_and_through_views_are_followed():
    def forward(m, x):
        x = m.conv(x)
        x.mul_(m.scale)
        x[:, :3] += m.shift
        x[:, 3:5].zero_()
        head = x[:, 5:]
        head.clamp_(min=-0.1)
        return m.fc(m.last(F.relu_(x)).mean((2, 3)))

    net = Net(forward, conv=nn.Conv2d(3, 8, 3), last=nn.Conv2d(8, 6, 1), fc=nn.Linear(6, 3))
    net.scale, net.shift = nn.Parameter(torch.rand(8, 1, 1)), nn.Parameter(torch.rand(3, 1, 1))
    network = network_of(net)
    free = [axis for axis in analyse(network).free if "conv" in axis.producers]
    assert sum(axis.size for axis in free) == 8
    assert_removal_is_masking(network, {axis: list(range(1, axis.size)) for axis in free if axis.size > 1})


def test_buffers_and_constants_that_the_capture_lifted_shrink_too():
    constant = torch.rand(8, 1, 1)

    def forward(m, x):
        x = m.conv(x) * constant + m.shift.view(1, 8, 1, 1)
        x = torch.where(m.mask.view(8, 1, 1), x, x * 0.5)[:, [7, 0, 1, 2, 3, 4, 5, 6]]
        return m.fc(m.last(x).mean((2, 3)))

    net = Net(forward, conv=nn.Conv2d(3, 8, 3), last=nn.Conv2d(8, 6, 1), fc=nn.Linear(6, 3))
    net.register_buffer("shift", torch.randn(8))
    net.register_buffer("mask", torch.rand(8) > 0.5)
    network = network_of(net)
    pruned = assert_removal_is_zeroing(network, {by_name(network, "conv"): [0, 3, 4, 7]})
    assert attribute(pruned.module, "shift").shape == attribute(pruned.module, "mask").shape == (4,)
    assert_removal_is_masking(pruned)


def test_masks_say_which_positions_of_each_weight_stay():
    network = network_of(chain())
    found = masks(network, {by_name(network, "conv1"): [0, 2]})
    stays = [True, False, True] + [False] * 5
    assert [mask.tolist() for mask in found["conv1.weight"] if mask is not None] == [stays]
    assert found["conv2.weight"][0] is None
    assert found["conv2.weight"][1].tolist() == found["bn.running_mean"][0].tolist() == stays
    assert all(mask is None for mask in found["fc.weight"])


def test_an_analysis_at_hand_serves_any_number_of_removals():
    network = network_of(vision_transformer())
    analysis = Analysis(network)
    images = network.example()
    for seed in range(3):
        keep = half(analysis.axes.free, seed)
        once, again = remove(network, keep), remove(network, keep, analysis=analysis)
        with once.inference(), again.inference():
            assert torch.equal(only(once(images)), only(again(images)))


def test_a_pruned_network_is_saved_and_loaded_with_its_new_constants(tmp_path):
    for make in (products, windows, recurrent):
        pruned = assert_removal_is_masking(known(make))
        again = Network.load(pruned.save(tmp_path / "network.pt2"))
        with pruned.inference(), again.inference():
            assert torch.equal(only(pruned(pruned.example())), only(again(pruned.example())))
