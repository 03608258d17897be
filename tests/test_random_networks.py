"""Random graphs: whatever the ops and their order, removing units answers as the two other ways to do without them."""

import torch
from conftest import only
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_networks import IMAGES, assert_close, half, is_zeroing, network_of, zeroed
from torch import Tensor, nn
from torch.nn import functional as F

from afina.errors import InputError
from afina.graph.axes import Analysis
from afina.graph.masking import masked_answer
from afina.graph.network import Network
from afina.graph.surgery import remove

MAPS = (
    "conv group depth gate add norm pad cut cat shuffle transposed instance glu pixels statistic resize prelu standard "
    "picked flip repeat spatial where focal"
).split()
TOKENS = (
    "linear norm rms attention mlp einsum product roll window batch table mixer expand chunk stack softmax lstm "
    "grouped cumulative compare outer index tied"
).split()


class Maps(nn.Module):
    """Feature maps `[N, C, 8, 8]`: each step takes one or two of those made so far."""

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
        same = nn.Conv2d(channels, channels, 1)
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
            case "norm":
                return nn.GroupNorm(2, channels), channels
            case "pad":
                return nn.Conv2d(channels, channels + 6, 1), channels + 6
            case "cut":
                return nn.Identity(), channels - 2
            case "transposed":
                return nn.ConvTranspose2d(channels, width, 3, padding=1), width
            case "instance":
                return nn.InstanceNorm2d(channels, affine=True), channels
            case "glu" | "standard":
                return nn.Conv2d(channels, 2 * width if kind == "glu" else width, 1), width
            case "pixels":
                return nn.Conv2d(channels, 4 * width, 3, padding=1, stride=2), width
            case "prelu":
                return nn.PReLU(channels), channels
            case "repeat":
                return same, 2 * channels
            case "focal":
                return nn.Conv2d(channels, width + 3, 1), width
        return same, channels

    def forward(self, x: Tensor) -> Tensor:
        maps = [F.relu(self.stem(x))]
        for (kind, pick, _), layer in zip(self.steps, self.layers, strict=True):
            maps.append(F.hardswish(self._step(kind, layer, maps[pick % len(maps)], maps[-1])))
        x = torch.cat(maps[-2:], 1)
        return self.fc(F.adaptive_avg_pool2d(x, 4).flatten(1))

    @staticmethod
    def _step(kind: str, layer: nn.Module, x: Tensor, last: Tensor) -> Tensor:
        channels = x.shape[1]
        match kind:
            case "gate":
                return x * layer(F.adaptive_avg_pool2d(x, 1))
            case "add":
                return x.clone().add_(layer(x))
            case "pad":
                return F.pad(x, (0, 0, 0, 0, 2, 4)) + layer(x)
            case "cut":
                return torch.cat([x[:, 3:], x[:, :1]], 1)
            case "cat":
                return torch.cat([x, last], 1)
            case "shuffle":
                return x.view(-1, 2, channels // 2, 8, 8).transpose(1, 2).reshape(-1, channels, 8, 8)
            case "glu":
                return F.glu(layer(x), dim=1)
            case "pixels":
                return F.pixel_shuffle(layer(x), 2)
            case "statistic":
                return layer(x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 0.5)
            case "resize":
                return F.interpolate(F.avg_pool2d(layer(x), 2), scale_factor=2, mode="bilinear")
            case "standard":
                weight = layer.weight
                flat = F.batch_norm(weight.reshape(1, len(weight), -1), None, None, training=True)
                return F.conv2d(x, flat.view_as(weight), layer.bias)
            case "picked":
                return layer(x[:, torch.arange(channels).roll(1)])
            case "flip":
                return x.flip(1) + layer(x)
            case "repeat":
                return layer(x).repeat(1, 2, 1, 1) * layer.bias.view(-1, 1, 1).tile(2, 1, 1).tile(1)
            case "spatial":
                return x * layer(x).flatten(2).softmax(-1).view_as(x) * F.max_pool2d(x, 3, 1, 1)
            case "focal":
                x, gates = layer(x).tensor_split([layer.out_channels - 3], dim=1)
                one = gates[:, 2:].expand(-1, x.shape[1], -1, -1).tanh()
                return x * gates[:, 0:1] + F.gelu(x) * gates[:, 1:2].reshape(-1, 1, 8, 8) + one
            case "where":
                return torch.where(x > layer(x), x, torch.zeros(1, channels, 1, 1)).masked_fill(x > 2, 0.5)
        return layer(x)


class Tokens(nn.Module):
    """Tokens `[N, 16, 12]`, through steps as transformers and mixers are made of."""

    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self.patch, self.head, self.norm = nn.Conv2d(3, 12, 2, stride=2), nn.Linear(12, 3), nn.LayerNorm(12)
        self.steps, self.layers = steps, nn.ModuleList([self._layer(kind) for kind in steps])
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 17, 12))

    @staticmethod
    def _layer(kind: str) -> nn.Module:
        inner = nn.ModuleDict({"a": nn.Linear(12, 24), "b": nn.Linear(24, 12)})
        match kind:
            case "norm":
                return nn.LayerNorm(12)
            case "rms":
                return nn.RMSNorm(12)
            case "attention" | "grouped":
                return nn.ModuleDict({"a": nn.Linear(12, 45 if kind == "attention" else 40), "b": nn.Linear(15, 12)})
            case "batch":
                return nn.BatchNorm1d(12)
            case "table":
                return nn.Embedding(9, 12)
            case "mixer":
                return nn.Sequential(nn.Linear(16, 6), nn.GELU(), nn.Linear(6, 16))
            case "lstm":
                return nn.ModuleDict({"a": nn.LSTM(12, 7, batch_first=True), "b": nn.Linear(7, 12)})
        return inner

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        for kind, layer in zip(self.steps, self.layers, strict=True):
            x = x + self._step(kind, layer, x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(x)[:, :2].mean(1))

    @staticmethod
    def _step(kind: str, layer: nn.Module, x: Tensor) -> Tensor:
        match kind:
            case "norm" | "rms":
                return layer(x)
            case "attention":
                q, k, v = layer["a"](x).reshape(-1, 16, 3, 3, 5).permute(2, 0, 3, 1, 4).unbind(0)
                return layer["b"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            case "grouped":
                q, k, v = layer["a"](x)[..., :35].split([15, 10, 10], dim=-1)
                k, v = k.view(-1, 16, 2, 5), v.reshape(-1, 16, 2, 5)
                scores = torch.einsum("bnhd,bmhd->bhnm", torch.stack([q[..., :5], q[..., 5:10]], 2), k) * 5**-0.5
                mixed = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2)
                return layer["b"](torch.cat([mixed, q[..., 10:]], -1))
            case "einsum":
                return torch.einsum("bnk,dk->bnd", layer["a"](x), layer["b"].weight)
            case "product":
                return layer["a"](x).tanh() @ layer["b"].weight.t()
            case "roll":
                return layer["b"](layer["a"](x.roll(3, 1)).roll((1, -1), (0, 1)).roll(-1, 0))
            case "window":
                x = x.view(-1, 2, 2, 2, 2, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 12)
                x = layer["b"](layer["a"](x).softmax(1)).view(-1, 2, 2, 2, 2, 12)
                return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 12)
            case "batch":
                return layer(x.flatten(0, 1)).reshape_as(x)
            case "table":
                return layer(torch.arange(16) % 9) * x.sigmoid()
            case "mixer":
                return layer(x.transpose(1, 2)).mT
            case "expand":
                return layer["b"](layer["a"](x).mean(1, keepdim=True).expand(-1, 16, 24)) * torch.ones(16, 12)
            case "chunk":
                a, b = layer["a"](x).chunk(2, dim=-1)
                return a * b.sigmoid()
            case "stack":
                a, b = torch.stack([x, layer["b"](layer["a"](x))], 1).unbind(1)
                return a * b.tanh()
            case "softmax":
                return layer["b"](layer["a"](x).softmax(1) * layer["a"](x).amax(1, keepdim=True))
            case "lstm":
                return layer["b"](layer["a"](x[:, ::4])[0].mean(1, keepdim=True))
            case "cumulative":
                return layer["b"](layer["a"](x).cumsum(1) / 16)
            case "compare":
                y = layer["a"](x)
                return layer["b"](y * (y > 0.1) + y.clamp(max=0.2).where(y.isfinite(), y))
            case "outer":
                y = layer["a"](x).movedim(-1, 1)
                return layer["b"]((y.unsqueeze(-1) * y.unsqueeze(-2)).sum(-1).movedim(1, -1) / 16)
            case "index":
                y = layer["a"](x).index_select(1, torch.arange(16).flip(0))
                return layer["b"](y.gather(1, torch.zeros(1, 16, 1, dtype=torch.int64).expand_as(y) + 3))
            case "tied":
                return F.linear(layer["b"](layer["a"](x)), layer["a"].weight).unflatten(-1, (2, 12)).sum(-2)
        return layer["b"](F.gelu(layer["a"](x)))


