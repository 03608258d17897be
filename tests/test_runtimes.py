"""What every runtime promises: parity, any batch, whole files, honest figures from a fresh process."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import DIGITS, GREY, SmallNet, only
from torch import nn
from torch.nn import functional as F

from afina.data import open_data
from afina.devices import measure_latency, measure_memory
from afina.errors import AfinaError, InputError, ParityError, Unsupported
from afina.graph import Network, capture
from afina.graph.axes import analyse
from afina.graph.surgery import remove
from afina.runtimes import (
    RUNTIMES,
    IntegerPolicy,
    check_parity,
    formats,
    get_runtime,
    measure_quality,
    outputs_of_file,
    parity,
    read_metadata,
    relative_difference,
    runtime_of,
    runtime_of_format,
)
from afina.tasks import get_task
from afina.techniques.context import Context
from afina.techniques.quantize import QuantizeConfig, apply
from afina.testing.runtimes import check_runtime

SHAPE = (1, 8, 8)


@pytest.fixture(params=[name for name, runtime in RUNTIMES.loaded().items() if runtime.available()])
def runtime(request):
    return RUNTIMES[request.param]


def _int8(network):
    images = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    policy = IntegerPolicy(int8_weight_bits=7)
    config = QuantizeConfig(policy=policy, calibration="minmax", rounding="nearest", equalize="none")
    return apply(network, config, Context(calibration=lambda: iter(images.split(32))))[0]


def test_a_runtime_keeps_its_contract(runtime, small_network, tmp_path):
    check_runtime(runtime, small_network, small_network.example(3), tmp_path)


@pytest.mark.parametrize(
    ("method", "replacement", "promise"),
    [
        ("_metadata", lambda self, path: None, "writes the input and the task"),
        ("_open", lambda self, path, threads: lambda images: {"outputs": np.zeros((len(images), 10))}, "answers as"),
    ],
)
def test_a_contract_that_is_broken_is_told_by_the_promise(
    method, replacement, promise, small_network, tmp_path, monkeypatch
):
    runtime = RUNTIMES["pt2"]
    monkeypatch.setattr(type(runtime), method, replacement)
    with pytest.raises(AssertionError, match=promise):
        check_runtime(runtime, small_network, small_network.example(3), tmp_path)


def test_a_file_is_run_by_the_runtime_that_wrote_it(runtime, small_network, tmp_path):
    path = runtime.export(small_network, tmp_path / f"model{runtime.suffix}")
    assert runtime_of(path) is runtime
    assert read_metadata(path) == runtime.metadata(path)


def test_an_int8_network_answers_the_same_and_takes_less(runtime, tmp_path):
    network = capture(SmallNet(64), GREY, DIGITS)  # wide enough for weights to be most of a file
    quantized = _int8(network)
    plain = runtime.export(network, tmp_path / f"plain{runtime.suffix}")
    int8 = runtime.export(quantized, tmp_path / f"int8{runtime.suffix}")
    assert check_parity(quantized, int8, None, threads=1) < 0.1
    plain_bytes, int8_bytes = (sum(part.stat().st_size for part in runtime.files(path)) for path in (plain, int8))
    assert int8_bytes < 0.6 * plain_bytes


def test_onnx_runtime_runs_an_int8_network_in_int8(small_network, tmp_path):
    path = get_runtime("onnxruntime").export(_int8(small_network), tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == 2
    assert "Conv" not in kinds
    assert "QLinearAdd" in kinds


def test_an_onnx_file_carries_no_stack_traces_and_no_batch_norm(small_network, tmp_path):
    path = get_runtime("onnxruntime").export(small_network, tmp_path / "model.onnx")
    model = onnx.load(path)
    assert b"conftest.py" not in path.read_bytes()
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    weights = sum(p.numel() for p in small_network.module.parameters()) * 4
    assert path.stat().st_size < weights + 6000


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_half_precision_nearly_halves_the_file_and_stays_close(name, tmp_path):
    if not RUNTIMES[name].available():
        pytest.skip(f"{name} is not installed")
    chosen = get_runtime(name)
    network = capture(SmallNet(64), GREY, DIGITS)
    halved, _ = apply(network, QuantizeConfig(weights="fp16", activations="none"), Context())
    plain = chosen.export(network, tmp_path / f"plain{chosen.suffix}")
    half = chosen.export(halved, tmp_path / f"half{chosen.suffix}")
    largest = [max(part.stat().st_size for part in chosen.files(path)) for path in (plain, half)]
    assert largest[1] < 0.56 * largest[0]
    assert check_parity(halved, half, None, threads=1) < 1e-5
    images = network.example(16)
    assert (
        relative_difference(only(network(images)).detach().numpy(), only(chosen.load(half, threads=1)(images.numpy())))
        < 5e-3
    )


class _Chaotic(torch.nn.Module):
    """Untrained layers that let the smallest difference grow, threefold each."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(256, 256) for _ in range(layers)])
        self.stem, self.head = torch.nn.Linear(64, 256), torch.nn.Linear(256, 10)
        for layer in self.layers:
            torch.nn.init.normal_(layer.weight, std=3 / 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x.flatten(1))
        for layer in self.layers:
            x = layer(x).tanh()
        return self.head(x)


