"""Files of quantized networks: stored in the bits asked for, as small as computed, answering as the simulation does."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import GREY, digits, only
from small_networks import network_of, vision_transformer
from torch import nn
from torch.nn import functional as F

from afina.graph import Network, capture
from afina.graph.cost import layer_rows
from afina.graph.folding import fixed_nodes
from afina.runtimes import RUNTIMES, check_parity
from afina.techniques.context import Context
from afina.techniques.quantize import FLOAT, Precision, QuantizeConfig, apply
from afina.types import Record, TaskSpec

QUICK = {"calibration": "minmax", "rounding": "nearest", "equalize": "none"}
WEIGHTS = ("int16", "int8", "int7", "int6", "int5", "int4", "int3", "int2", "fp16", "bf16")
OUTPUTS = 4
# For each runtime, the bits that it stores weights of so many bits in.
STORED = {
    "onnxruntime": {16: 16, 8: 8, 7: 8, 6: 8, 5: 8, 4: 4, 3: 4, 2: 2},
    "openvino": {16: 16, 8: 8, 7: 8, 6: 6, 5: 6, 4: 4, 3: 3, 2: 2},
}
# In what each granularity is exported: with integer activations, and with the weights alone in integers.
CASES = {"channel": "int8", "tensor": "none", "block:32": "int8", "block:100": "none"}


class Branches(nn.Module):
    """A convolution and a linear layer for each precision of weights, with outputs of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.convs = nn.ModuleDict({name: nn.Conv2d(16, 32, 3, stride=2, padding=1) for name in WEIGHTS})
        self.heads = nn.ModuleDict({name: nn.Linear(512, OUTPUTS) for name in WEIGHTS})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        return torch.cat([self.heads[name](F.relu(self.convs[name](x)).flatten(1)) for name in WEIGHTS], 1)


@dataclass(frozen=True)
class Exported:
    network: Network
    record: Record
    runtime: str
    granularity: str
    path: Path

    @property
    def size(self) -> int:
        return sum(part.stat().st_size for part in RUNTIMES[self.runtime].files(self.path))


@pytest.fixture(scope="session")
def branches() -> Network:
    torch.manual_seed(0)
    classes = tuple(f"{name} {index}" for name in WEIGHTS for index in range(OUTPUTS))
    return capture(Branches(), GREY, TaskSpec("classification", classes))


@pytest.fixture(scope="session")
def quantized(branches):
    """By granularity: each branch in its precision."""
    found: dict[str, tuple[Network, Record]] = {}

    def of(granularity: str) -> tuple[Network, Record]:
        if granularity not in found:
            activations = CASES[granularity]
            layers = [
                (f"{part}.{name}", Precision(name, activations if name.startswith("int") else "none"))
                for name in WEIGHTS
                for part in ("convs", "heads")
            ]
            config = QuantizeConfig(
                layers=(("stem", FLOAT), *layers), activations=activations, granularity=granularity, **QUICK
            )
            images = digits(0, 64)[0]
            found[granularity] = apply(branches, config, Context(calibration=lambda: iter([images]), images=64))
        return found[granularity]

    return of


# Exports to OpenVINO start from the same ONNX graph, and take twice as long: two of them.
FILES = [*(("onnxruntime", case) for case in CASES), ("openvino", "channel"), ("openvino", "block:100")]


@pytest.fixture(scope="session", params=FILES, ids="-".join)
def exported(request, quantized, tmp_path_factory) -> Exported:
    runtime, granularity = request.param
    if not RUNTIMES[runtime].available():
        pytest.skip(f"{runtime} is not installed")
    network, record = quantized(granularity)
    path = tmp_path_factory.mktemp("files") / f"model{RUNTIMES[runtime].suffix}"
    return Exported(network, record, runtime, granularity, RUNTIMES[runtime].export(network, path))