# Without shrinking: a counterexample is small as it is, and shrinking one takes minutes.
fast = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@fast
@given(
    st.lists(st.tuples(st.sampled_from(MAPS), st.integers(0, 20), st.sampled_from([6, 8, 12])), min_size=2, max_size=7),
    st.integers(0, 100),
)
def test_in_random_networks_of_feature_maps_removing_is_masking_and_zeroing(steps, seed):
    check(network_of(Maps(steps)), seed)


@fast
@given(st.lists(st.sampled_from(TOKENS), min_size=2, max_size=6, unique=True), st.integers(0, 100))
def test_in_random_networks_of_tokens_removing_is_masking_and_zeroing(steps, seed):
    check(network_of(Tokens(steps)), seed)


def test_every_op_of_the_random_networks_is_understood_on_its_own():
    for step in MAPS:
        assert check(network_of(Maps([(step, 0, 8), ("conv", 1, 6)])), 0, masked_alone=True), step
    for kind in TOKENS:
        assert check(network_of(Tokens([kind])), 0, masked_alone=True), kind


def check(network: Network, seed: int, masked_alone: bool = False) -> bool:
    """Whether something could be removed; what was, is right: as when masked and, unless that is enough, as zeroed."""
    analysis = Analysis(network)
    axes = analysis.axes
    assert not axes.unknown
    keep = half(axes.free, seed)
    read = {axis: units for axis, units in keep.items() if is_zeroing(axis) and axis.size > 1}
    images = network.example(IMAGES)
    try:
        pruned = remove(network, keep, analysis=analysis)
        smaller = None if masked_alone else remove(network, read, analysis=analysis)
    except InputError as error:
        assert "Nothing would be left" in str(error)
        return True
    with network.inference(), pruned.inference():
        assert_close(only(pruned(images)), only(masked_answer(network, keep, images)))
        if smaller is not None:
            assert_close(only(smaller(images)), only(zeroed(network, read)(images)))
    return bool(keep)