@pytest.fixture(scope="module")
def chaotic() -> list[Network]:
    """In int8; the last one differs from itself more than from a file of zeros."""
    torch.manual_seed(0)
    quick = QuantizeConfig(
        calibration="minmax", rounding="nearest", equalize="none", policy=IntegerPolicy(int8_weight_bits=7)
    )
    images = torch.randn(64, *SHAPE)
    context = Context(calibration=lambda: iter([images]))
    return [apply(capture(_Chaotic(n), GREY, DIGITS), quick, context)[0] for n in (24, 24, 32)]


def test_rounding_that_a_network_itself_lets_grow_is_no_fault_of_its_file(runtime, chaotic, tmp_path):
    network, other, wild = chaotic
    path = runtime.export(network, tmp_path / f"model{runtime.suffix}")
    check_parity(network, path, None, threads=1)
    for another in (other, wild):
        with pytest.raises(ParityError):
            check_parity(another, path, None, threads=1)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_network_that_amplifies_rounding_is_named_as_the_cause(name, small_network, tmp_path):
    if not RUNTIMES[name].available():
        pytest.skip(f"{name} is not installed")
    torch.manual_seed(0)
    network = capture(_Chaotic(32), GREY, DIGITS)
    path = get_runtime(name).export(network, tmp_path / f"model{get_runtime(name).suffix}")
    with pytest.raises(ParityError, match=r"(?s)So does the network, .*makes rounding so large"):
        check_parity(network, path, None, threads=1)
    with pytest.raises(ParityError) as sound:
        check_parity(small_network, path, None, threads=1)
    assert "So does the network" not in str(sound.value)


def test_another_networks_file_fails_parity(runtime, small_network, tmp_path):
    path = runtime.export(small_network, tmp_path / f"model{runtime.suffix}")
    other = small_network.copy()
    with torch.no_grad():
        other.module.get_parameter("head.weight").mul_(1.5)
    with pytest.raises(ParityError, match="does not answer"):
        check_parity(other, path, None, threads=1)


def test_latency_and_memory_come_from_a_fresh_process_with_their_conditions(runtime, small_network, tmp_path):
    path = runtime.export(small_network, tmp_path / f"model{runtime.suffix}")
    times = measure_latency({"a": path, "b": path}, SHAPE, threads=1)
    assert set(times) == {"a", "b"}
    assert 0.3 < times["a"].value / times["b"].value < 3
    assert all(m.value > 0 and m.n and m.spread is not None and "1 thread" in m.where for m in times.values())
    memory = measure_memory(path, SHAPE, threads=1)
    assert memory.unit == "B"
    assert memory.value > 0


def test_quality_is_that_of_the_file_over_the_validation_images(runtime, small_network, tmp_path):
    path = runtime.export(small_network, tmp_path / f"model{runtime.suffix}")
    data = open_data("digits")
    outputs = outputs_of_file(path, data, small_network.input, threads=1)
    quality = measure_quality(outputs, data, get_task(data.task), small_network.input, runtime=runtime)
    hits = only(outputs).argmax(1) == data.targets("validation").numpy()
    assert (quality.value, quality.n) == (pytest.approx(hits.mean()), len(hits))


