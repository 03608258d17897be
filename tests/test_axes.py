"""What can be removed from a graph, and that removing it does what it says.

The main property: a network without some units answers as the original does with the weights that read those
units set to zero.
"""

import copy
import time
from collections.abc import Callable

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from afina.errors import InputError
from afina.graph.axes import Axis, analyse
from afina.graph.network import Network, capture
from afina.graph.propagate import attribute
from afina.graph.surgery import remove
from afina.types import InputSpec, TaskSpec

TASK = TaskSpec("classification", ("a", "b", "c"))


class Net(nn.Module):
    """Layers by name and a forward given as a function of the module and the image."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def network_of(module: nn.Module, size: int = 8) -> Network:
    """Captured, with norms and biases far from their neutral values, so that a mistake shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            noise = torch.rand(tensor.shape, generator=generator)
            if "running_var" in name or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.copy_(0.5 + noise)
            elif tensor.ndim == 1:
                tensor.copy_(noise - 0.5)
            else:
                tensor.copy_((noise - 0.5) * 4 / tensor[0].numel() ** 0.5)
    return capture(module, InputSpec(size, size), TASK)


def half(axes: tuple[Axis, ...], seed: int = 0) -> dict[Axis, list[int]]:
    """Half of the units of each axis, chosen by chance; of crossing axes one after the other."""
    generator = torch.Generator().manual_seed(seed)
    return {a: torch.randperm(a.size, generator=generator)[: max(a.size // 2, 1)].sort()[0].tolist() for a in axes}


def zeroed(network: Network, keep: dict[Axis, list[int]]) -> Network:
    """The network with the weights that read the other units set to zero."""
    twin = network.copy()
    with torch.no_grad():
        for axis, units in keep.items():
            dropped = torch.ones(axis.size, dtype=torch.bool)
            dropped[units] = False
            for member in axis.members:
                if member.role == "consumer":
                    number = torch.from_numpy(member.units)
                    gone = (number >= 0) & dropped[number.clamp(min=0)]
                    attribute(twin.module, member.name).movedim(member.dim, 0)[gone] = 0
    return twin


def assert_removal_is_zeroing(network: Network, keep: dict[Axis, list[int]] | None = None) -> Network:
    keep = half(tuple(a for a in analyse(network).free if not a.normalised)) if keep is None else keep
    assert keep
    pruned = remove(network, keep)
    images = network.example(3)
    with network.inference(), pruned.inference():
        whole, expected, got = network(images), zeroed(network, keep).eval()(images), pruned(images)
    scale = max(float(expected.abs().max()), 1e-3)
    torch.testing.assert_close(got / scale, expected / scale, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(whole / scale, expected / scale, atol=1e-4), "the units made no difference"
    assert count(pruned) < count(network)
    return pruned


def count(network: Network) -> int:
    return sum(p.numel() for p in network.module.parameters())


def by_name(network: Network, name: str) -> Axis:
    return next(axis for axis in analyse(network).free if axis.name == name)


def chain() -> nn.Module:
    def forward(m, x):
        x = F.max_pool2d(F.relu(m.bn(m.conv1(x))), 2)
        return m.fc(F.dropout(F.silu(m.conv2(x)), 0.1, m.training).mean((2, 3)))

    return Net(
        forward,
        conv1=nn.Conv2d(3, 8, 3, padding=1),
        bn=nn.BatchNorm2d(8),
        conv2=nn.Conv2d(8, 12, 3),
        fc=nn.Linear(12, 3),
    )


def residual() -> nn.Module:
    def forward(m, x):
        x = F.relu(m.stem(x))
        x = F.relu(x + m.b(F.relu(m.a(x))))
        x = torch.add(m.down(x), m.d(F.relu(m.c(x))))
        return m.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    conv = {
        "a": nn.Conv2d(8, 6, 3, padding=1),
        "b": nn.Conv2d(6, 8, 3, padding=1),
        "c": nn.Conv2d(8, 4, 3, padding=1),
        "d": nn.Conv2d(4, 10, 3, padding=1, stride=2),
        "down": nn.Conv2d(8, 10, 1, stride=2),
    }
    return Net(forward, stem=nn.Conv2d(3, 8, 3, padding=1), fc=nn.Linear(10, 3), **conv)


def depthwise() -> nn.Module:
    def forward(m, x):
        x = F.hardtanh(m.dw(F.relu6(m.expand(x))), 0, 6)
        return m.fc(F.hardswish(m.twice(m.project(x))).mean((2, 3)))

    return Net(
        forward,
        expand=nn.Conv2d(3, 8, 1),
        dw=nn.Conv2d(8, 8, 3, groups=8, padding=1),
        project=nn.Conv2d(8, 6, 1),
        twice=nn.Conv2d(6, 12, 3, groups=6),
        fc=nn.Linear(12, 3),
    )


def grouped() -> nn.Module:
    def forward(m, x):
        x = F.relu(m.bn(m.mid(F.relu(m.first(x)))))
        return m.fc(m.last(x).mean((2, 3)))

    return Net(
        forward,
        first=nn.Conv2d(3, 12, 1),
        mid=nn.Conv2d(12, 16, 3, groups=4),
        bn=nn.BatchNorm2d(16),
        last=nn.Conv2d(16, 6, 1),
        fc=nn.Linear(6, 3),
    )


def squeeze_excitation() -> nn.Module:
    def forward(m, x):
        x = F.hardswish(m.conv(x))
        gate = F.hardsigmoid(m.fc2(F.relu(m.fc1(F.adaptive_avg_pool2d(x, 1)))))
        return m.fc(m.out(x * gate).mean((2, 3)))

    return Net(
        forward,
        conv=nn.Conv2d(3, 8, 3),
        fc1=nn.Conv2d(8, 4, 1),
        fc2=nn.Conv2d(4, 8, 1),
        out=nn.Conv2d(8, 6, 1),
        fc=nn.Linear(6, 3),
    )


def flattened() -> nn.Module:
    def forward(m, x):
        x = F.max_pool2d(F.relu(m.conv(x)), 2)
        x = F.relu(m.fc1(x.reshape(x.shape[0], 8 * 4 * 4)))
        return m.fc2(x)

    return Net(forward, conv=nn.Conv2d(3, 8, 3, padding=1), fc1=nn.Linear(128, 10), fc2=nn.Linear(10, 3))


def concatenated() -> nn.Module:
    def forward(m, x):
        x = m.stem(x)
        x = torch.cat([x, m.a(F.relu(m.bn1(x)))], 1)
        x = torch.cat([x, m.b(F.relu(m.bn2(x)))], 1)
        return m.fc(m.last(x).mean((2, 3)))

    return Net(
        forward,
        stem=nn.Conv2d(3, 6, 3, padding=1),
        bn1=nn.BatchNorm2d(6),
        a=nn.Conv2d(6, 4, 3, padding=1),
        bn2=nn.BatchNorm2d(10),
        b=nn.Conv2d(10, 4, 3, padding=1),
        last=nn.Conv2d(14, 8, 1),
        fc=nn.Linear(8, 3),
    )


def padded_shortcut() -> nn.Module:
    def forward(m, x):
        x = F.relu(m.stem(x))
        x = F.relu(x + m.a(x))
        x = F.relu(F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 4)) + m.b2(F.relu(m.b1(x))))
        x = F.relu(x + m.c(x))
        return m.fc(x.mean(dim=(2, 3)))

    convs = {
        "a": nn.Conv2d(8, 8, 3, padding=1),
        "b1": nn.Conv2d(8, 14, 3, padding=1, stride=2),
        "b2": nn.Conv2d(14, 14, 3, padding=1),
        "c": nn.Conv2d(14, 14, 3, padding=1),
    }
    return Net(forward, stem=nn.Conv2d(3, 8, 3, padding=1), fc=nn.Linear(14, 3), **convs)


def transposed() -> nn.Module:
    def forward(m, x):
        x = F.relu(m.up(F.relu(m.conv(x))))
        x = F.interpolate(F.relu(m.grouped(x)), scale_factor=0.5)
        return m.fc(m.last(x).mean((2, 3)))

    return Net(
        forward,
        conv=nn.Conv2d(3, 6, 3, stride=2),
        up=nn.ConvTranspose2d(6, 8, 2, stride=2),
        grouped=nn.ConvTranspose2d(8, 12, 2, groups=4),
        last=nn.Conv2d(12, 6, 1),
        fc=nn.Linear(6, 3),
    )


def split_and_permuted() -> nn.Module:
    def forward(m, x):
        a, b = m.conv(x).chunk(2, dim=1)
        x = a * torch.sigmoid(b) + m.scale
        x = m.mix(x.permute(0, 2, 3, 1)).transpose(1, -1)
        c, d = x.split([4, 6], dim=1)
        x = torch.cat([d, F.glu(c, dim=1), x[:, 1:5]], 1)
        return m.fc(m.last(x).mean((2, 3)))

    net = Net(
        forward,
        conv=nn.Conv2d(3, 12, 3),
        mix=nn.Linear(6, 10),
        last=nn.Conv2d(12, 6, 1),
        fc=nn.Linear(6, 3),
    )
    net.scale = nn.Parameter(torch.randn(6, 1, 1))
    return net


def other_norms() -> nn.Module:
    def forward(m, x):
        x = F.relu(m.group(m.conv(x)))
        x = F.prelu(m.instance(m.mid(x)), m.slope)
        return m.fc(m.last(x).mean((2, 3)))

    net = Net(
        forward,
        conv=nn.Conv2d(3, 12, 3),
        group=nn.GroupNorm(4, 12),
        mid=nn.Conv2d(12, 8, 3),
        instance=nn.InstanceNorm2d(8, affine=True),
        last=nn.Conv2d(8, 6, 1),
        fc=nn.Linear(6, 3),
    )
    net.slope = nn.Parameter(torch.rand(8))
    return net


def other_ranks() -> nn.Module:
    def forward(m, x):
        x = F.relu(m.three(x.unsqueeze(2).expand(-1, -1, 2, -1, -1))).amax(2)
        x = F.relu(m.one(x.flatten(2))).mean(-1)
        return m.fc(x)

    return Net(forward, three=nn.Conv3d(3, 8, (2, 3, 3)), one=nn.Conv1d(8, 6, 3), fc=nn.Linear(6, 3))


def shuffled_pixels() -> nn.Module:
    def forward(m, x):
        return m.fc(m.last(F.pixel_shuffle(m.conv(x), 2)).mean((2, 3)))

    return Net(forward, conv=nn.Conv2d(3, 24, 3), last=nn.Conv2d(6, 8, 1), fc=nn.Linear(8, 3))


SMALL = [
    chain,
    residual,
    depthwise,
    grouped,
    squeeze_excitation,
    flattened,
    concatenated,
    padded_shortcut,
    transposed,
    split_and_permuted,
    other_norms,
    other_ranks,
    shuffled_pixels,
]


@pytest.mark.parametrize("make", SMALL, ids=lambda make: make.__name__)
def test_removing_units_is_zeroing_what_reads_them(make):
    network = network_of(make())
    axes = analyse(network)
    assert not axes.unknown
    pruned = assert_removal_is_zeroing(network)
    # What is left is whole: it can be pruned again, and trains.
    assert_removal_is_zeroing(pruned)
    loss = F.cross_entropy(pruned.train()(pruned.example(4)), torch.tensor([0, 1, 2, 0]))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in pruned.module.parameters())


@pytest.mark.parametrize("make", [chain, grouped, padded_shortcut, split_and_permuted], ids=lambda make: make.__name__)
def test_each_axis_can_be_removed_on_its_own(make):
    network = network_of(make())
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


def test_the_output_and_the_input_of_a_network_are_fixed():
    network = network_of(chain())
    axes = analyse(network)
    assert {axis.name: axis.reason for axis in axes.fixed} == {"fc": "reaches the network's output"}
    assert all(not (m.name == "conv1.weight" and m.dim == 1) for axis in axes.free for m in axis.members)


def test_an_axis_says_which_layers_make_and_read_it():
    axis = by_name(network_of(chain()), "conv1")
    assert axis.size == 8
    assert axis.producers == ("conv1",)
    assert axis.consumers == ("conv2",)
    shrinks = {(m.name, m.dim) for m in axis.members}
    norm = {(f"bn.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")}
    assert shrinks == {("conv1.weight", 0), ("conv1.bias", 0), ("conv2.weight", 1)} | norm


def test_a_flattened_channel_owns_a_block_of_columns():
    axis = by_name(network_of(flattened()), "conv")
    columns = next(m for m in axis.members if m.name == "fc1.weight").units
    assert columns.tolist() == [channel for channel in range(8) for _ in range(16)]


def test_a_padded_shortcut_ties_the_narrow_stage_to_the_middle_of_the_wide_one():
    network = network_of(padded_shortcut())
    wide = {a.name: a.size for a in analyse(network).free if "b2" in a.producers}
    assert wide == {"stem, a and 2 more": 8, "b2, c": 6}
    narrow = by_name(network, "stem, a and 2 more")
    b2 = next(m for m in narrow.members if m.name == "b2.weight" and m.dim == 0).units
    assert b2.tolist() == [-1, -1, 0, 1, 2, 3, 4, 5, 6, 7, -1, -1, -1, -1]
    pruned = remove(network, {narrow: [0, 1, 2], by_name(network, "b2, c"): [1, 2, 3, 5]})
    pads = [node.args[1] for node in pruned.graph.nodes if "pad" in str(node.target)]
    assert [amounts[-2:] for amounts in pads] == [[1, 3]]


def test_a_grouped_convolution_offers_whole_groups_and_channels_of_every_group():
    network = network_of(grouped())
    groups, channels = by_name(network, "first, mid"), by_name(network, "first")
    assert (groups.size, channels.size) == (4, 3)
    assert groups.crosses(channels)
    assert channels.crosses(groups)
    pruned = remove(network, {groups: [0, 2, 3], channels: [1, 2]})
    convolution = next(n for n in pruned.graph.nodes if n.args and len(n.args) > 6)
    assert convolution.args[6] == 3
    assert attribute(pruned.module, "mid.weight").shape == (12, 2, 3, 3)


def test_a_depthwise_convolution_shrinks_its_groups():
    network = network_of(depthwise())
    pruned = remove(network, {by_name(network, "expand, dw"): [0, 5, 6]})
    assert attribute(pruned.module, "dw.weight").shape == (3, 1, 3, 3)
    assert attribute(pruned.module, "project.weight").shape == (6, 3, 1, 1)


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
    assert pruned(pruned.example()).shape == (2, 3)


def test_an_op_that_is_not_understood_fixes_what_reaches_it_and_is_named():
    def forward(m, x):
        x = F.local_response_norm(m.a(x), 2)
        return m.fc(F.relu(m.c(m.b(x))).mean((2, 3)).sort(1)[0])

    convs = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(8, 8, 3), "c": nn.Conv2d(8, 6, 3)}
    axes = analyse(network_of(Net(forward, fc=nn.Linear(6, 3), **convs)))
    assert [axis.name for axis in axes.free] == ["b"]
    assert "c" in {axis.name for axis in axes.fixed}
    assert any(op.startswith("sort (node ") for op in axes.unknown)
    reasons = {axis.name: axis.reason for axis in axes.fixed}
    assert "not understood" in reasons["c"]
    assert "sort" in reasons["c"]


