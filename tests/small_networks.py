"""Small networks for the tests of axes and surgery, and the two things that a pruned network is held against."""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from conftest import only
from torch import Tensor, nn
from torch.nn import functional as F

from afina.graph import Network, capture
from afina.graph.axes import Analysis, Axis, analyse
from afina.graph.masking import masked_answer
from afina.graph.stored import attribute
from afina.graph.surgery import remove
from afina.types import InputSpec, TaskSpec

TASK = TaskSpec("classification", ("a", "b", "c"))
# A batch size that no dimension of the networks has.
IMAGES = 11


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


@functools.cache
def known(make: Callable[[], nn.Module]) -> Network:
    """One of the networks below, for tests that leave it as it is."""
    return network_of(make())


def noisy(network: Network, share: float = 0.02) -> Network:
    """Another network of the same structure: every weight is changed by noise of `share` of its layer's spread."""
    other, generator = network.copy(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.module.parameters():
            if parameter.ndim > 1:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(share * parameter.std() * noise)
    return other


def half(axes: Sequence[Axis], seed: int = 0) -> dict[Axis, list[int]]:
    """Half of the units of each axis, chosen by chance; of crossing axes one after the other."""
    generator = torch.Generator().manual_seed(seed)
    return {a: torch.randperm(a.size, generator=generator)[: max(a.size // 2, 1)].sort()[0].tolist() for a in axes}


def zeroed(network: Network, keep: Mapping[Axis, Sequence[int]]) -> Network:
    """The network with the weights that read the other units set to zero."""
    twin = network.copy()
    with torch.no_grad():
        for axis, units in keep.items():
            dropped = torch.ones(axis.size, dtype=torch.bool)
            dropped[list(units)] = False
            for member in axis.members:
                if member.role == "consumer":
                    number = torch.from_numpy(member.units)
                    gone = (number >= 0) & dropped[number.clamp(min=0)]
                    attribute(twin.module, member.name).movedim(member.dim, 0)[gone] = 0
    return twin


def is_zeroing(axis: Axis) -> bool:
    """Whether removing a unit is zeroing what reads it: no statistics over it, and it is read by weights alone."""
    return not axis.normalised and axis.kind != "head-dim"


def assert_removal_is_masking(network: Network, keep: Mapping[Axis, Sequence[int]] | None = None) -> Network:
    """Units of any free axes can be removed: statistics are then taken over the units that are left."""
    analysis = Analysis(network) if keep is None else None
    keep = half(analysis.axes.free) if keep is None else keep
    assert keep
    pruned, images = remove(network, keep, analysis=analysis), network.example(IMAGES)
    with pruned.inference():
        assert_close(only(pruned(images)), only(masked_answer(network, keep, images)))
    assert count(pruned) < count(network)
    return pruned


def assert_removal_is_zeroing(network: Network, keep: Mapping[Axis, Sequence[int]] | None = None) -> Network:
    """Removing units is zeroing the weights that read them, and makes a difference."""
    analysis = Analysis(network) if keep is None else None
    keep = half([axis for axis in analysis.axes.free if is_zeroing(axis)]) if keep is None else keep
    assert keep
    pruned, images = remove(network, keep, analysis=analysis), network.example(3)
    with network.inference(), pruned.inference():
        whole, expected, got = only(network(images)), only(zeroed(network, keep).eval()(images)), only(pruned(images))
    assert_close(got, expected)
    scale = max(float(expected.abs().max()), 1e-3)
    assert not torch.allclose(whole / scale, expected / scale, atol=1e-4), "the units made no difference"
    assert count(pruned) < count(network)
    return pruned


def assert_close(got: Tensor, expected: Tensor) -> None:
    scale = max(float(expected.abs().max()), 1e-3)
    torch.testing.assert_close(got / scale, expected / scale, atol=5e-5, rtol=5e-5)


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


def norm_first() -> nn.Module:
    def forward(m, x):
        x = m.stem(x)
        x = x + m.b(F.relu(m.b_norm(m.a(F.relu(m.a_norm(x))))))
        return m.fc(F.relu(m.norm(x)).mean((2, 3)))

    norms = {"a_norm": nn.BatchNorm2d(8), "b_norm": nn.BatchNorm2d(6), "norm": nn.BatchNorm2d(8)}
    conv = {"stem": nn.Conv2d(3, 8, 3, padding=1), "a": nn.Conv2d(8, 6, 3), "b": nn.Conv2d(6, 8, 3, padding=2)}
    return Net(forward, fc=nn.Linear(8, 3), **norms, **conv)


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


def vision_transformer() -> nn.Module:
    """Class token, position embedding, fused qkv, layer scale, MLP: as vision transformers are written."""

    def forward(m, x):
        x = m.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1) + m.position
        q, k, v = m.qkv(m.norm1(x)).reshape(x.shape[0], 17, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 17, 24)
        x = x + m.scale * m.proj(mixed)
        x = x + m.fc2(F.gelu(m.fc1(m.norm2(x))))
        return m.head(m.norm(x)[:, 0])

    linear = {"qkv": nn.Linear(20, 72), "proj": nn.Linear(24, 20), "fc1": nn.Linear(20, 32), "fc2": nn.Linear(32, 20)}
    norms = {name: nn.LayerNorm(20) for name in ("norm1", "norm2", "norm")}
    net = Net(forward, patch=nn.Conv2d(3, 20, 2, stride=2), head=nn.Linear(20, 3), **linear, **norms)
    net.token, net.position = nn.Parameter(torch.randn(1, 1, 20)), nn.Parameter(torch.randn(1, 17, 20))
    net.scale = nn.Parameter(torch.rand(20))
    return net


def encoder_layer() -> nn.Module:
    """`nn.MultiheadAttention` as torch writes it: one weight for q, k and v, heads folded into the batch."""

    def forward(m, x):
        return m.head(m.encoder(m.patch(x).flatten(2).transpose(1, 2)).mean(1))

    encoder = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
    return Net(forward, patch=nn.Conv2d(3, 16, 2, stride=2), encoder=encoder, head=nn.Linear(16, 3))


def windows() -> nn.Module:
    """Shifted windows of tokens with a table of relative positions, as Swin has them, and merged patches."""

    def forward(m, x):
        x = m.norm(m.patch(x).permute(0, 2, 3, 1))
        w = torch.roll(x, (-1, -1), (1, 2)).view(-1, 2, 2, 2, 2, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 12)
        q, k, v = m.qkv(w).reshape(w.shape[0], 4, 3, 3, 5).permute(2, 0, 3, 1, 4)
        bias = m.table[m.index.view(-1)].view(4, 4, 3).permute(2, 0, 1)
        attention = ((q * 5**-0.5) @ k.transpose(-2, -1) + bias).view(-1, 4, 3, 4, 4) + m.mask[None, :, None]
        mixed = (attention.view(-1, 3, 4, 4).softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 15)
        w = m.proj(mixed).view(-1, 2, 2, 2, 2, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 4, 12)
        x = x + torch.roll(w, (1, 1), (1, 2))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return m.head(m.reduce(m.merged(x)).mean((1, 2)))

    linear = {"qkv": nn.Linear(12, 45), "proj": nn.Linear(15, 12), "reduce": nn.Linear(48, 10, bias=False)}
    norms = {"norm": nn.LayerNorm(12), "merged": nn.LayerNorm(48)}
    net = Net(forward, patch=nn.Conv2d(3, 12, 2, stride=2), head=nn.Linear(10, 3), **linear, **norms)
    net.table = nn.Parameter(torch.randn(9, 3))
    net.register_buffer("index", torch.randint(0, 9, (4, 4)))
    net.register_buffer("mask", torch.where(torch.rand(4, 4, 4) > 0.3, 0.0, -100.0))
    return net


def shuffled_channels() -> nn.Module:
    """ShuffleNet's unit: half of the channels pass by, and both halves are interleaved."""

    def forward(m, x):
        x = torch.cat([m.left(x), m.right(x)], 1)
        for layer in (m.unit1, m.unit2):
            x = x.view(x.shape[0], 2, 8, 6, 6).transpose(1, 2).reshape(x.shape[0], 16, 6, 6)
            kept, changed = x.chunk(2, dim=1)
            x = torch.cat([kept, F.relu(layer(changed))], 1)
        return m.fc(m.last(F.channel_shuffle(x, 2)).mean((2, 3)))

    convs = {"left": nn.Conv2d(3, 8, 3), "right": nn.Conv2d(3, 8, 3)}
    units = {f"unit{n}": nn.Conv2d(8, 8, 1) for n in (1, 2)}
    return Net(forward, last=nn.Conv2d(16, 8, 1), fc=nn.Linear(8, 3), **convs, **units)


def recurrent() -> nn.Module:
    def forward(m, x):
        x, _ = m.lstm(m.patch(x).flatten(2).transpose(1, 2))
        x, _ = m.gru(x)
        return m.fc(x.mean(1))

    layers = {"lstm": nn.LSTM(8, 10, 2, batch_first=True, bidirectional=True), "gru": nn.GRU(20, 6, batch_first=True)}
    return Net(forward, patch=nn.Conv2d(3, 8, 4, stride=4), fc=nn.Linear(6, 3), **layers)


def standardised_weights() -> nn.Module:
    """Convolutions whose weights are standardised on the way, by a norm or by hand."""

    def forward(m, x):
        weight = m.b.weight
        mean, var = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), keepdim=True)
        x = F.relu(F.conv2d(x, _standardised(m.a.weight, m.gain), m.a.bias))
        x = F.relu(F.conv2d(x, (weight - mean) / (var + 1e-3).sqrt(), m.b.bias))
        return m.fc(x.mean((2, 3)))

    net = Net(forward, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 6, 3), fc=nn.Linear(6, 3))
    net.gain = nn.Parameter(torch.rand(8))
    return net