def test_a_worker_that_dies_is_one_clear_error(small_network, tmp_path, monkeypatch):
    path = get_runtime("onnxruntime").export(small_network, tmp_path / "model.onnx")
    real = subprocess.run

    def killed(command, *args, **options):
        code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        return real([sys.executable, "-c", code], *args, **options)

    monkeypatch.setattr(subprocess, "run", killed)
    with pytest.raises(AfinaError, match=r"(?i)kill|memory|died|signal"):
        measure_latency({"a": path}, SHAPE, threads=1)


def test_an_unknown_or_missing_runtime_is_named(monkeypatch):
    with pytest.raises(InputError, match="onnxruntime"):
        get_runtime("onnxruntim")
    monkeypatch.setattr(type(RUNTIMES["openvino"]), "available", lambda self: False)
    with pytest.raises(InputError, match=r"afina\[openvino\]"):
        get_runtime("openvino")


def test_a_conversion_is_not_reported_to_anyone(small_network, tmp_path, monkeypatch):
    telemetry = pytest.importorskip("openvino_telemetry.main").Telemetry
    told = []
    for name in ("send_event", "send_error", "start_session"):
        monkeypatch.setattr(telemetry, name, lambda *args, **options: told.append(args))
    get_runtime("openvino").export(small_network, tmp_path / "model.xml")
    assert not told


