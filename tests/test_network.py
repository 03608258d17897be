"""The captured network: equal to its module, trainable like it, saved to a file that is safe to load."""

import copy
import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import DIGITS, GREY, SmallNet, only
from torch import nn

from afina.errors import InputError, Unsupported
from afina.graph import Network, capture
from afina.graph.cost import cost_of
from afina.types import InputSpec, TaskSpec


def _steps(forward, parameters, count=4):
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for _ in range(count):
        outputs = forward(torch.randn(8, 1, 8, 8))
        loss = (only(outputs) if isinstance(outputs, dict) else outputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_outputs_equal_the_modules_for_any_batch(small_module, small_network, batch):
    images = torch.randn(batch, 1, 8, 8)
    with small_network.inference():
        assert torch.allclose(only(small_network(images)), small_module.eval()(images), atol=1e-5)


def test_capturing_leaves_the_module_as_it_was(small_module):
    small_module.train()
    before = copy.deepcopy(small_module.state_dict())
    capture(small_module, GREY, DIGITS)
    assert small_module.training
    assert all(torch.equal(before[key], value) for key, value in small_module.state_dict().items())


def test_it_trains_like_the_module_with_batch_statistics(small_module):
    small_module.dropout.p = 0.0
    network = capture(small_module, GREY, DIGITS).train()
    small_module.train()
    _steps(network, list(network.module.parameters()))
    _steps(small_module, list(small_module.parameters()))
    state = network.module.state_dict()
    for key, value in small_module.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(state[key], value), key


def test_it_can_be_trained_as_an_ordinary_module(small_network):
    module = small_network.trainable()
    before = small_network.module.get_parameter("head.weight").detach().clone()
    optimizer = torch.optim.SGD(module.train().parameters(), lr=0.1)
    assert small_network.training
    only(module(small_network.example(4))).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, small_network.module.get_parameter("head.weight"))
    with torch.no_grad():
        expected = only(small_network.eval()(small_network.example()))
        assert torch.equal(only(module.eval()(small_network.example())), expected)
    assert not small_network.training


def test_dropout_works_in_training_only(small_network):
    images = torch.randn(64, 1, 8, 8)
    with small_network.inference():
        assert torch.equal(only(small_network(images)), only(small_network(images)))
    small_network.train()
    assert not torch.equal(only(small_network(images)), only(small_network(images)))


def test_a_frozen_batch_norm_stays_frozen_also_after_loading(tmp_path):
    class Frozen(SmallNet):
        def train(self, mode: bool = True) -> "Frozen":
            super().train(mode)
            self.norm.eval()
            return self

    network = capture(Frozen(), GREY, DIGITS)
    for one in (network, Network.load(network.save(tmp_path / "n.pt2"))):
        before = one.module.get_buffer("norm.running_mean").clone()
        one.train()(torch.randn(8, 1, 8, 8))
        assert torch.equal(before, one.module.get_buffer("norm.running_mean"))
        assert one.module.get_buffer("inner_norm.running_mean").abs().sum() > 0


def test_a_saved_network_loads_without_the_class_and_answers_the_same(small_network, tmp_path):
    path = small_network.save(tmp_path / "network.pt2")
    images = torch.randn(3, 1, 8, 8)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch; from afina import Network; n = Network.load(sys.argv[1]);"
        "assert 'conftest' not in sys.modules;"
        "torch.save((n(torch.load(sys.argv[2]))['outputs'].detach(), n.input.order, n.task.labels), sys.argv[3])"
    )
    subprocess.run([sys.executable, "-c", code, path, tmp_path / "images.pt", tmp_path / "out.pt"], check=True)
    outputs, order, labels = torch.load(tmp_path / "out.pt")
    with small_network.inference():
        assert torch.equal(outputs, only(small_network(images)))
    assert (order, labels) == ("L", DIGITS.labels)


def test_a_loaded_network_trains_like_the_saved_one(small_network, tmp_path):
    loaded = Network.load(small_network.save(tmp_path / "n.pt2"))
    for one in (small_network, loaded):
        one.train()
        _steps(one, list(one.module.parameters()), count=2)
    for key, value in small_network.module.state_dict().items():
        assert torch.equal(value, loaded.module.state_dict()[key]), key


def test_a_copy_is_independent(small_network):
    twin = small_network.copy().train()
    _steps(twin, list(twin.module.parameters()), count=1)
    assert not small_network.training
    assert not torch.equal(twin.module.get_parameter("head.weight"), small_network.module.get_parameter("head.weight"))


