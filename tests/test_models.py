"""Models: every way to name one, its weights, its input, its last layer."""

import argparse
import pickle
import time
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from conftest import only
from torch import Tensor, nn

from afina.errors import InputError
from afina.graph import Network, capture
from afina.models import Preprocessing, hub, load_model, sources
from afina.models.builtin import convnet, mlp
from afina.models.head import find_head
from afina.types import UNKNOWN_TASK, InputSpec, TaskSpec

GREY = InputSpec(8, 8, (0.5,), (0.5,), "L")
COLOUR = InputSpec(16, 16)
HALF = (0.5, 0.5, 0.5)
DIGITS = TaskSpec("classification", tuple("0123456789"))
PETS = TaskSpec("classification", ("cat", "dog", "fish"))
AGE = TaskSpec("regression", ("age",))

USER_FILE = """
import torch
from torch import nn
from layers import Block

class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.block = Block()
        self.fc = nn.Linear(8, classes)
    def forward(self, x):
        return self.fc(self.block(x).mean(dim=(2, 3)))

def fixed():
    return Net()
def told(classes=4):
    return Net(classes)
def told_too(*, num_classes):
    return Net(num_classes)
def stated():
    net = Net()
    net.input_size, net.mean, net.std = (3, 20, 24), (0.1, 0.2, 0.3), [0.4, 0.5, 0.6]
    return net
def broken():
    return Net(classes=undefined)
def nothing():
    return "a network"
"""
LAYERS_FILE = """
from torch import nn

class Block(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
"""


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a network nor what an earlier download left on the machine decides these tests."""
    from huggingface_hub import constants

    monkeypatch.setattr(sources, "is_reachable", lambda url: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    (tmp_path / "layers.py").write_text(LAYERS_FILE)
    (tmp_path / "net.py").write_text(USER_FILE)
    return tmp_path / "net.py"


class Plain(nn.Module):
    """A network of a user's, with or without a batch norm that has seen images."""

    def __init__(self, classes: int = 3, seen: bool = True, bias: bool = True):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, classes, bias=bias)
        if seen:
            nn.init.uniform_(self.norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean(dim=(2, 3)))


def answers(network: Network, images: Tensor) -> Tensor:
    with network.inference():
        return only(network(images))


# Names


def test_a_name_is_looked_up_in_timm_then_in_torchvision() -> None:
    loaded = load_model("test_resnet", weights="random", task=PETS)
    assert (loaded.network.task, loaded.source, loaded.pretrained) == (PETS, "test_resnet", False)
    assert loaded.network.input == InputSpec(160, 160, HALF, HALF, resize="crop", crop_share=0.95), "timm says so"
    assert load_model("squeezenet1_1", weights="random", task=PETS).network.input.height == 224
    assert load_model("torchvision:mobilenet_v3_small", weights="random", task=PETS).layers_of_head == ("classifier.3",)