def test_every_precision_answers_in_the_file_as_in_the_simulation(exported, branches):
    images = digits(1000, 1100)[0]
    session = RUNTIMES[exported.runtime].load(exported.path, threads=1)
    with exported.network.inference(), branches.inference():
        simulated, exact = only(exported.network(images)).numpy(), only(branches(images)).numpy()
    found = only(session(images.numpy()))
    in_bf16 = RUNTIMES[exported.runtime].computes_bf16()
    for index, name in enumerate(WEIGHTS):
        part = slice(index * OUTPUTS, (index + 1) * OUTPUTS)
        noise = _noise(simulated[:, part], found[:, part])
        # The file holds bfloat16, so OpenVINO computes what is float in it.
        assert noise < (0.02 if in_bf16 else 0.005), name
        # What is written is the precision that was asked for, and not something finer.
        assert _noise(exact[:, part], found[:, part]) < {"int2": 0.9, "int3": 0.5, "int4": 0.25}.get(name, 0.12)


def test_the_file_passes_parity_for_any_batch(exported):
    check_parity(exported.network, exported.path, None, threads=1)
    session = RUNTIMES[exported.runtime].load(exported.path, threads=1)
    assert only(session(digits(0, 1)[0].numpy())).shape == (1, len(WEIGHTS) * OUTPUTS)


def test_the_file_is_as_small_as_computed(exported):
    """Weights in the bits that the runtime stores, and scales; what else is there is the graph itself."""
    computed = exported.record.after["bytes"]
    stored = STORED[exported.runtime]
    for row in layer_rows(exported.network):
        if row.precision.startswith("int"):
            bits = int(row.precision.removeprefix("int"))  # those that the codes need: 8 for int7
            computed += (4608 if "convs" in row.name else 512 * OUTPUTS) * (stored[bits] - bits) / 8
    weights = exported.path if exported.runtime == "onnxruntime" else exported.path.with_suffix(".bin")
    graph = exported.size - weights.stat().st_size
    assert 0.97 * computed <= weights.stat().st_size <= 1.03 * computed + 25_000
    # OpenVINO writes the graph as text: 20 layers here, about 4 KB for each.
    assert graph <= 85_000


class _RareObjects(nn.Module):
    """A detector's head: activations that nearly vanish, and a bias that says how rare objects are."""

    def __init__(self, convolutional):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Conv2d(8, 5, 1) if convolutional else nn.Linear(8, 5)
        self.convolutional = convolutional
        with torch.no_grad():
            self.inner.weight.mul_(1e-9)
            self.inner.bias.zero_()
            self.head.bias.fill_(-4.6)

    def forward(self, x):
        x = self.inner(self.stem(x).relu()).relu()
        x = x if self.convolutional else x.mean((2, 3))
        return self.head(x).sigmoid()


@pytest.mark.parametrize("convolutional", [True, False])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_bias_that_is_huge_beside_the_products_is_not_cut_off(name, convolutional, tmp_path):
    torch.manual_seed(0)
    network = capture(_RareObjects(convolutional), GREY)
    runtime, images = RUNTIMES[name], digits(0, 64)[0]
    config = QuantizeConfig(policy=runtime.policy(), calibration="minmax", rounding="nearest", equalize="none")
    quantized, _ = apply(network, config, Context(calibration=lambda: iter(images.split(32))))
    path = runtime.export(quantized, tmp_path / f"m{runtime.suffix}")
    assert check_parity(quantized, path, images, threads=1) < 1e-3
    answers = only(runtime.load(path, threads=1)(images[:4].numpy()))
    assert np.allclose(answers, 1 / (1 + np.exp(4.6)), rtol=1e-2)


def test_weights_are_stored_in_the_narrowest_type_that_the_format_has(exported):
    found = _stored(exported)
    bits = STORED[exported.runtime]
    for name in ("int16", "int8", "int4", "int2"):
        assert found[bits[int(name.removeprefix("int"))]] > 0
    wanted = Counter(bits[int(name.removeprefix("int"))] for name in WEIGHTS if name.startswith("int"))
    for width, count in wanted.items():
        # Of few bits, codes may by chance need one bit less; none takes more.
        assert found[width] >= 2 * count - (2 if width < 8 else 0), (width, found)