@pytest.mark.parametrize("along", ["softmax", "select"])
def test_what_runs_along_an_axis_fixes_it(along):
    def forward(m, x):
        x = m.conv(x)
        match along:
            case "softmax":
                x = x.softmax(1)
            case "select":
                x = x * x[:, 3:4] * x[:, 2].unsqueeze(1)
        return m.fc(m.last(x).mean((2, 3)))

    net = Net(forward, conv=nn.Conv2d(3, 8, 3), last=nn.Conv2d(8, 6, 1), fc=nn.Linear(6, 3))
    axes = analyse(network_of(net))
    assert [axis.name for axis in axes.free] == ["last"]
    assert next(a for a in axes.fixed if a.name == "conv").reason


def test_attention_can_lose_heads_and_head_dimensions():
    block = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)

    def forward(m, x):
        tokens = m.patch(x).flatten(2).transpose(1, 2)
        q, k, v = m.q(tokens), m.k(tokens), m.v(tokens)
        q, k, v = (t.reshape(t.shape[0], 16, 4, 6).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return m.fc(m.proj(mixed.transpose(1, 2).flatten(2)).mean(1))

    del block
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
        torch.testing.assert_close(pruned(network.example()), twin(network.example()), atol=1e-5, rtol=1e-5)


def test_units_that_do_not_exist_are_refused():
    network = network_of(chain())
    axis = by_name(network, "conv1")
    for units in ([], [8], [-1]):
        with pytest.raises(InputError, match="conv1"):
            remove(network, {axis: units})
    with pytest.raises(InputError, match="not a free axis"):
        remove(network_of(residual()), {axis: [0]})


class Random(nn.Module):
    """A random graph: each step takes one or two of the feature maps made so far."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.steps, self.layers, widths = steps, nn.ModuleList(), [8]
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        for kind, pick, width in steps:
            channels = widths[pick % len(widths)]
            layer, out = self._layer(kind, channels, width)
            self.layers.append(layer)
            widths.append(out if kind != "cat" else channels + widths[-1])
        self.fc = nn.Linear(sum(widths[-2:]) * 16, 3)

    @staticmethod
    def _layer(kind: str, channels: int, width: int) -> tuple[nn.Module, int]:
        match kind:
            case "conv":
                return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width)), width
            case "group":
                return nn.Conv2d(channels, 2 * channels, 3, padding=1, groups=2), 2 * channels
            case "depth":
                return nn.Conv2d(channels, channels, 3, padding=1, groups=channels), channels
            case "gate":
                gate = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1), nn.Sigmoid())
                return gate, channels
            case "add":
                return nn.Conv2d(channels, channels, 1), channels
            case "norm":
                return nn.GroupNorm(2, channels), channels
            case "pad":
                return nn.Conv2d(channels, channels + 6, 1), channels + 6
            case "cut":
                return nn.Identity(), channels - 2
        return nn.Identity(), channels

    def forward(self, x: Tensor) -> Tensor:
        maps = [F.relu(self.stem(x))]
        for (kind, pick, _), layer in zip(self.steps, self.layers, strict=True):
            x = maps[pick % len(maps)]
            match kind:
                case "gate":
                    x = x * layer(F.adaptive_avg_pool2d(x, 1))
                case "add":
                    x = x + layer(x)
                case "pad":
                    x = F.pad(x, (0, 0, 0, 0, 2, 4)) + layer(x)
                case "cut":
                    x = torch.cat([x[:, 3:], x[:, :1]], 1)
                case "cat":
                    x = torch.cat([x, maps[-1]], 1)
                case _:
                    x = layer(x)
            maps.append(F.hardswish(x))
        x = torch.cat(maps[-2:], 1)
        return self.fc(F.adaptive_avg_pool2d(x, 4).flatten(1))


# Without shrinking: a counterexample is small as it is, and shrinking one takes minutes.
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["conv", "group", "depth", "gate", "add", "norm", "pad", "cut", "cat"]),
            st.integers(0, 20),
            st.sampled_from([6, 8, 12]),
        ),
        min_size=2,
        max_size=7,
    ),
    st.integers(0, 100),
)
def test_in_random_graphs_removing_is_zeroing(steps, seed):
    network = network_of(Random(steps))
    axes = analyse(network)
    assert not axes.unknown
    keep = half(tuple(axis for axis in axes.free if not axis.normalised), seed)
    if keep:
        images = network.example(2)
        try:
            pruned = remove(network, keep)
        except InputError as error:
            assert "Nothing would be left" in str(error)
            return
        with network.inference(), pruned.inference():
            expected, got = zeroed(network, keep)(images), pruned(images)
        scale = max(float(expected.abs().max()), 1e-3)
        torch.testing.assert_close(got / scale, expected / scale, atol=5e-5, rtol=5e-5)


def test_a_network_of_152_layers_is_analysed_in_seconds():
    network = capture(
        torchvision.models.resnet152(weights=None, num_classes=3),
        InputSpec(64, 64),
        TASK,
    )
    start = time.process_time()
    axes = analyse(network)
    assert time.process_time() - start < 5
    assert not axes.unknown
    assert len(axes.free) == 105