def test_a_network_without_data_keeps_its_own_outputs() -> None:
    network = load_model("torchvision:squeezenet1_1", weights="random").network
    assert network.task.outputs == 1000
    assert answers(network, network.example()).shape == (2, 1000)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnt18", "Did you mean resnet18 "),
        ("timm:test_resnte", "Did you mean timm:test_resnet"),
        ("torchvision:resnet181", "Did you mean torchvision:resnet18"),
        ("builtin:convent", "Did you mean builtin:convnet"),
        ("timm:resnet18.a1_in1", "Did you mean resnet18.a1_in1k"),
        ("tim:resnet18", "Did you mean timm"),
        ("models/resnet18", "path/file.py:builder"),
        ("", "path/file.py:builder"),
        ("weights.pth", "no file weights.pth"),
        ("model.onnx", "no file model.onnx"),
        ("model.xml", "afina benchmark model.xml"),
        ("model.pt2", "no file model.pt2"),
        ("nowhere/model.py:build", "no file nowhere/model.py"),
    ],
)
def test_a_mistyped_model_says_what_was_meant(name: str, meant: str) -> None:
    with pytest.raises(InputError) as caught:
        load_model(name)
    assert meant in str(caught.value)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, same, other = (load_model("builtin:convnet", input=GREY, seed=seed).network for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    images = first.example()
    assert torch.equal(answers(first, images), answers(same, images))
    assert not torch.allclose(answers(first, images), answers(other, images))


# Weights of the libraries


@pytest.mark.parametrize("name", ["timm:test_resnet", "torchvision:squeezenet1_1"])
def test_weights_that_cannot_be_downloaded_are_said_so_at_once(name: str) -> None:
    start = time.monotonic()
    loaded = load_model(name, task=PETS)
    assert time.monotonic() - start < 20
    assert not loaded.pretrained
    (note,) = loaded.notes
    assert "starts from random weights: there is no connection to" in note
    with pytest.raises(InputError, match=r"not available[\s\S]*no connection to[\s\S]*--weights"):
        load_model(name, weights="pretrained", task=PETS)


def test_a_hub_that_swallows_packets_is_given_up_after_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_connects", lambda host, port, patience: time.sleep(3) or True)
    start = time.monotonic()
    assert not hub.is_reachable("https://example.org", patience=0.2)
    assert time.monotonic() - start < 1


def test_behind_a_proxy_the_proxy_is_what_must_be_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(hub, "_connects", lambda host, port, patience: bool(asked.append((host, port))) or True)
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy.local:3128"})
    assert hub.is_reachable("https://example.org/file")
    monkeypatch.setattr(hub, "getproxies", dict)
    assert hub.is_reachable("https://example.org/file")
    assert asked == [("proxy.local", 3128), ("example.org", 443)]


def test_weights_in_the_cache_need_no_network(tmp_path: Path) -> None:
    import timm
    import torchvision
    from safetensors.torch import save_file

    squeeze = torchvision.models.get_model("squeezenet1_1", weights=None)
    cached = tmp_path / "torch" / "hub" / "checkpoints"
    cached.mkdir(parents=True)
    url = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.url
    torch.save(squeeze.state_dict(), cached / url.rpartition("/")[2])
    loaded = load_model("torchvision:squeezenet1_1", input=COLOUR)
    assert loaded.pretrained
    assert not loaded.notes
    assert loaded.network.input.height == 224, "trained weights keep the size that they were trained at"
    images = loaded.network.example()
    with torch.no_grad():
        expected = squeeze.eval()(images)
    torch.testing.assert_close(answers(loaded.network, images), expected)

    small = timm.create_model("test_resnet")
    folder = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(small.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    same = load_model("test_resnet")
    assert same.pretrained
    images = same.network.example()
    with torch.no_grad():
        torch.testing.assert_close(answers(same.network, images), small.eval()(images))
    other = load_model("test_resnet", task=PETS)
    assert not other.pretrained, "a new head must be trained"
    assert other.notes == ("The model had 1000 outputs for other classes; the data has 3: new last layer (fc).",)


# Input


def test_a_trained_size_gives_way_to_smaller_data_only_with_random_weights() -> None:
    assert load_model("test_resnet", weights="random", task=PETS, input=COLOUR).network.input.shape == COLOUR.shape
    large = InputSpec(500, 400)
    assert load_model("test_resnet", weights="random", task=PETS, input=large).network.input.height == 160
    fixed = load_model("test_vit", weights="random", task=PETS, input=InputSpec(24, 24)).network.input
    assert (fixed.height, fixed.width) == (160, 160), "a model of one size keeps it"


def test_the_users_size_wins_also_for_models_of_one_size() -> None:
    for name in ("test_resnet", "test_vit"):
        network = load_model(name, weights="random", task=PETS, input=COLOUR, input_size=(64, 96)).network
        assert network.input.shape == (3, 64, 96)
        assert answers(network, network.example()).shape == (2, 3)


def test_grey_images_are_replicated_for_a_model_that_takes_colour() -> None:
    assert load_model("test_resnet", weights="random", task=DIGITS, input=GREY).network.input.order == "RGB"
    one = load_model(nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), task=PETS, input=COLOUR)
    assert one.network.input == InputSpec(16, 16, (0.5,), (0.5,), "L")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    assert load_model(flat, task=PETS, input=GREY).network.input == GREY
    assert load_model(flat, task=PETS, input=InputSpec(8, 8)).network.input.order == "L"


def test_a_model_file_may_state_its_input(user_file: Path) -> None:
    network = load_model(f"{user_file}:stated", task=PETS, input=COLOUR).network
    assert network.input == InputSpec(20, 24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert load_model(f"{user_file}:fixed", task=PETS, input=COLOUR).network.input == COLOUR
    assumed = load_model(f"{user_file}:fixed")
    assert assumed.network.input == InputSpec(224, 224)
    assert any("224x224 is assumed" in note for note in assumed.notes)


def test_a_model_that_fails_on_the_size_says_so() -> None:
    with pytest.raises(InputError, match="--input-size"):
        load_model(nn.Sequential(nn.Flatten(), nn.Linear(100, 3)), task=PETS, input=COLOUR)


# A user's file


@pytest.mark.parametrize("builder", ["told", "told_too"])
def test_a_builder_is_told_the_number_of_classes(user_file: Path, builder: str) -> None:
    loaded = load_model(f"{user_file}:{builder}", task=PETS, input=COLOUR)
    assert loaded.network.task == PETS
    assert loaded.layers_of_head == ("fc",)
    assert not any("last layer" in note for note in loaded.notes)


def test_a_builder_of_fixed_width_gets_a_new_head_and_the_user_is_told(user_file: Path) -> None:
    loaded = load_model(f"{user_file}:fixed", task=PETS, input=COLOUR)
    assert answers(loaded.network, loaded.network.example()).shape == (2, 3)
    assert "The model had 4 outputs for other classes; the data has 3: new last layer (fc)." in loaded.notes


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        ("tld", "no function 'tld'[\\s\\S]*Did you mean told"),
        ("", "needs the name of a function[\\s\\S]*fixed"),
        ("broken", "broken\\(\\) in[\\s\\S]*NameError[\\s\\S]*undefined[\\s\\S]*net.py, line 25"),
        ("nothing", "returns a str"),
        ("torch", "is not a function"),
    ],
)
def test_a_builder_that_cannot_be_used_is_refused(user_file: Path, builder: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(f"{user_file}:{builder}", input=COLOUR)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def (", "SyntaxError[\\s\\S]*line 1"),
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("exit(1)", "SystemExit"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "net.py").write_text(text)
    with pytest.raises(InputError, match=message):
        load_model(f"{tmp_path / 'net.py'}:build")


def test_two_folders_may_each_have_a_file_of_the_same_name(user_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "net.py").write_text(USER_FILE)
    (other / "layers.py").write_text(LAYERS_FILE.replace("nn.ReLU()", "nn.Sigmoid()"))
    targets = []
    for file in (user_file, other / "net.py"):
        graph = load_model(f"{file}:fixed", task=PETS, input=COLOUR).network.graph
        targets.append({str(node.target) for node in graph.nodes})
    assert "aten.relu.default" in targets[0]
    assert "aten.sigmoid.default" in targets[1]


# Weights files


def test_weights_of_a_file_give_a_model_that_needs_no_training(user_file: Path, tmp_path: Path) -> None:
    first = load_model(f"{user_file}:told", task=PETS, input=COLOUR, seed=1).network
    state = dict(first.module.state_dict())
    images = first.example()
    from safetensors.torch import save_file

    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"epoch": 3, "model_state_dict": OrderedDict(state)}, tmp_path / "wrapped.pt")
    torch.save({"state_dict": {f"module._orig_mod.{key}": value for key, value in state.items()}}, tmp_path / "ddp.bin")
    torch.save({"state_dict": {f"model.{key}": value for key, value in state.items()}}, tmp_path / "lightning.ckpt")
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"model": half}, tmp_path / "half.pth")
    for name in ("w.safetensors", "plain.pth", "wrapped.pt", "ddp.bin", "lightning.ckpt", "half.pth"):
        loaded = load_model(f"{user_file}:told", weights=str(tmp_path / name), task=PETS, input=COLOUR, seed=2)
        assert loaded.pretrained
        assert any("cat, dog, fish" in note for note in loaded.notes)
        tolerance = 1e-2 if name == "half.pth" else 1e-6
        torch.testing.assert_close(
            answers(loaded.network, images), answers(first, images), rtol=tolerance, atol=tolerance
        )


