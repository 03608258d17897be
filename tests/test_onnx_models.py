"""An ONNX file is a model like any other: same answers, names, costs and groups. Files that are wrong are refused."""

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from typer.testing import CliRunner

import afina
from afina.cli import app
from afina.errors import AfinaError, InputError, Unsupported
from afina.graph import Network, capture
from afina.graph.axes import analyse
from afina.graph.cost import cost_of
from afina.models import load_model
from afina.models.onnx import OnnxModule, open_onnx
from afina.types import InputSpec, TaskSpec


class Small(nn.Module):
    """A residual network with all that makes reading hard: groups, a split, a resize, a linear layer, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depth = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU6())
        self.narrow, self.norm = nn.Conv2d(16, 16, 1), nn.LayerNorm(16)
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.narrow(self.depth(x))
        x = torch.cat([nn.functional.interpolate(part, scale_factor=2) for part in x.chunk(2, 1)], 1)
        tokens = self.norm(nn.functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).reshape(tokens.shape[0], -1, 3, 4, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((tokens + self.out(mixed)).mean(1))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    module = Small()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    return module.eval()


@pytest.fixture(scope="module")
def files(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The network as torch.onnx writes it for one image, and for any number."""
    folder = tmp_path_factory.mktemp("onnx")
    with warnings.catch_warnings(action="ignore"):
        for name, shapes in (("one", None), ("any", {"x": {0: torch.export.Dim("n", min=1, max=64)}})):
            images = torch.randn(1 if shapes is None else 2, 3, 32, 32)
            program = torch.onnx.export(
                small, (images,), dynamo=True, verbose=False, dynamic_shapes=shapes, optimize=name == "any",
                input_names=["pictures"], output_names=["scores"],
            )  # fmt: skip
            program.save(folder / f"{name}.onnx", external_data=False)
    return {name: folder / f"{name}.onnx" for name in ("one", "any")}


def _loaded(path: Path) -> Network:
    return load_model(path, trains=False).network