def _rewritten(path: Path, target: Path, change) -> Path:
    """The archive with `change(name, data) -> data` applied to each of its files."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as out:
        for name in source.namelist():
            out.writestr(name, change(name, source.read(name)))
    return target


class _Bomb:
    def __reduce__(self):
        return (exec, ("import pathlib, os; pathlib.Path(os.environ['AFINA_BOMB']).touch()",))


def _pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save((_Bomb(),), buffer)
    return buffer.getvalue()


def _poison_inputs(name, data):
    return _pickled() if "sample_inputs" in name else data


def _poison_weight(name, data):
    if name.endswith("model_weights_config.json"):
        config = json.loads(data)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config).encode()
    return pickle.dumps(_Bomb()) if name.endswith("weight_0") else data


def _poison_expression(name, data):
    bomb = "__import__('pathlib').Path('bomb').touch()"
    return data.replace(b"Symbol('s", f"{bomb} or Symbol('s".encode()) if name.endswith("model.json") else data


def _poison_operator(name, data):
    return data.replace(b"torch.ops.aten.relu.default", b"torch.hub.load") if name.endswith("model.json") else data


@pytest.mark.parametrize("poison", [_poison_inputs, _poison_weight, _poison_expression, _poison_operator])
def test_a_file_that_would_run_code_is_refused_and_runs_none(small_network, tmp_path, monkeypatch, poison):
    flag = tmp_path / "bomb"
    monkeypatch.setenv("AFINA_BOMB", str(flag))
    monkeypatch.chdir(tmp_path)
    path = _rewritten(small_network.save(tmp_path / "n.pt2"), tmp_path / "evil.pt2", poison)
    with pytest.raises(InputError, match="refused"):
        Network.load(path)
    assert not flag.exists()


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_a_broken_file_is_one_clear_error(tmp_path, content):
    (tmp_path / "n.pt2").write_bytes(content)
    with pytest.raises(InputError, match="not a saved network"):
        Network.load(tmp_path / "n.pt2")


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="no file"):
        Network.load(tmp_path / "nothing.pt2")


def test_a_file_by_plain_torch_export_is_refused_by_name(small_module, tmp_path):
    program = torch.export.export(small_module.eval(), (torch.randn(2, 1, 8, 8),))
    torch.export.save(program, tmp_path / "n.pt2")
    with pytest.raises(InputError, match="not written by this library"):
        Network.load(tmp_path / "n.pt2")


def test_a_module_that_fails_on_the_size_says_so(small_module):
    with pytest.raises(InputError, match="fails on images of shape"):
        capture(small_module, InputSpec(8, 8), DIGITS)


def test_an_output_of_the_wrong_width_says_what_the_data_has(small_module):
    with pytest.raises(InputError, match="7 classes"):
        capture(small_module, GREY, TaskSpec("classification", tuple("0123456")))


def test_control_flow_on_values_is_refused_with_the_reason():
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.mean((2, 3)).repeat(1, 10)
            return y if x.sum() > 0 else -y

    with pytest.raises(Unsupported, match="could not be captured"):
        capture(Branches(), GREY, DIGITS)


def test_an_autocast_block_and_a_norm_without_running_statistics_are_captured_as_plain_ops():
    class Mixed(SmallNet):
        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                x = torch.relu(self.norm(self.stem(x)))
                x = torch.relu(x + nn.functional.batch_norm(self.inner(x), None, None, training=True))
            return self.head(x.mean(dim=(2, 3)))

    module = Mixed().eval()
    network = capture(module, GREY, DIGITS)
    assert not [node for node in network.graph.nodes if "autocast" in str(node.target)]
    images = torch.randn(3, 1, 8, 8)
    with network.inference():
        assert torch.allclose(only(network(images)), module(images), atol=1e-5)
    only(network.train()(images)).sum().backward()


def test_checks_of_types_are_not_layers():
    class Converted(nn.Module):
        """Interpolates an embedding in float32, as vision transformers do."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Parameter(torch.randn(1, 1, 4, 4)), nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            grown = nn.functional.interpolate(self.embedding.float(), size=(8, 8), mode="bicubic")
            return self.head((x + grown.to(x.dtype)).flatten(1))

    network = capture(Converted(), GREY, DIGITS)
    assert not any("assert" in str(node.target) for node in network.graph.nodes)
    assert cost_of(network).parameters == 16 + 650