_WATCHED = """
import sys, threading
import numpy as np
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event.startswith(("socket.", "os.fork")) else None)
from afina.runtimes import runtime_of
runtime = runtime_of(sys.argv[1])
runtime.start()
runtime.load(sys.argv[1], threads=1)(np.zeros((1, 1, 8, 8), np.float32))
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(10)
sys.exit(", ".join(seen) or 0)
"""


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_running_a_file_needs_no_network_and_no_other_process(name, small_network, tmp_path):
    pytest.importorskip(name)
    runtime = get_runtime(name)
    path = runtime.export(small_network, tmp_path / f"model{runtime.suffix}")
    environment = {name: value for name, value in os.environ.items() if name != "CI"}  # where libraries report nothing
    home = {"HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    command = [sys.executable, "-c", _WATCHED, path]
    done = subprocess.run(command, env=environment | home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_operator_that_openvino_does_not_know_is_named(tmp_path):
    pytest.importorskip("openvino")

    class Determinant(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 10, 1)

        def forward(self, x):
            return torch.linalg.det(self.stem(x))

    network = capture(Determinant(), GREY, DIGITS)
    with pytest.raises(Unsupported, match=r"No conversion rule found for operations: Det"):
        get_runtime("openvino").export(network, tmp_path / "model.xml")
    assert not list(tmp_path.iterdir())


class _Eigenvalues(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 10, 1)

    def forward(self, x):
        return torch.linalg.eigvalsh(self.stem(x)).mean(2)


def test_an_operator_that_onnx_does_not_have_is_named_as_unsupported(tmp_path):
    network = capture(_Eigenvalues(), GREY, DIGITS)
    with pytest.raises(Unsupported, match=r"(?s)torch.onnx says.*_linalg_eigh"):
        get_runtime("onnxruntime").export(network, tmp_path / "model.onnx")


def test_packages_that_do_not_work_together_are_told_as_such_and_not_as_unsupported(
    small_network, tmp_path, monkeypatch
):
    """As an onnxscript that lacks a name which an operator's translation uses."""

    def convert(*args, **options):
        try:
            return onnx.no_such_name
        except AttributeError as error:
            raise torch.onnx.errors.OnnxExporterError("Failed to convert the exported program") from error

    monkeypatch.setattr(torch.onnx, "export", convert)
    with pytest.raises(AfinaError, match=r"(?s)do not work together.*no_such_name.*onnxscript \d") as caught:
        get_runtime("onnxruntime").export(small_network, tmp_path / "model.onnx")
    assert not isinstance(caught.value, Unsupported)


def test_another_fault_of_an_export_is_told_as_what_it_is(small_network, tmp_path, monkeypatch):
    def convert(*args, **options):
        raise MemoryError("out of memory")

    monkeypatch.setattr(torch.onnx, "export", convert)
    with pytest.raises(AfinaError, match=r"(?s)The export to ONNX failed.*MemoryError: out of memory") as caught:
        get_runtime("onnxruntime").export(small_network, tmp_path / "model.onnx")
    assert not isinstance(caught.value, Unsupported)


class _ViewedAttention(nn.Module):
    """Attention whose output is viewed as the kernel's strides allow, and a copy's do not."""

    def __init__(self):
        super().__init__()
        self.values, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        tokens = self.values(x.flatten(2).transpose(1, 2).expand(-1, -1, 8))
        heads = tokens.reshape(x.shape[0], -1, 2, 4).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(heads, heads, heads).permute(0, 2, 1, 3)
        return self.head(mixed.contiguous().view(x.shape[0], -1, 8).mean(1))


def test_a_view_that_fits_the_strides_of_one_kernel_alone_is_exported(tmp_path):
    network = capture(_ViewedAttention(), GREY)
    path = get_runtime("onnxruntime").export(network, tmp_path / "net.onnx")
    assert check_parity(network, path, None, threads=1) < 1e-3


def test_an_export_leaves_torch_onnx_as_it_was(small_network, tmp_path):
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    fills = registration.ONNXRegistry.__dict__["from_torchlib"]
    for name in ("first", "second"):
        get_runtime("onnxruntime").export(small_network, tmp_path / f"{name}.onnx")
    assert registration.ONNXRegistry.__dict__["from_torchlib"] is fills
    assert registration.ONNXRegistry.from_torchlib() is not registration.ONNXRegistry.from_torchlib()


def test_timing_imports_no_torch_and_nothing_that_reads_run_folders():
    code = "import afina.devices.worker, sys; sys.exit(bool({'torch', 'pydantic', 'yaml'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("windows", [False, True])
def test_attention_whose_heads_were_pruned_to_odd_sizes_is_exported(windows, tmp_path):
    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.qkv = torch.nn.Conv2d(1, 12, 2, stride=2), torch.nn.Linear(12, 3 * 4 * 24)
            self.proj, self.head = torch.nn.Linear(4 * 24, 12), torch.nn.Linear(12, 10)

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            shape = (-1, 2, 8, 3, 4, 24) if windows else (-1, 16, 3, 4, 24)
            q, k, v = (t.transpose(-3, -2) for t in self.qkv(x).view(shape).unbind(-3))
            x = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2)
            return self.head(self.proj(x.reshape(-1, 16, 96)).mean(1))

    network = capture(Attention(), GREY, DIGITS)
    free = {axis.kind: axis for axis in analyse(network).free}
    pruned = remove(network, {free["head-dim"]: range(23), free["heads"]: [0, 2, 3]})
    runtime = get_runtime("onnxruntime")
    path = runtime.export(pruned, tmp_path / "model.onnx")
    assert check_parity(pruned, path, None, threads=1) < 1e-4


class _Plain(nn.Module):
    """Ops that the short way to ONNX rewrites: they write into their inputs, or are general forms of others."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.more, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu_()
        x = F.hardswish(self.more(x), inplace=True).add_(x)
        x = 1 - x.div_(x.abs().mean(1, keepdim=True) + 1)
        x = F.adaptive_avg_pool2d(x, (3, 2)) * 2
        x = x + F.adaptive_avg_pool2d(x, (3, 2)).relu_()
        x = F.adaptive_avg_pool2d(x, (2, 1)) - F.adaptive_avg_pool2d(x, (5, 3))[:, :, 2:4, :1]
        return self.head(F.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1), 0.3, self.training, inplace=True))


class _Written(_Plain):
    """Writes into what is read again, and into a part of another tensor."""

    def forward(self, x):
        x = self.norm(self.stem(x))
        doubled = x.mul_(2.0)
        x = x + doubled
        x[:, :4].relu_()
        x = x + F.dropout(x, 0.3, self.training).tanh_()
        return self.head(F.adaptive_avg_pool2d(self.more(x), 1).flatten(1))


class _OfWeights(_Plain):
    """Makes of its weights alone what ONNX has no op for."""

    def __init__(self):
        super().__init__()
        self.embedding, self.groups = nn.Parameter(torch.randn(1, 8, 3, 4)), nn.GroupNorm(2, 8)

    def forward(self, x):
        mean, spread = self.more.weight.mean((1, 2, 3)), self.more.weight.std((1, 2, 3))
        standard = F.batch_norm(self.more.weight.reshape(1, 8, -1), None, None, training=True).reshape_as(
            self.more.weight
        )
        rows, columns = torch.meshgrid(spread[:6].cumsum(0), mean[:6], indexing="ij")
        x = self.norm(self.stem(x)) + F.interpolate(self.embedding, (6, 6), mode="bicubic", antialias=True)
        x = self.groups(x + rows * columns).relu_()
        return self.head(F.conv2d(x, standard, padding=1).mean((2, 3)))


class _Numbered(nn.Sequential):
    """Its weights have names that begin with a digit; its attention squeezes several dimensions at once."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(2), _Attention(36), nn.Linear(36, 10))

    @property
    def norm(self):
        return self[1]


class _Attention(nn.MultiheadAttention):
    def __init__(self, width):
        super().__init__(width, 4, batch_first=True)

    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0].mean(1)