def test_weights_with_another_number_of_classes_keep_all_but_the_last_layer(user_file: Path, tmp_path: Path) -> None:
    first = load_model(f"{user_file}:told", task=DIGITS, input=COLOUR, seed=1).network
    torch.save(first.module.state_dict(), tmp_path / "w.pth")
    loaded = load_model(f"{user_file}:told", weights=tmp_path / "w.pth", task=PETS, input=COLOUR)
    assert not loaded.pretrained
    assert "The last layer (fc) has 10 outputs in w.pth and 3 in the model: it starts anew." in loaded.notes
    mine, theirs = loaded.network.module.state_dict(), first.module.state_dict()
    assert torch.equal(mine["block.0.weight"], theirs["block.0.weight"])
    fixed = load_model(f"{user_file}:fixed", weights=tmp_path / "w.pth", task=DIGITS, input=COLOUR)
    assert not fixed.pretrained, "the builder's 4 outputs fit neither the file nor the data"


def test_weights_that_do_not_match_name_the_first_keys(user_file: Path, tmp_path: Path) -> None:
    state = dict(load_model(f"{user_file}:told", task=PETS, input=COLOUR).network.module.state_dict())
    state["extra.weight"] = torch.zeros(1)
    del state["block.1.bias"]
    state["block.0.weight"] = torch.zeros(8, 3, 5, 5)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError) as caught:
        load_model(f"{user_file}:told", weights=tmp_path / "w.pth", task=PETS, input=COLOUR)
    assert "Missing in the file: block.1.bias" in caught.value.why
    assert "Not in the model: extra.weight" in caught.value.why
    assert "block.0.weight ([8, 3, 5, 5] in the file, [8, 3, 3, 3] in the model)" in caught.value.why