def test_half_floats_are_stored_in_two_bytes(exported):
    found = _stored(exported)
    assert found["half"] >= 2


def _noise(expected: np.ndarray, found: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def _stored(exported: Exported) -> Counter:
    """How many constants of 2,000 numbers or more there are of each number of bits; `half` for 16-bit floats."""
    if exported.runtime == "onnxruntime":
        kinds = onnx.TensorProto
        names = {
            kinds.INT16: 16, kinds.INT8: 8, kinds.UINT8: 8, kinds.INT4: 4, kinds.UINT4: 4, kinds.INT2: 2,
            kinds.UINT2: 2, kinds.FLOAT16: "half", kinds.BFLOAT16: "half",
        }  # fmt: skip
        held = onnx.load(exported.path).graph.initializer
        return Counter(names.get(t.data_type, "float") for t in held if np.prod(t.dims) >= 2000)
    import openvino

    names = {"i16": 16, "i8": 8, "u8": 8, "u6": 6, "u4": 4, "u3": 3, "u2": 2, "f16": "half", "bf16": "half"}
    held = [op for op in openvino.Core().read_model(exported.path).get_ops() if op.get_type_name() == "Constant"]
    large = [op for op in held if np.prod(op.output(0).shape) >= 2000]
    return Counter(names.get(op.get_element_type().get_type_name(), "float") for op in large)


@pytest.mark.parametrize("activations", ["int16", "int4"])
def test_onnx_runtime_runs_activations_of_sixteen_and_of_four_bits(digits_network, activations, tmp_path):
    config = QuantizeConfig(activations=activations, **QUICK)
    images = digits(0, 64)[0]
    network, _ = apply(digits_network, config, Context(calibration=lambda: iter([images]), images=64))
    path = RUNTIMES["onnxruntime"].export(network, tmp_path / "model.onnx")
    check_parity(network, path, None, threads=1)
    assert _agreement(network, "onnxruntime", path) >= 0.995


def test_openvino_runs_activations_of_few_bits(digits_network, tmp_path):
    """Five bits: in four, black lies halfway between two steps of these images, and may be rounded either way."""
    pytest.importorskip("openvino")
    images = digits(0, 64)[0]
    context = Context(calibration=lambda: iter([images]), images=64)
    network, _ = apply(digits_network, QuantizeConfig(activations="int5", **QUICK), context)
    path = RUNTIMES["openvino"].export(network, tmp_path / "model.xml")
    assert _agreement(network, "openvino", path) >= 0.995


def test_predictions_of_the_file_are_those_of_the_simulation(digits_network, tmp_path):
    pytest.importorskip("openvino")
    chosen, images = RUNTIMES["openvino"], digits(0, 64)[0]
    config = QuantizeConfig(policy=chosen.policy())
    network, _ = apply(digits_network, config, Context(calibration=lambda: iter([images]), images=64))
    path = chosen.export(network, tmp_path / f"model{chosen.suffix}")
    assert _agreement(network, "openvino", path) >= 0.995


@pytest.fixture(scope="module")
def transformer() -> Network:
    torch.manual_seed(0)
    return network_of(vision_transformer())


def _for_openvino(network: Network, path: Path, **policy: Any) -> tuple[Network, str]:
    """The network in integers, checked against its file, and the text of the file."""
    pytest.importorskip("openvino")
    chosen = RUNTIMES["openvino"]
    config = QuantizeConfig(policy=replace(chosen.policy(), **policy), **QUICK)
    images = network.example(64)
    made, _ = apply(network, config, Context(calibration=lambda: iter([images]), images=64))
    chosen.export(made, path)
    check_parity(made, path, None, threads=1)
    return made, path.read_text()


def test_layers_that_share_a_width_stay_in_integers_on_openvino(transformer, tmp_path):
    """A zero point that layers share is left in by the converter, and each of them is then computed in float."""
    _, text = _for_openvino(transformer, tmp_path / "model.xml")
    assert text.count('type="MatMul"') >= 4
    assert 'type="Subtract"' not in text


class _OverImages(nn.Module):
    """Linear layers over channels that come last, as ConvNeXt's and Swin's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.wide, self.narrow, self.head = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        return self.head((x + self.narrow(nn.functional.gelu(self.wide(x)))).mean((1, 2)))


def test_linear_layers_over_images_add_their_bias_inside_on_openvino(tmp_path):
    """With four dimensions the plugin adds it in a pass of its own."""
    openvino = pytest.importorskip("openvino")
    torch.manual_seed(0)
    network = capture(_OverImages(), GREY, TaskSpec("classification", tuple("abcd")))
    _for_openvino(network, tmp_path / "model.xml")
    model = openvino.Core().read_model(tmp_path / "model.xml")
    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    assert [len(node.get_output_partial_shape(0)) for node in products] == [3, 3, 2]
    model.reshape([1, *GREY.shape])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kernels = [node.get_rt_info()["layerType"] for node in compiled.get_runtime_model().get_ordered_ops()]
    assert kernels.count("FullyConnected") == 3
    left = [n for n in compiled.get_runtime_model().get_ordered_ops() if n.get_rt_info()["layerType"] == "Eltwise"]
    assert len(left) <= 1  # the sum of the two branches


def test_linear_layers_read_symmetric_activations_where_that_is_asked_for(transformer, tmp_path):
    """But for those without negative values, which would lose half of their codes."""
    network, _ = _for_openvino(transformer, tmp_path / "model.xml", symmetric_inputs_of_linear_layers="always")
    assert _zeros_before_linear(network) == [128] * 4
    relu = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    plain = capture(relu, GREY, TaskSpec("classification", tuple("abcd")))
    network, _ = _for_openvino(plain, tmp_path / "r.xml", symmetric_inputs_of_linear_layers="always")
    assert _zeros_before_linear(network) == [0]


def _zeros_before_linear(network: Network) -> list[int]:
    """Zero points of the codes that linear layers read, of those that read any."""
    found = []
    for node in network.graph.nodes:
        source = node.args[0] if node.target is torch.ops.aten.linear.default else None
        while source is not None and source.target in (torch.ops.aten.flatten.using_ints, torch.ops.aten.view.default):
            source = source.args[0]
        if source is not None and "dequantize_per_tensor" in str(source.target):
            found.append(source.args[2])
    return found


def test_what_is_not_in_integers_is_computed_in_bfloat16_where_norms_are(transformer, tmp_path):
    network, text = _for_openvino(transformer, tmp_path / "model.xml", norm_parameters="bf16")
    assert 'afina_compute value="bf16"' in text
    network.save(tmp_path / "network.pt2")
    kept = Network.load(tmp_path / "network.pt2")
    held = [tensor.dtype for name, tensor in kept.module.state_dict().items() if "norm" in name]
    assert held == [torch.bfloat16] * 6
    images = network.example(4)
    with network.inference(), kept.inference():
        assert torch.equal(only(network(images)), only(kept(images)))


class _Positions(nn.Module):
    """A position encoding that a layer computes from constants, for one image as XCiT's, or for each as EdgeNeXt's."""

    def __init__(self, each: bool) -> None:
        super().__init__()
        self.each = each
        self.stem, self.encode, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(16, 8, 1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        across = torch.ones(x.shape[0] if self.each else 1, x.shape[2], x.shape[3]).cumsum(2)
        waves = (across[..., None] / 2.0 ** torch.arange(16)).sin().permute(0, 3, 1, 2)
        encoded = self.encode(waves).flatten(2)
        return self.head(F.relu(self.stem(x).flatten(2) + encoded).mean(2))


def _checked(
    module: nn.Module, runtime: str, path: Path, activations: str = "int8", **options: Any
) -> tuple[Network, Record]:
    """The module in integers, and its record; the file of the runtime answers as the simulation."""
    if not RUNTIMES[runtime].available():
        pytest.skip(f"{runtime} is not installed")
    network = capture(module, GREY, TaskSpec("classification", tuple("abcd")))
    chosen, images = RUNTIMES[runtime], digits(0, 64)[0]
    config = QuantizeConfig(activations=activations, policy=chosen.policy(), **options)
    made, record = apply(network, config, Context(calibration=lambda: iter([images]), images=64))
    check_parity(made, chosen.export(made, path.with_suffix(chosen.suffix)), None, threads=1)
    return made, record


@pytest.mark.parametrize("activations", ["int8", "none"])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("runtime", sorted(STORED))
def test_convolutions_that_give_the_same_for_every_image_stay_in_float(runtime, each, activations, tmp_path):
    """OpenVINO does not load those of constants in integers, nor those of constants for each image with codes."""
    torch.manual_seed(0)
    made, record = _checked(_Positions(each), runtime, tmp_path / "model", activations)
    assert set(record.touched) == {"stem", "head"}  # by their weights
    assert "every image" in record.skipped["encode"]
    read = {node.args[0] for node in made.graph.nodes if "quantize_per_tensor" in str(node.target)}
    assert bool(read) == (activations == "int8")
    assert not read & fixed_nodes(made.graph)


class _PaddedMaximum(nn.Module):
    """Max pooling behind a padding with minus infinity, as in stems that keep TensorFlow's sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.pad(self.stem(x), (0, 1, 0, 1), value=float("-inf")), 3, 2)
        return self.head(F.relu(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("runtime", sorted(STORED))
def test_padding_with_minus_infinity_before_a_maximum_is_passed_over(runtime, tmp_path):
    torch.manual_seed(0)
    made, _ = _checked(_PaddedMaximum(), runtime, tmp_path / "model")
    assert not [node for node in made.graph.nodes if "quantize" in str(node.target) and "pad" in str(node.args[0])]


class _PooledShortcut(nn.Module):
    """A shortcut with both signs through an average pool that counts its padding, as MaxViT's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.shortcut(F.avg_pool2d(x + self.body(x), 3, 2, 1))
        return self.head(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize("runtime", sorted(STORED))
def test_average_pools_that_count_their_padding_answer_as_simulated(runtime, tmp_path):
    torch.manual_seed(0)
    made, _ = _checked(_PooledShortcut(), runtime, tmp_path / "model")
    assert _agreement(made, runtime, (tmp_path / "model").with_suffix(RUNTIMES[runtime].suffix)) > 0.99


class _Joined(nn.Module):
    """Channels of very different reach side by side, as in DenseNet and SelecSLS."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.more = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.mix, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 4)
        self.more.weight.data /= 30
        self.mix.weight.data[:, 8:] *= 30

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.max_pool2d(torch.cat([x, F.relu(self.more(x))], 1), 2)
        return self.head(F.relu(self.mix(x)).mean((2, 3)))


@pytest.mark.parametrize("runtime", sorted(STORED))
def test_layers_in_float_that_read_joined_channels_keep_their_weights(runtime, tmp_path):
    """OpenVINO runs them in integers, and rounded weights anew that it had multiplied by the channels' scales."""
    torch.manual_seed(0)
    in_float = (("mix", Precision("int8", "none")),)
    made, _ = _checked(_Joined(), runtime, tmp_path / "model", layers=in_float)
    simulated, found = _answers(made, runtime, (tmp_path / "model").with_suffix(RUNTIMES[runtime].suffix))
    assert np.std(found - simulated) < 0.001 * np.std(simulated)


def _agreement(network: Network, runtime: str, path: Path) -> float:
    simulated, found = _answers(network, runtime, path)
    return float((simulated.argmax(1) == found.argmax(1)).mean())


def _answers(network: Network, runtime: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What a network and its file give for the same images."""
    images = digits(1438)[0]
    with network.inference():
        simulated = only(network(images)).numpy()
    found = only(RUNTIMES[runtime].load(path, threads=1)(images.numpy()))
    return simulated, found


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_quantized_images_are_pooled_to_any_size_and_weights_may_be_written_into(runtime, tmp_path):
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.head = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 32, 3, padding=1), nn.Linear(32, 10)
            self.bias = nn.Parameter(torch.linspace(-1, 1, 32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            bias = self.bias.clone()
            bias[8:16].zero_()
            x = F.adaptive_avg_pool2d(F.relu(self.stem(x)), (4, 3))  # of 6 x 6
            x = F.adaptive_avg_pool2d(F.relu(self.conv(x)), (2, 3))
            return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1) + bias)

    torch.manual_seed(0)
    images = digits(0, 64)[0]
    network = capture(Pooled().eval(), GREY, TaskSpec("classification", tuple("0123456789")))
    quantized, _ = apply(network, QuantizeConfig(**QUICK), Context(calibration=lambda: iter([images]), images=64))
    path = RUNTIMES[runtime].export(quantized, tmp_path / f"model{RUNTIMES[runtime].suffix}")
    check_parity(quantized, path, None, threads=1)


class Strided(nn.Module):
    """Attention whose queries skip pixels that its keys read, as in HaloNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.queries, self.keys = nn.Conv2d(32, 32, 1, stride=2), nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        queries, keys = self.queries(x).reshape(-1, 32, 16), self.keys(x).reshape(-1, 32, 64)
        return self.head((queries.transpose(1, 2) @ keys).mean(1))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("activations", ["none", "int8"])
def test_strided_convolutions_beside_others_that_read_all_pixels_run(runtime, activations, tmp_path):
    torch.manual_seed(0)
    images = digits(0, 64)[0]
    network = capture(Strided().eval(), GREY, TaskSpec("classification", tuple("0123456789")))
    config = QuantizeConfig(activations=activations, **QUICK)
    quantized, _ = apply(network, config, Context(calibration=lambda: iter([images]), images=64))
    path = RUNTIMES[runtime].export(quantized, tmp_path / f"model{RUNTIMES[runtime].suffix}")
    check_parity(quantized, path, None, threads=1)


class Residual(nn.Module):
    """A block whose shortcut is a convolution too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.outer, self.shortcut = nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
        self.last, self.head = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(32 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.shortcut(x) + self.outer(F.relu(self.inner(x))))
        return self.head(F.relu(self.last(x)).flatten(1))


# Where a runtime adds in a kernel of its own, no sum is joined with a product.
ADDITIONS = [
    (name, additions)
    for name, runtime in RUNTIMES.loaded().items()
    for additions in dict.fromkeys(("own kernel", "float", runtime.integers.additions))
]


@pytest.mark.parametrize(("runtime", "additions"), ADDITIONS)
def test_a_sum_is_rounded_where_the_runtime_rounds_it(runtime, additions, tmp_path):
    torch.manual_seed(0)
    images = digits(0, 256)[0]
    network = capture(Residual().eval(), GREY, TaskSpec("classification", tuple("0123456789")))
    chosen = RUNTIMES[runtime]
    config = QuantizeConfig(policy=replace(chosen.policy(), additions=additions), **QUICK)
    quantized, _ = apply(network, config, Context(calibration=lambda: iter([images]), images=256))
    session = chosen.load(chosen.export(quantized, tmp_path / f"model{chosen.suffix}"), threads=1)
    found = only(session(images.numpy()))
    simulated, plain = only(quantized(images)), only(network(images))
    noise = (simulated - plain).detach().norm()
    assert (torch.from_numpy(found) - simulated.detach()).norm() < 0.2 * noise