def _standardised(weight: Tensor, gain: Tensor) -> Tensor:
    flat = F.batch_norm(weight.reshape(1, len(weight), -1), None, None, weight=gain, training=True, momentum=0.0)
    return flat.reshape_as(weight)


def products() -> nn.Module:
    """Einsum, products with parameters, a gathered permutation, unfolded pixels, grouped queries."""

    def forward(m, x):
        x = m.conv(F.pixel_unshuffle(x, 2))[:, m.order]
        patches = F.unfold(x, 2).transpose(1, 2)
        x = torch.einsum("bnk,kd->bnd", patches, m.weight) @ m.square + m.bias
        q, k, v = m.q(x).view(-1, 9, 4, 5), m.k(x).view(-1, 9, 2, 5), m.v(x).view(-1, 9, 2, 5)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)
        x = m.norm(m.proj(x)) + torch.einsum("bnc,bmc->bnm", x, x).softmax(-1).mean(-1, keepdim=True)
        return m.fc(x.flip(-1).mean(1))

    linear = {"q": nn.Linear(10, 20), "k": nn.Linear(10, 10), "v": nn.Linear(10, 10), "proj": nn.Linear(20, 12)}
    net = Net(forward, conv=nn.Conv2d(12, 8, 1), norm=nn.RMSNorm(12), fc=nn.Linear(12, 3), **linear)
    net.weight, net.square = nn.Parameter(torch.randn(32, 14)), nn.Parameter(torch.randn(14, 10))
    net.bias = nn.Parameter(torch.randn(10))
    net.register_buffer("order", torch.randperm(8))
    return net


def read_at_points():
    """Maps read at points that the network computes, and the places of the highest scores among what was read."""

    def forward(m, x):
        x = F.relu(m.stem(x))
        points = m.points(x).permute(0, 2, 3, 1).tanh()
        read = F.grid_sample(m.values(x), points, align_corners=False).flatten(2) * m.scale
        scores, places = m.score(read).topk(5, dim=-1)
        return m.fc((read.gather(2, places.expand(-1, read.shape[1], -1)) * scores).mean(2))

    net = Net(
        forward,
        stem=nn.Conv2d(3, 8, 3, padding=1),
        points=nn.Conv2d(8, 2, 1),
        values=nn.Conv2d(8, 6, 1),
        score=nn.Conv1d(6, 1, 1),
        fc=nn.Linear(6, 3),
    )
    net.scale = torch.tensor(1.5)
    return net


SMALL = [
    read_at_points,
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
    vision_transformer,
    encoder_layer,
    windows,
    shuffled_channels,
    recurrent,
    standardised_weights,
    products,
]