@pytest.mark.parametrize(("kind", "short"), [(_Plain, True), (_OfWeights, True), (_Numbered, True), (_Written, False)])
def test_onnx_files_are_right_with_and_without_tracing_the_network_anew(kind, short, tmp_path, monkeypatch):
    torch.manual_seed(0)
    module = kind()
    nn.init.uniform_(module.norm.running_mean)
    network = capture(module.eval(), GREY, DIGITS)
    traced = []

    def noted(name, general):
        return lambda *args, **options: traced.append(name) or general(*args, **options)

    for owner, name in ((torch.export, "export"), (torch.export.ExportedProgram, "run_decompositions")):
        monkeypatch.setattr(owner, name, noted(name, getattr(owner, name)))
    runtime = get_runtime("onnxruntime")
    path = runtime.export(network, tmp_path / "model.onnx")
    assert traced == ([] if short else ["export", "run_decompositions"])
    assert check_parity(network, path, None, threads=1) < 1e-4
    inputs = torch.randn(4, *SHAPE)
    with torch.no_grad():
        answers = only(runtime.load(path, threads=1)(inputs.numpy()))
        assert np.allclose(answers, module(inputs.clone()).numpy(), atol=1e-4)


class TextReader(nn.Module):
    """Columns of a picture, read by recurrent layers of each kind."""

    def __init__(self, projected=0):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(5, 4)
        self.lstm = nn.LSTM(6, 3 + projected, 2, bidirectional=True, batch_first=True, proj_size=projected)
        self.gru, self.rnn = nn.GRU(6, 6), nn.RNN(6, 5, batch_first=True)

    def forward(self, x):
        columns = self.stem(x).relu().mean(2).transpose(1, 2)
        first, _ = self.lstm(columns)
        second, _ = self.gru(first.transpose(0, 1))
        third, last = self.rnn(second.transpose(0, 1))
        return self.head(third).mean(1) + self.head(last[-1])


@pytest.fixture
def recurrent_ops(monkeypatch):
    """The operators of recurrent layers; to break one up into a few operators for each column is an error."""
    ops = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)
    for op in ops:
        for key in list(op.py_kernels):
            monkeypatch.setitem(op.py_kernels, key, lambda *args: pytest.fail("The layer was broken up."))
        op._dispatch_cache.clear()
    yield ops
    monkeypatch.undo()
    for op in ops:
        op._dispatch_cache.clear()