@pytest.mark.parametrize("name", ["one", "any"])
def test_a_file_answers_as_its_network_for_any_number_of_images(
    name: str, files: dict[str, Path], small: nn.Module
) -> None:
    network, images = _loaded(files[name]), torch.randn(5, 3, 32, 32)
    assert network.outputs == ("scores",)
    assert network.batch_size is None  # also of a file that is for one image
    assert network.input.shape == (3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(network(images)["scores"], small(images), atol=1e-5)


def test_a_file_has_the_costs_names_and_groups_of_its_network(files: dict[str, Path], small: nn.Module) -> None:
    origin, network = capture(small, InputSpec(32, 32)), _loaded(files["one"])
    assert cost_of(network).macs == cost_of(origin).macs
    assert cost_of(network).parameters == cost_of(origin).parameters
    assert {"stem.0.weight", "head.weight", "depth.0.bias"} <= set(dict(network.module.named_parameters()))
    groups = [sorted((axis.size, axis.kind) for axis in analyse(n).free) for n in (origin, network)]
    assert groups[0] == groups[1]


def test_batch_norms_of_a_file_can_be_trained(files: dict[str, Path]) -> None:
    network = _loaded(files["one"])
    mean = next(buffer for name, buffer in network.module.named_buffers() if name.endswith("running_mean"))
    before = mean.clone()
    network.train()
    network(torch.randn(8, 3, 32, 32))["scores"].sum().backward()
    assert not torch.equal(mean, before)
    assert all(p.grad is not None for p in network.module.parameters() if p.ndim > 1)


def test_a_folded_file_says_that_it_has_no_batch_norms(files: dict[str, Path]) -> None:
    notes = load_model(files["any"], trains=False).notes
    assert any("no batch norms" in note for note in notes)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of two photographs, 32 x 32 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    for index, pixels in enumerate(load_sample_images().images):
        for place in range(20):
            part = pixels[32 * (place // 10) : 32 * (place // 10) + 32, 32 * (place % 10) : 32 * (place % 10) + 32]
            Image.fromarray(part).save(folder / f"{index}-{place}.png")
    return folder


def test_prune_and_export_take_a_file(files: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    pruned, record = afina.prune(files["one"], photos, macs="80%", images=16, task="outputs")
    assert record.after["macs"] <= 0.8 * record.before["macs"]
    assert pruned.outputs == ("scores",)
    exported = afina.export(pruned, to="onnx", out=tmp_path / "again.onnx")
    assert exported.parity < 1e-3
    assert _loaded(tmp_path / "again.onnx").input == pruned.input  # what Afina writes says how images are made ready


def test_profile_of_a_file_on_the_command_line(files: dict[str, Path]) -> None:
    done = CliRunner().invoke(app, ["profile", str(files["one"]), "--runtime", "none"])
    assert done.exit_code == 0
    assert "stem.0" in done.output
    assert "--scale" in done.output  # how pixels are scaled is assumed, and told


def test_how_images_are_made_ready_can_be_said_in_options_and_beside_the_file(
    files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(files["one"].read_bytes())
    (tmp_path / "net.yaml").write_text(
        "scale: 255\nmean: [110, 108, 105]\nstd: 70\norder: BGR\nlabels: [a, b, c, d, e]\n"
    )
    loaded = load_model(path, trains=False)
    assert loaded.network.input.order == "BGR"
    assert loaded.network.input.std == pytest.approx((70 / 255,) * 3)
    assert loaded.network.task == TaskSpec("classification", ("a", "b", "c", "d", "e"))
    (tmp_path / "net.yaml").write_text("scales: 255\n")
    with pytest.raises(InputError, match="scale"):
        load_model(path, trains=False)


# --- files that are made by hand --------------------------------------------------------------------------------------


def _file(
    path: Path, nodes: list[Any], weights: dict[str, np.ndarray] | None = None, shape: tuple[Any, ...] = (1, 3, 8, 8),
    opset: int = 17, outputs: tuple[str, ...] = ("y",), kind: int = TensorProto.FLOAT,
) -> Path:  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def _same_as_onnx_runtime(path: Path, count: int = 3) -> Network:
    network = _loaded(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = torch.randn(count, *network.input.shape)
    channels_last = session.get_inputs()[0].shape[-1] in (1, 3)
    size = session.get_inputs()[0].shape[0]
    parts = images.split(size) if isinstance(size, int) else [images]
    given = [p.permute(0, 2, 3, 1).numpy() if channels_last else p.numpy() for p in parts]
    wanted = [session.run(None, {"x": g}) for g in given]
    with torch.no_grad():
        for place, value in enumerate(network(images).values()):
            assert np.allclose(value.numpy(), np.concatenate([w[place] for w in wanted]), atol=1e-4)
    return network


def _weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 0.3


def test_sizes_that_hold_one_image_grow_with_the_number_of_images(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["c", "grouped"], ["g"]),  # a channel shuffle
        helper.make_node("Transpose", ["g"], ["t"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["t", "back"], ["b"]),
        helper.make_node("Reshape", ["b", "flat"], ["f"]),
        helper.make_node("Concat", ["token", "f"], ["y"], axis=2),  # a token that the file has once
    ]
    weights = {
        "w": _weights(8, 3, 3, 3), "grouped": np.array([1, 2, 4, 8, 8]), "back": np.array([1, 8, 8, 8]),
        "flat": np.array([1, 8, 64]), "token": _weights(1, 8, 1),
    }  # fmt: skip
    assert _same_as_onnx_runtime(_file(tmp_path / "m.onnx", nodes, weights)).batch_size is None


def test_a_file_that_mixes_sizes_and_images_keeps_its_number(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["r"]),
        helper.make_node("Gather", ["r", "first"], ["y"], axis=0),
    ]
    path = _file(tmp_path / "m.onnx", nodes, {"rows": np.array([3, 64]), "first": np.array([1])})
    network = _same_as_onnx_runtime(path)
    assert network.batch_size == 1


def test_a_file_whose_images_would_change_each_other_keeps_its_number(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("ReduceMax", ["c"], ["top"], keepdims=0),  # of one image, and of all where there are more
        helper.make_node("Div", ["c", "top"], ["y"]),
    ]
    network = _same_as_onnx_runtime(_file(tmp_path / "m.onnx", nodes, {"w": _weights(4, 3, 3, 3)}))
    assert network.batch_size == 1


def test_a_file_for_two_images_is_filled_up_for_three(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2]),
        helper.make_node("Reshape", ["c", "flat"], ["f"]),
        helper.make_node("Concat", ["tokens", "f"], ["y"], axis=2),  # two tokens, one for each image
    ]
    weights = {"w": _weights(4, 3, 3, 3), "flat": np.array([2, 4, 9]), "tokens": _weights(2, 4, 1)}
    path = _file(tmp_path / "m.onnx", nodes, weights, (2, 3, 8, 8))
    network, images = _loaded(path), torch.randn(4, 3, 8, 8)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = [session.run(None, {"x": torch.stack([image, image]).numpy()})[0][0] for image in images]
    assert np.allclose(network(images)["y"].detach().numpy(), np.stack(wanted), atol=1e-4)


def test_weights_in_constants_are_parameters_and_a_shared_one_stays_one(tmp_path: Path) -> None:
    kernel = numpy_helper.from_array(_weights(4, 3, 3, 3))
    nodes = [
        helper.make_node("Constant", [], ["k"], value=kernel),
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("ReduceMean", ["c"], ["v"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["v", "w"], ["one"]),
        helper.make_node("Einsum", ["v", "w"], ["two"], equation="ni,ij->nj"),
        helper.make_node("Add", ["one", "two"], ["y"]),
    ]
    network = _same_as_onnx_runtime(_file(tmp_path / "m.onnx", nodes, {"w": _weights(4, 5)}))
    assert sorted(name for name, _ in network.module.named_parameters()) == ["k", "w"]


def test_nodes_without_names_are_told_apart(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Resize", ["x", "", "scales"], ["a"], mode="nearest", nearest_mode="ceil"),
        helper.make_node("Resize", ["a", "", "others"], ["b"], mode="nearest", nearest_mode="ceil"),
        helper.make_node("Reshape", ["b", "one"], ["c"]),
        helper.make_node("Reshape", ["c", "two"], ["y"]),
    ]
    weights = {
        "scales": np.array([1, 1, 0.5, 1.5], np.float32), "others": np.array([1, 1, 2.5, 0.5], np.float32),
        "one": np.array([1, 30, 6]), "two": np.array([1, 3, 60]),
    }  # fmt: skip
    assert _same_as_onnx_runtime(_file(tmp_path / "m.onnx", nodes, weights)).batch_size is None


def test_channels_last_files_take_images_like_all_others(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w", "b"], ["y"]),
    ]
    weights = {"w": _weights(4, 3, 3, 3), "b": _weights(4)}
    network = _same_as_onnx_runtime(_file(tmp_path / "m.onnx", nodes, weights, ("n", 8, 8, 3)))
    assert network.input.shape == (3, 8, 8)


def test_products_with_weights_are_linear_layers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    network = _same_as_onnx_runtime(_file(tmp_path / "m.onnx", nodes, {"w": _weights(192, 5), "b": _weights(5)}))
    assert [node.target for node in network.graph.nodes if "linear" in str(node.target)]
    assert network.module.get_parameter("w").shape == (5, 192)


def test_recurrent_layers_keep_their_gates(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2], keepdims=0),
        helper.make_node("Transpose", ["m"], ["s"], perm=[2, 0, 1]),
        helper.make_node("LSTM", ["s", "w", "r", "b"], ["o"], hidden_size=4, direction="bidirectional"),
        helper.make_node("GRU", ["q", "w2", "r2"], ["o2"], hidden_size=4, linear_before_reset=1),
        helper.make_node("Squeeze", ["o2", "one"], ["z"]),
        helper.make_node("Transpose", ["z"], ["y"], perm=[1, 0, 2]),
    ]
    nodes.insert(3, helper.make_node("ReduceSum", ["o", "one"], ["q"], keepdims=0))
    weights = {
        "w": _weights(2, 16, 3), "r": _weights(2, 16, 4), "b": _weights(2, 32), "w2": _weights(1, 12, 4),
        "r2": _weights(1, 12, 4), "one": np.array([1]),
    }  # fmt: skip
    _same_as_onnx_runtime(_file(tmp_path / "m.onnx", nodes, weights, ("n", 3, 8, 8)))


def test_integers_of_a_quantized_file_are_undone(tmp_path: Path) -> None:
    scale, zero = np.float32(0.05), np.uint8(0)
    integers = np.random.default_rng(0).integers(-127, 127, (4, 3, 3, 3)).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"], axis=0),
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    weights = {
        "wq": integers, "ws": np.full(4, 0.01, np.float32), "wz": np.zeros(4, np.int8), "s": np.array(scale),
        "z": np.array(zero),
    }  # fmt: skip
    loaded = load_model(_file(tmp_path / "m.onnx", nodes, weights), trains=False)
    assert any("quantized" in note for note in loaded.notes)
    weight = loaded.network.module.get_parameter("wq")
    assert torch.allclose(weight, torch.from_numpy(integers * np.float32(0.01)))
    outputs = loaded.network(torch.randn(2, 3, 8, 8))["y"]
    assert outputs.min() == 0  # integers from 0 on cut off what is below: the rectifier that was left out


def test_names_that_exporters_give_to_values_are_exported_again(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "val_0"], ["c"]),
        helper.make_node("Mul", ["c", "conv2d"], ["m"]),
        helper.make_node("Reshape", ["m", "val_1"], ["y"]),
    ]
    weights = {"val_0": _weights(4, 3, 3, 3), "conv2d": _weights(4, 1, 1), "val_1": np.array([1, 144])}
    network = _same_as_onnx_runtime(_file(tmp_path / "m.onnx", nodes, weights))
    assert afina.export(network, to="onnx", out=tmp_path / "again.onnx").parity < 1e-3


