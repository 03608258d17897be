"""Batch norms folded into layers, and weights computed once: the same answers from fewer operators."""

import pytest
import torch
from conftest import DIGITS, GREY, digits, only
from small_networks import Net
from torch import nn
from torch.nn import functional as F

from afina.errors import NothingToDo
from afina.graph import Network, capture
from afina.graph.folding import bias_name_of, fold_norms, fold_weights
from afina.techniques.context import Context
from afina.techniques.quantize import QuantizeConfig, apply


def _network(module: nn.Module) -> Network:
    """Captured, with statistics and factors far from neutral, so that a mistake shows."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in ((norm.running_mean, -2, 2), (norm.running_var, 0.2, 3)):
                tensor.uniform_(low, high)
            if norm.affine:
                nn.init.uniform_(norm.weight, -1.5, 1.5)
                nn.init.uniform_(norm.bias, -1, 1)
    return capture(module.eval(), GREY, DIGITS)


def _norms(network: Network) -> int:
    return sum("batch_norm" in str(node.target) for node in network.graph.nodes)


def _assert_folded(network: Network, folded: int, left: int = 0) -> Network:
    """So many norms are folded and the answers are the same, for any batch."""
    twin = network.copy()
    assert len(fold_norms(twin)) == folded
    assert _norms(twin) == left
    images = torch.randn(5, *network.input.shape)
    with network.inference(), twin.inference():
        expected = only(network(images))
        for batch in (1, 5):
            assert (only(twin(images[:batch])) - expected[:batch]).abs().max() <= 1e-5 * expected.abs().max()
    return twin


def _conv(norm: nn.Module, **options: object) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, **options), norm, nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"groups": 3}, {"groups": 12, "bias": False}, {"stride": 2, "dilation": 2}],
    ids=str,
)
def test_convolutions_take_up_the_norm_behind_them(options):
    twin = _assert_folded(_network(_conv(nn.BatchNorm2d(12), **options)), 1)
    assert twin.module.get_parameter("2.bias").shape == (12,)


def test_norms_without_factors_are_folded():
    _assert_folded(_network(_conv(nn.BatchNorm2d(12, affine=False), bias=False)), 1)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_take_up_the_norm_behind_them(bias):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 20, bias=bias), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10))
    _assert_folded(_network(module), 1)


def test_convolutions_of_other_ranks_take_up_theirs():
    def forward(m, x):
        x = F.relu(m.norm3(m.three(x.unsqueeze(2).expand(-1, -1, 2, -1, -1)))).amax(2)
        return m.fc(F.relu(m.norm1(m.one(x.flatten(2)))).mean(-1))

    module = Net(
        forward, three=nn.Conv3d(1, 8, (2, 3, 3), bias=False), norm3=nn.BatchNorm3d(8), one=nn.Conv1d(8, 6, 3),
        norm1=nn.BatchNorm1d(6), fc=nn.Linear(6, 10),
    )  # fmt: skip
    _assert_folded(_network(module), 2)


def test_shared_weights_keep_their_norms():
    def forward(m, x):
        x = F.relu(m.norm(m.conv(m.stem(x))))
        return m.fc(F.relu(m.other(m.conv(x))).mean((2, 3)))

    module = Net(
        forward, stem=nn.Conv2d(1, 6, 3), conv=nn.Conv2d(6, 6, 3, padding=1), norm=nn.BatchNorm2d(6),
        other=nn.BatchNorm2d(6), fc=nn.Linear(6, 10),
    )  # fmt: skip
    _assert_folded(_network(module), 0, left=2)


def test_a_layer_that_others_read_too_keeps_its_norm():
    def forward(m, x):
        x = m.conv(x)
        return m.fc((F.relu(m.norm(x)) + x).mean((2, 3)))

    module = Net(forward, conv=nn.Conv2d(1, 6, 3), norm=nn.BatchNorm2d(6), fc=nn.Linear(6, 10))
    _assert_folded(_network(module), 0, left=1)


def test_a_norm_over_tokens_is_not_folded_into_a_linear_layer():
    def forward(m, x):
        return m.fc(m.norm(m.mix(x.flatten(2).transpose(1, 2).reshape(-1, 16, 4))).mean(1))

    module = Net(forward, mix=nn.Linear(4, 16), norm=nn.BatchNorm1d(16), fc=nn.Linear(16, 10))
    _assert_folded(_network(module), 0, left=1)


def test_a_norm_before_its_layer_stays():
    def forward(m, x):
        return m.fc(m.conv(F.relu(m.norm(m.stem(x) + 1))).mean((2, 3)))

    module = Net(forward, stem=nn.Conv2d(1, 6, 3), norm=nn.BatchNorm2d(6), conv=nn.Conv2d(6, 6, 3), fc=nn.Linear(6, 10))
    _assert_folded(_network(module), 0, left=1)


def test_folded_networks_train_save_and_load(tmp_path):
    twin = _assert_folded(_network(_conv(nn.BatchNorm2d(12), bias=False)), 1)
    images = torch.randn(4, 1, 8, 8)
    only(twin.train()(images)).square().mean().backward()
    assert twin.module.get_parameter("2.bias").grad.abs().sum() > 0
    loaded = Network.load(twin.save(tmp_path / "n.pt2"))
    with twin.inference(), loaded.inference():
        assert torch.equal(only(twin(images)), only(loaded(images)))


def test_a_new_bias_is_named_beside_its_weight():
    assert bias_name_of("layer1.conv.weight") == "layer1.conv.bias"
    assert bias_name_of("attn.in_proj_weight") == "attn.in_proj_bias"
    assert bias_name_of("kernel") == "kernel_bias"


# Weights that are computed


class _Standardised(nn.Conv2d):
    """Weights of mean 0 and variance 1 for each output, as normalizer-free networks have them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return self._conv_forward(x, weight, self.bias)