def test_a_recurrent_layer_is_one_step_from_the_capture_to_the_files(runtime, recurrent_ops, tmp_path):
    module = TextReader().eval()
    network = capture(module, replace(GREY, height=6, width=10))
    assert {node.target for node in network.graph.nodes} >= {*recurrent_ops, torch.ops.aten.rnn_tanh.input}
    network.save(tmp_path / "reader.pt2")
    again = Network.load(tmp_path / "reader.pt2")
    images = torch.randn(3, 1, 6, 10)
    with torch.no_grad():
        assert (only(again(images)) - module(images)).abs().max() < 1e-6
    path = runtime.export(again, tmp_path / f"reader{runtime.suffix}")
    assert check_parity(again, path, images, threads=1) < 1e-4


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_projected_lstm_is_refused_by_its_name(name, tmp_path):
    runtime = get_runtime(name)
    network = capture(TextReader(projected=3), replace(GREY, height=6, width=8))
    with pytest.raises(Unsupported, match=r"projects 6 cells to 3 outputs \(proj_size\)"):
        runtime.export(network, tmp_path / f"reader{runtime.suffix}")
    assert not list(tmp_path.iterdir())


def test_parity_is_checked_on_as_many_images_at_once_as_suit_their_size(tmp_path, monkeypatch):
    """On 32 images of 896 pixels at once a SAM2-Hiera needed more than 22 GB."""
    large = replace(GREY, height=512, width=512)
    network = capture(nn.Sequential(nn.Conv2d(1, 10, 3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()), large, DIGITS)
    path = RUNTIMES["onnxruntime"].export(network, tmp_path / "large.onnx")
    seen = []

    def run(session, path, images):
        seen.append(len(images))
        return session(images)

    monkeypatch.setattr(parity, "run_session", run)
    assert check_parity(network, path, None, threads=1) < 1e-4
    assert sum(seen) == 32
    assert max(seen) == large.batch < 32


def test_the_code_that_a_runtime_gives_for_its_files_runs_them(runtime, small_network, tmp_path):
    path = runtime.export(small_network, tmp_path / f"model{runtime.suffix}")
    images = small_network.example(1)
    names = {"x": images.numpy()}
    code = runtime.usage.format(file=path)
    if runtime.name == "pt2":
        code = code.replace("import torch\n", "")
        names["torch"] = torch
    exec(code, names)
    with small_network.inference():
        assert np.allclose(only(names["outputs"]), only(small_network(images)).numpy(), atol=1e-4)


def test_a_format_names_its_runtime():
    assert {name: runtime_of_format(name).name for name in ("onnx", "pt2")} == {"onnx": "onnxruntime", "pt2": "pt2"}
    assert formats()[:3] == ("onnx", "openvino", "pt2")
    with pytest.raises(InputError, match="Did you mean onnx"):
        runtime_of_format("onxx")


_OTHER_RUNTIME = """
from afina.runtimes.pt2 import TorchRuntime
class Other(TorchRuntime):
    name, format, suffix = "other", "other", {suffix!r}
"""


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """Makes an installed package with a runtime `other`."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(source):
        (tmp_path / "otherpackage.py").write_text(source)
        info = tmp_path / "otherpackage-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: otherpackage\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[afina.runtimes]\nother = otherpackage:Other\n")
        RUNTIMES.refresh()

    yield install
    monkeypatch.undo()
    sys.modules.pop("otherpackage", None)
    RUNTIMES.refresh()


def test_the_runtime_of_another_package_is_found_by_name_format_and_ending(other_package):
    other_package(_OTHER_RUNTIME.format(suffix=".other"))
    assert "otherpackage" not in sys.modules
    runtime = get_runtime("other")
    assert runtime_of("model.other") is runtime_of_format("other") is runtime
    assert runtime_of("model.onnx").name == "onnxruntime"


BROKEN_RUNTIMES = {
    "not importable": ("import no_such_library", "cannot be imported.*no_such_library"),
    "an ending without a dot": (_OTHER_RUNTIME.format(suffix="other"), "`suffix` is 'other'"),
    "no ending": ("class Other: pass", "not a subclass of afina.runtimes.base.Runtime"),
    "usage with single braces": (_OTHER_RUNTIME.format(suffix=".o") + "    usage = '{x}'\n", "`usage` has braces"),
}


@pytest.mark.parametrize("case", BROKEN_RUNTIMES)
def test_a_broken_runtime_of_another_package_is_named_and_breaks_no_other(case, other_package):
    from afina.jobs.doctor import doctor

    source, expected = BROKEN_RUNTIMES[case]
    other_package(source)
    assert get_runtime("onnxruntime").name == "onnxruntime"
    assert runtime_of("model.pt2").name == "pt2"
    with pytest.raises(InputError, match=rf"(?s)'other' of the package otherpackage.*{expected}"):
        get_runtime("other")
    (check,) = [check for check in doctor()[1] if check.name == "runtime other"]
    assert not check.good
    with pytest.raises(InputError, match=r"(?s)No runtime is known.*otherpackage"):
        runtime_of("model.other")


def test_doctor_says_of_int8_what_quantization_does(monkeypatch):
    from afina.jobs import doctor

    for bits, expected in ((8, "exact products"), (7, "kept to 7 bits")):
        monkeypatch.setattr(doctor, "int8_weight_bits", lambda bits=bits: bits)
        assert any(expected in check.found for check in doctor.doctor()[1] if check.name == "int8 kernels")


def test_a_file_that_torch_runs_leaves_the_process_its_threads(small_network, tmp_path):
    before = torch.get_num_threads()
    session = get_runtime("pt2").load(get_runtime("pt2").export(small_network, tmp_path / "m.pt2"), threads=before + 1)
    session(small_network.example().numpy())
    assert torch.get_num_threads() == before


def test_a_float_network_may_be_exported_before_a_quantized_one_in_the_same_process(tmp_path):
    code = """
import sys
from torch import nn
from afina.graph import capture
from afina.runtimes import get_runtime
from afina.types import InputSpec
net = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval(), InputSpec(8, 8))
get_runtime("onnxruntime").export(net, sys.argv[1] + "/a.onnx")
from afina.techniques.context import Context
from afina.techniques.quantize import QuantizeConfig, apply
images = net.example(4)
made, _ = apply(net, QuantizeConfig(calibration="minmax"), Context(calibration=lambda: iter([images]), images=4))
get_runtime("onnxruntime").export(made, sys.argv[1] + "/b.onnx")
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "b.onnx").exists()