def test_short_names_that_are_words_of_python_are_taken(tmp_path: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "if"], ["as"]), helper.make_node("Mul", ["as", "is.in"], ["y"])]
    _same_as_onnx_runtime(_file(tmp_path / "m.onnx", nodes, {"if": _weights(4, 3, 3, 3), "is.in": _weights(4, 1, 1)}))


def test_the_choice_of_boxes_is_cut_off_and_put_back_at_export(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Reshape", ["c", "rows"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Slice", ["t", "zero", "four", "two"], ["corners"]),
        helper.make_node("Slice", ["r", "four", "six", "one"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
        helper.make_node("NonMaxSuppression", ["corners", "scores", "most", "iou", "least"], ["chosen"]),
        helper.make_node("Slice", ["chosen", "two", "three", "one"], ["places"]),
        helper.make_node("Squeeze", ["places", "one"], ["which"]),
        helper.make_node("Gather", ["corners", "which"], ["y"], axis=1),
    ]
    weights = {
        "w": _weights(6, 3, 3, 3), "rows": np.array([1, 6, 36]), "most": np.array([5]),
        "iou": np.array([0.5], np.float32), "least": np.array([0.1], np.float32),
        **{name: np.array([i]) for i, name in enumerate("zero one two three four five six".split())},
    }  # fmt: skip
    path = _file(tmp_path / "m.onnx", nodes, weights)
    loaded = load_model(path, trains=False)
    assert loaded.network.outputs == ("corners", "scores")
    assert any("cut off" in note for note in loaded.notes)
    loaded.network.save(tmp_path / "m.pt2")
    exported = afina.export(tmp_path / "m.pt2", to="onnx", out=tmp_path / "again.onnx")
    images = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    given = []
    for file in (path, Path(exported.file)):
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        given.append(session.run(["y"], {session.get_inputs()[0].name: images})[0])
    assert given[0].size
    assert np.allclose(given[0], given[1], atol=1e-5)


# --- files that are wrong ---------------------------------------------------------------------------------------------


def _conv(**changes: Any) -> list[Any]:
    return [helper.make_node("Conv", ["x", "w"], ["y"], **changes)]


def _broken_files(folder: Path) -> dict[str, Path]:
    good = _file(folder / "good.onnx", _conv(), {"w": _weights(4, 3, 3, 3)}).read_bytes()
    files = {"empty": b"", "cut off": good[: len(good) // 2], "no ONNX": b"<html>not found</html>" * 20}
    for name, content in files.items():
        (folder / f"{name}.onnx").write_bytes(content)
    paths = {name: folder / f"{name}.onnx" for name in files}
    paths["custom domain"] = _file(
        folder / "custom.onnx", [helper.make_node("Fancy", ["x"], ["y"], domain="mine", name="the_node")]
    )
    huge = [helper.make_node("ConstantOfShape", ["s"], ["h"]), helper.make_node("Add", ["x", "h"], ["y"])]
    paths["10^12"] = _file(folder / "huge.onnx", huge, {"s": np.array([1000, 1000, 1000, 1000])})
    wide = [helper.make_node("Expand", ["x", "s"], ["y"])]
    paths["1e+12"] = _file(folder / "wide.onnx", wide, {"s": np.array([1000, 10**6, 3, 8, 8])}, (1, 3, 8, 8))
    return paths


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty", "is empty"), ("cut off", "cannot be read as an ONNX file"), ("no ONNX", "cannot be read"),
        ("custom domain", r"mine.Fancy \(the_node\)"), ("10^12", "1e[+]12"), ("1e+12", "asks for"),
    ],
)  # fmt: skip
def test_wrong_files_give_one_clear_error(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(AfinaError, match=said):
        load_model(_broken_files(tmp_path)[name], trains=False)


def test_data_beside_a_file_has_to_be_there_and_in_its_folder(tmp_path: Path) -> None:
    path = _file(tmp_path / "m.onnx", _conv(), {"w": _weights(4, 3, 3, 3)})
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    _same_as_onnx_runtime(path)
    (tmp_path / "m.bin").unlink()
    with pytest.raises(InputError, match=r"m\.bin"):
        load_model(path, trains=False)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="own folder"):
        load_model(path, trains=False)


def test_control_flow_and_forms_that_are_not_read_are_refused_by_name(tmp_path: Path) -> None:
    gru = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[2], keepdims=0),
        helper.make_node("GRU", ["m", "w", "r"], ["y"], hidden_size=4, name="old_gru"),
    ]
    path = _file(tmp_path / "m.onnx", gru, {"w": _weights(1, 12, 8), "r": _weights(1, 12, 4)})
    with pytest.raises(Unsupported, match=r"GRU \(old_gru\)"):
        load_model(path, trains=False)


def test_a_fixed_size_stays_and_several_inputs_are_refused(tmp_path: Path, files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="32x32"):
        load_model(files["one"], input_size=(64, 64), trains=False)
    model = onnx.load(files["one"])
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
    (tmp_path / "two.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="2 inputs"):
        load_model(tmp_path / "two.onnx", trains=False)


def test_flipped_bytes_never_crash_the_reader(tmp_path: Path) -> None:
    good = _file(tmp_path / "good.onnx", _conv(pads=[1, 1, 1, 1]), {"w": _weights(4, 3, 3, 3)}).read_bytes()
    draw = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(150):
        content = bytearray(good)
        for _ in range(draw.choice((1, 1, 2, 8))):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
        try:
            OnnxModule(open_onnx(path))
            outcomes["read"] += 1
        except AfinaError:
            outcomes["refused"] += 1
    assert outcomes["read"] > 10
    assert outcomes["refused"] > 10