def _computed(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


def test_weights_that_are_computed_from_parameters_alone_are_stored_under_their_names():
    twin = _assert_stored(_network(_computed(_Standardised(1, 12, 3))), ["0.weight"])
    _assert_folded(twin, 1)


def _assert_stored(network: Network, names: list[str]) -> Network:
    """These weights are stored now, the answers are the same, and there is no more to store."""
    twin = network.copy()
    assert fold_weights(twin) == names
    images = torch.randn(5, *network.input.shape)
    with network.inference(), twin.inference():
        assert torch.allclose(only(twin(images)), only(network(images)), atol=1e-5)
    assert fold_weights(twin) == []
    return twin


def _with_convolution(forward) -> Network:
    return _network(Net(forward, conv=nn.Conv2d(1, 12, 3), head=nn.Linear(12, 10)))


def test_what_is_read_in_several_ways_keeps_its_own_value():
    def forward(m, x):
        w, b = m.conv.weight, m.conv.bias
        x = m.conv(x) + F.conv2d(x, w - w.mean(), 2 * b) + F.conv2d(x, w / w.norm(), b)
        return m.head(x.mean((2, 3)))

    _assert_stored(_with_convolution(forward), ["sub_stored", "mul_stored", "div_stored"])


def test_what_a_long_chain_computes_is_computed_once():
    def forward(m, x):
        w = m.conv.weight
        for _ in range(64):
            w = w + 0.1 * w.tanh()
        return m.head(F.conv2d(x, w, m.conv.bias).mean((2, 3)))

    _assert_stored(_with_convolution(forward), ["conv.weight"])


def test_weights_that_depend_on_the_image_are_left_alone():
    def forward(m, x):
        return m.head(F.conv2d(x, m.conv.weight * x.mean(), m.conv.bias).mean((2, 3)))

    _assert_stored(_with_convolution(forward), [])


def test_codes_and_halves_stay_as_they_are_stored(digits_network):
    images = digits(0, 16)[0]
    for config in (QuantizeConfig(calibration="minmax"), QuantizeConfig(weights="fp16", activations="none")):
        quantized, _ = apply(digits_network, config, Context(calibration=lambda: iter([images]), images=16))
        assert fold_weights(quantized) == []


def _from_pieces(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    weight = torch.zeros(10, 1, 3, 3)
    weight[:, 0] = net.kernel.weight[:, 0]
    return F.conv2d(x, weight).mean((2, 3))


def _of_constants(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net.head(F.conv2d(x, torch.ones(4, 1, 3, 3) / 9).mean((2, 3)))


@pytest.mark.parametrize("forward", [_from_pieces, _of_constants])
def test_weights_that_are_written_in_pieces_or_constant_stay_as_they_are(forward):
    layers = {"kernel": nn.Conv2d(1, 10, 3)} if forward is _from_pieces else {"head": nn.Linear(4, 10)}
    network = capture(Net(forward, **layers), GREY, DIGITS)
    images = digits(0, 32)[0]
    twin = network.copy()
    assert fold_weights(twin) == []
    try:
        quantized, _ = apply(network, QuantizeConfig(), Context(calibration=lambda: iter([images]), images=32))
    except NothingToDo:
        quantized = network
    with network.inference(), quantized.inference():
        for _ in range(2):  # what writes into a stored tensor answers otherwise the second time
            assert (only(quantized(images)) - only(network(images))).norm() < 0.1 * only(network(images)).norm()