class Queries(nn.Module):
    """Chooses the places of the highest scores, and gives boxes and classes of those, as transformer detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.score = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        self.boxes, self.classes = nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.body(x).relu()
        places = self.score(maps).flatten(1).topk(6).indices
        rows = maps.flatten(2).transpose(1, 2).gather(1, places.unsqueeze(-1).expand(-1, -1, 8))
        return {"boxes": self.boxes(rows), "classes": self.classes(rows)}


@pytest.fixture(scope="module")
def queries() -> Network:
    torch.manual_seed(0)
    return capture(Queries().eval(), GREY)


def test_rows_that_a_network_chooses_are_compared_as_a_set(queries, tmp_path):
    from afina.runtimes.choosing import chosen_counts, in_order_of

    assert chosen_counts(queries) == {6}
    with queries.inference():
        expected = {name: value.numpy() for name, value in queries(queries.example(4)).items()}
    shuffled = {name: np.ascontiguousarray(value[:, [1, 0, 2, 5, 3, 4]]) for name, value in expected.items()}
    again = in_order_of(expected, shuffled, chosen_counts(queries))
    assert all(np.array_equal(again[name], value) for name, value in expected.items())
    # A row that is wrong stays wrong, and outputs are put in one order together.
    shuffled["boxes"][:, 0] += 5
    wrong = in_order_of(expected, shuffled, chosen_counts(queries))
    assert np.abs(wrong["boxes"] - expected["boxes"]).max() > 1
    path = get_runtime("onnxruntime").export(queries, tmp_path / "model.onnx")
    assert check_parity(queries, path, None, threads=1) < 1e-5


def test_images_in_which_rounding_chooses_are_told(queries):
    from afina.runtimes.choosing import surely_chosen

    images = queries.example(4).numpy()
    assert surely_chosen(queries, [images]).all()
    images[1] = 0.0  # the same score at all places
    assert surely_chosen(queries, [images]).tolist() == [True, False, True, True]
    assert surely_chosen(queries, [0 * images]).all()  # too few would be left