class Payload:
    """A pickle that would write a file if it were run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_pickle_with_code_is_refused_and_not_run(user_file: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": Payload(tmp_path / "run")}, tmp_path / "evil.pth")
    torch.save(Plain(), tmp_path / "module.pth")
    (tmp_path / "raw.bin").write_bytes(pickle.dumps(Payload(tmp_path / "run")))
    for name in ("evil.pth", "module.pth", "raw.bin"):
        with pytest.raises(InputError, match=name) as caught:
            load_model(f"{user_file}:told", weights=tmp_path / name, task=PETS, input=COLOUR)
        if name != "raw.bin":
            assert "could run code" in caught.value.why
            assert "state_dict()" in caught.value.fix
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.pth", None, "no file"),
        ("broken.pth", b"not a file of torch", "cannot be read"),
        ("empty.pth", b"", "cannot be read"),
        ("broken.safetensors", b"\xff" * 64, "cannot be read"),
        ("weights.h5", b"", "ends in '.h5'"),
        ("rnadom", None, "`random`, `pretrained`"),
    ],
)
def test_a_weights_file_that_cannot_be_read_is_refused(
    user_file: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_model(f"{user_file}:told", weights=tmp_path / name, task=PETS, input=COLOUR)


def test_a_file_without_tensors_is_refused(user_file: Path, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"holds no weights[\s\S]*epoch, optimizer"):
        load_model(f"{user_file}:told", weights=tmp_path / "w.pth", task=PETS, input=COLOUR)


# Modules and networks from Python


def test_a_module_keeps_its_weights_and_is_left_as_it_was() -> None:
    module = Plain().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    loaded = load_model(module, task=PETS, input=COLOUR)
    assert loaded.pretrained
    assert loaded.source == "Plain"
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    images = loaded.network.example()
    with torch.no_grad():
        torch.testing.assert_close(answers(loaded.network, images), module.eval()(images))


def test_a_module_whose_batch_norms_saw_no_images_needs_training() -> None:
    loaded = load_model(Plain(seen=False), task=PETS, input=COLOUR)
    assert not loaded.pretrained
    assert any("have seen no images" in note for note in loaded.notes)
    assert not load_model(Plain(seen=True), weights="random", task=PETS, input=COLOUR).pretrained


def test_a_regression_head_starts_from_the_mean_of_the_targets() -> None:
    targets = torch.tensor([[20.0], [40.0]])
    for module in (Plain(classes=5), Plain(classes=5, bias=False), Plain(classes=1, seen=False)):
        loaded = load_model(module, task=AGE, input=COLOUR, targets=targets)
        assert not loaded.pretrained
        head = find_head(loaded.network)
        assert head is not None
        assert head.bias is not None
        assert loaded.network.module.get_parameter(head.bias).item() == pytest.approx(30.0)
        assert answers(loaded.network, loaded.network.example()).shape == (2, 1)


def test_a_new_head_of_a_convolution_trains_and_is_saved(tmp_path: Path) -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Dropout(0.2), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    loaded = load_model(module, task=PETS, input=COLOUR)
    assert loaded.layers_of_head == ("2",)
    network = loaded.network.train()
    only(network(network.example())).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.module.parameters())
    again = Network.load(network.save(tmp_path / "m.pt2"))
    assert again.task == PETS
    assert answers(again, again.example(5)).shape == (5, 3)


def test_a_model_whose_last_layer_cannot_be_found_is_refused() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.mean(dim=(2, 3))
            return self.a(x) + self.b(x)

    with pytest.raises(InputError, match="last layer cannot be replaced"):
        load_model(Two(), task=PETS, input=COLOUR)


def test_a_saved_network_loads_by_its_path(tmp_path: Path) -> None:
    saved = capture(Plain(), COLOUR, PETS).save(tmp_path / "m.pt2")
    for task in (None, PETS):
        loaded = load_model(str(saved), task=task, input=GREY)
        assert loaded.pretrained
        assert not loaded.notes
        assert (loaded.network.task, loaded.network.input) == (PETS, COLOUR)
    larger = load_model(saved, input_size=(24, 32)).network
    assert larger.input.shape == (3, 24, 32)
    assert answers(larger, larger.example()).shape == (2, 3)
    with pytest.raises(InputError, match="always has weights"):
        load_model(saved, weights="random")


def test_a_network_made_for_one_size_says_so() -> None:
    network = capture(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), GREY, PETS)
    with pytest.raises(InputError, match="captured for 8x8"):
        load_model(network, input_size=(9, 9))


def test_outputs_follow_the_names_of_the_classes() -> None:
    network = capture(Plain(), COLOUR, PETS)
    order = TaskSpec("classification", ("fish", "cat", "dog"))
    loaded = load_model(network, task=order, input=COLOUR)
    assert loaded.pretrained
    assert loaded.network.task == order
    assert loaded.notes == ("Its outputs were put into the order of the data's classes: fish, cat, dog.",)
    images = network.example()
    torch.testing.assert_close(answers(loaded.network, images), answers(network, images)[:, [2, 0, 1]])
    assert network.task == PETS, "the network given is left as it was"


def test_a_network_for_other_classes_gets_a_new_head() -> None:
    network = capture(Plain(), COLOUR, PETS)
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    for task in (TaskSpec("classification", ("bus", "car", "van")), TaskSpec("classification", ("a", "b")), AGE):
        loaded = load_model(network, task=task, input=COLOUR)
        assert not loaded.pretrained
        assert any("new last layer (fc)" in note for note in loaded.notes)
        assert loaded.network.task == task
        mine = loaded.network.module.state_dict()
        assert torch.equal(mine["conv.weight"], before["conv.weight"])
        assert not torch.equal(mine["fc.weight"][:1], before["fc.weight"][:1])
    assert all(torch.equal(value, before[key]) for key, value in network.module.state_dict().items())


# Our own networks


def test_the_demo_network_is_large_enough_to_be_worth_compressing() -> None:
    network = convnet(10).eval()
    assert sum(p.numel() for p in network.parameters()) * 4 > 2_000_000
    macs = 0

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal macs
        macs += output[0].numel() * layer.weight[0].numel()  # type: ignore[union-attr, operator]

    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert macs > 15_000_000


def test_builtin_networks_take_the_datas_images_and_other_shapes() -> None:
    for name in ("builtin:convnet", "builtin:mlp"):
        loaded = load_model(name, task=DIGITS, input=GREY)
        assert loaded.network.input == GREY
        assert not loaded.pretrained
        assert not loaded.notes
        assert load_model(name, task=PETS, input=COLOUR, input_size=(12, 10)).network.input.shape == (3, 12, 10)
    assert convnet(3, channels=3, width=8, depth=1, stages=3, kernel_size=5)(torch.zeros(2, 3, 20, 20)).shape == (2, 3)
    assert mlp(3, 12, width=5, depth=0)(torch.zeros(2, 3, 2, 2)).shape == (2, 3)
    with pytest.raises(ValueError, match="odd"):
        convnet(3, kernel_size=4)


def test_the_demo_network_learns_real_digits_in_a_few_epochs() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    targets = torch.tensor(digits.target)
    held_out = torch.arange(len(targets)) % 5 == 0
    network = load_model("builtin:convnet", task=DIGITS, input=GREY).network.train()
    optimizer = torch.optim.SGD(network.module.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    generator = torch.Generator().manual_seed(0)
    kept = torch.nonzero(~held_out).flatten()
    for _ in range(2):
        for batch in kept[torch.randperm(len(kept), generator=generator)].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(only(network(images[batch])), targets[batch]).backward()
            optimizer.step()
    right = answers(network, images[held_out]).argmax(1) == targets[held_out]
    assert right.float().mean() > 0.93


def test_a_builder_that_draws_at_random_builds_the_same_network_each_time_and_disturbs_nobody(tmp_path):
    (tmp_path / "net.py").write_text(
        "import random\nimport numpy as np\nimport torch\nfrom torch import nn\n\n"
        "def build():\n"
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "    net[1].bias.data += float(np.random.rand()) + random.random()\n"
        "    return net\n"
    )
    np.random.seed(7)
    expected = np.random.rand(3)
    np.random.seed(7)
    first, again = (
        load_model(
            f"{tmp_path}/net.py:build", weights="random", input=InputSpec(8, 8, mean=(0.5,), std=(0.5,), order="L")
        )
        for _ in range(2)
    )
    assert np.array_equal(np.random.rand(3), expected)
    assert first.network.fingerprint() == again.network.fingerprint()


@pytest.mark.parametrize("name", ["w.th", "w.pth.tar", "weights", "old.th", "w.st"])
def test_an_ordinary_checkpoint_is_read_whatever_its_name_is(name, tmp_path):
    from safetensors.torch import save_file

    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    file = tmp_path / name
    if name == "w.st":
        save_file(module.state_dict(), file)
    else:
        torch.save(module.state_dict(), file, _use_new_zipfile_serialization=name != "old.th")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    grey = InputSpec(8, 8, mean=(0.5,), std=(0.5,), order="L")
    network = load_model(f"{tmp_path}/net.py:build", weights=str(file), input=grey).network
    (weight,) = [value for key, value in network.module.state_dict().items() if key.endswith("weight")]
    assert torch.equal(weight, module[1].weight)


def test_a_file_that_holds_no_weights_is_refused_by_its_content(tmp_path):
    (tmp_path / "w.th").write_text("<html>not found</html>")
    with pytest.raises(InputError, match="neither that of safetensors nor that of torch"):
        load_model("builtin:convnet", weights=str(tmp_path / "w.th"))


# Checkpoints and builders as people have them


@pytest.mark.parametrize(
    "form",
    {
        "beside a number": lambda state: {"epoch": 3, "state_dict": state, "best": torch.tensor(50.0)},
        "with arguments": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1)},
        "with a path": lambda state: {"model": state, "out": PurePosixPath("runs/a")},
        "with numbers of numpy": lambda state: {"state_dict": state, "best": np.float64(50), "epochs": np.arange(3)},
        "of a backbone": lambda state: {f"backbone.{name}": value for name, value in state.items()},
    }.items(),
    ids=lambda form: form[0],
)
def test_plain_data_beside_weights_is_no_hindrance(form, tmp_path):
    module = Plain()
    torch.save(form[1](module.state_dict()), tmp_path / "w.pth")
    loaded = load_model(Plain(), weights=tmp_path / "w.pth", input=COLOUR)
    assert loaded.pretrained
    assert torch.equal(loaded.network.module.get_parameter("fc.weight"), module.fc.weight)


def test_a_moving_average_is_taken_before_raw_weights_and_the_user_is_told(tmp_path):
    raw, average = Plain(), Plain()
    torch.save({"model": raw.state_dict(), "model_ema": average.state_dict()}, tmp_path / "w.pth")
    loaded = load_model(Plain(), weights=tmp_path / "w.pth", input=COLOUR)
    assert torch.equal(loaded.network.module.get_parameter("fc.weight"), average.fc.weight)
    assert any("moving average of the weights (model_ema) beside model" in note for note in loaded.notes)


def test_what_a_builder_prints_goes_to_standard_error_and_one_that_leaves_has_failed(tmp_path, capsys):
    text = f"import sys\n{USER_FILE.replace('from layers import Block', LAYERS_FILE)}\nprint('loaded')\n"
    text += "def prints():\n    print('built')\n    return Net()\ndef leaves():\n    sys.exit(0)\n"
    (tmp_path / "net.py").write_text(text)
    load_model(f"{tmp_path}/net.py:prints", input=COLOUR)
    said = capsys.readouterr()
    assert (said.out, said.err.split()[:2]) == ("", ["loaded", "built"])
    with pytest.raises(InputError, match=r"leaves.* fails"):
        load_model(f"{tmp_path}/net.py:leaves", input=COLOUR)


def test_the_scaling_of_pixels_that_is_assumed_is_told_and_can_be_given():
    told = load_model(Plain(), input=COLOUR).notes
    assert any("--mean, --std and --scale change it" in note for note in told)
    loaded = load_model(Plain(), input=COLOUR, preprocessing=Preprocessing(HALF, (1.0, 1.0, 1.0)))
    assert (loaded.network.input.mean, loaded.network.input.std) == (HALF, (1.0, 1.0, 1.0))
    assert not any("--mean" in note for note in loaded.notes)
    with pytest.raises(InputError, match="--std has 2 numbers, and the model takes images of 3 channels"):
        load_model(Plain(), input=COLOUR, preprocessing=Preprocessing(std=(0.5, 0.5)))
    one = load_model(Plain(), input=COLOUR, preprocessing=Preprocessing(std=(0.5,)))
    assert one.network.input.std == (0.5, 0.5, 0.5)  # one number is for all channels


@pytest.mark.parametrize("classes", [3, 2])
def test_a_last_layer_of_random_weights_is_refused_where_nothing_trains_it(classes, tmp_path):
    torch.save(Plain(5).state_dict(), tmp_path / "five.pth")
    task = TaskSpec("classification", PETS.labels[:classes])
    with pytest.raises(InputError, match="nothing trains it here"):
        load_model(Plain(3), weights=tmp_path / "five.pth" if classes == 3 else None, task=task, trains=False)
    assert not load_model(Plain(3), task=TaskSpec("classification", ("a", "b")), input=COLOUR).pretrained


def test_a_model_whose_outputs_no_task_is_known_for_keeps_them_all():
    class Two(Plain):
        def forward(self, x):
            return {"embedding": super().forward(x), "map": x}

    network = load_model(Two(), input=COLOUR).network
    assert (network.outputs, network.task) == (("embedding", "map"), UNKNOWN_TASK)
    with pytest.raises(InputError, match=r"classification needs one output.*embedding \[N, 3\], map \[N, 3, 16, 16\]"):
        load_model(Two(), input=COLOUR, task=PETS)
