"""Saved networks: they load as they were, nothing but computing passes the screening, fingerprints tell them apart."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import small_networks
import torch
import torch.ao.quantization.fx._decomposed
from conftest import DIGITS, GREY, SmallNet, only
from torch import nn

from afina.errors import InputError, Unsupported
from afina.graph import Network, capture
from afina.graph.axes import analyse
from afina.graph.operators import computes
from afina.graph.surgery import remove
from afina.techniques.context import Context
from afina.techniques.quantize import QuantizeConfig, apply
from afina.types import TaskSpec

NAMES = ("residual", "grouped", "other_norms", "vision_transformer", "windows", "products")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A small network's file; tests must write to copies."""
    torch.manual_seed(0)
    return capture(SmallNet(), GREY, DIGITS).save(tmp_path_factory.mktemp("saved") / "n.pt2")


def _rewritten(path: Path, target: Path, change) -> Path:
    """The archive with `change(name, data) -> data` applied to each of its files."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as out:
        for name in source.namelist():
            out.writestr(name, change(name, source.read(name)))
    return target


def _with_format(path: Path, target: Path, text: object) -> Path:
    def change(name, data):
        return json.dumps({**json.loads(data), "format": text}).encode() if name.endswith("afina.json") else data

    return _rewritten(path, target, change)


def _quantized() -> Network:
    torch.manual_seed(0)
    network = small_networks.network_of(small_networks.residual())
    config = QuantizeConfig(calibration="minmax", rounding="nearest", equalize="none")
    images = network.example(8)
    return apply(network, config, Context(calibration=lambda: iter([images]), images=8))[0]


def _network(name: str) -> Network:
    if name == "quantized":
        return _quantized()
    torch.manual_seed(0)
    return small_networks.network_of(getattr(small_networks, name)())


@pytest.mark.parametrize("name", [*NAMES, "quantized"])
def test_a_network_is_loaded_as_it_was_saved_and_has_the_same_fingerprint(tmp_path, name):
    network = _network(name)
    loaded = Network.load(network.save(tmp_path / "n.pt2"))
    images = network.example(3)
    with network.inference(), loaded.inference():
        assert torch.equal(only(loaded(images)), only(network(images)))
    again = Network.load(loaded.save(tmp_path / "m.pt2"))
    assert network.fingerprint() == loaded.fingerprint() == again.fingerprint()


def test_a_pruned_network_has_a_fingerprint_of_its_own_that_survives_saving(tmp_path):
    network = _network("residual")
    pruned = remove(network, small_networks.half(analyse(network).free))
    assert pruned.fingerprint() != network.fingerprint()
    assert Network.load(pruned.save(tmp_path / "n.pt2")).fingerprint() == pruned.fingerprint()


def test_a_fingerprint_changes_with_one_number_one_operator_one_class_and_the_scaling_of_images(small_network):
    def edited(edit) -> Network:
        twin = small_network.copy()
        edit(twin)
        return twin

    def change_number(twin: Network) -> None:
        with torch.no_grad():
            twin.module.get_parameter("head.bias")[3] += 1e-6

    def change_statistic(twin: Network) -> None:
        twin.module.get_buffer("norm.running_var")[0] *= 2

    def change_operator(twin: Network) -> None:
        node = next(node for node in twin.graph.nodes if "relu" in str(node.target))
        node.target = torch.ops.aten.gelu.default

    def change_argument(twin: Network) -> None:
        node = next(node for node in twin.graph.nodes if "conv2d" in str(node.target))
        node.update_arg(3, [2, 2])

    def change_class(twin: Network) -> None:
        twin.task = TaskSpec("classification", ("none", *DIGITS.labels[1:]))

    def change_scaling(twin: Network) -> None:
        twin.input = type(GREY)(8, 8, mean=(0.4,), std=(0.3,), order="L")

    edits = (change_number, change_statistic, change_operator, change_argument, change_class, change_scaling)
    prints = [small_network.fingerprint(), *(edited(edit).fingerprint() for edit in edits)]
    assert len(set(prints)) == len(prints), prints
    assert all(re.fullmatch("[0-9a-f]{16}", text) for text in prints)


def test_the_form_for_training_and_a_copy_keep_the_fingerprint(small_network):
    before = small_network.fingerprint()
    twin = small_network.copy().train()
    assert twin.fingerprint() == before
    assert twin.training


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        ("aten.from_file.default", {"filename": {"as_string": "made"}, "size": {"as_int": 2}}),
        ("aten.save.default", {"item": {"as_none": True}, "filename": {"as_string": "made"}}),
        ("aten.set_.source_Tensor", {}),
        ("aten.resize_.default", {}),
        ("aten._reshape_alias.default", {}),
        ("aten.relu.out", {}),
        ("aten.manual_seed.default", {}),
        ("aten.a_name_of_a_future_torch.default", {}),
        ("higher_order.triton_kernel_wrapper_mutation", {}),
        ("torchao.quantize_affine.default", {}),
        ("image.read_file.default", {}),
    ],
)
def test_an_operator_that_is_not_on_the_list_is_refused_by_its_name(saved, tmp_path, monkeypatch, operator, arguments):
    monkeypatch.chdir(tmp_path)

    def call(name, data):
        if not name.endswith("model.json"):
            return data
        program = json.loads(data)
        node = next(n for n in program["graph_module"]["graph"]["nodes"] if "relu" in n["target"])
        node["target"] = f"torch.ops.{operator}"
        node["inputs"] = [{"name": key, "arg": value, "kind": 1} for key, value in arguments.items()]
        return json.dumps(program).encode()

    with pytest.raises(InputError, match=f"refused(.|\n)*{re.escape(operator)}"):
        Network.load(_rewritten(saved, tmp_path / "crafted.pt2", call))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["torch.hub.load", "_operator.methodcaller", "_operator.setitem", "math.factorial"])
def test_python_functions_beside_arithmetic_are_refused(name):
    assert not computes(name)


@pytest.mark.parametrize(
    "name",
    [
        "version",
        "archive/extra/other.json",
        "archive/data/weights/model.pt",
        "archive/DATA/SAMPLE_INPUTS/model.PT",
        "archive/data/aotinductor/model/model.so",
        "serialized_state_dict.pt",
    ],
)
def test_an_entry_that_saving_does_not_write_is_refused(saved, tmp_path, name):
    path = shutil.copy(saved, tmp_path / "n.pt2")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"2.7")
    with pytest.raises(InputError, match=f"refused(.|\n)*{re.escape(name)}"):
        Network.load(path)


def test_two_entries_of_one_name_are_refused(saved, tmp_path):
    path = shutil.copy(saved, tmp_path / "n.pt2")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/models/model.json", b"{}")
    with pytest.raises(InputError, match="two entries"):
        Network.load(path)


def test_no_operator_on_the_list_takes_or_gives_anything_but_tensors_numbers_and_words_for_a_method():
    """Over every ATen operator that this torch has: the list is closed under the rule."""
    plain = re.compile(r"(Optional\[|List\[)*(Tensor|number|int|float|bool|complex|Device|Generator)\]*")
    methods = set(
        "approximate assert_msg driver equation indexing interpolation mode norm ord pad_mode padding reduce "
        "rounding_mode side UPLO".split()
    )
    admitted = 0
    for schema in torch._C._jit_get_all_schemas():
        name = schema.name.removeprefix("aten::")
        overload = schema.overload_name or "default"
        if name == schema.name or not computes(f"torch.ops.aten.{name}.{overload}"):
            continue
        admitted += 1
        for argument in schema.arguments:
            kind = str(argument.type)
            is_word = kind in ("str", "Optional[str]") and argument.name in methods
            assert plain.fullmatch(kind) or is_word, f"{name}.{overload} takes {argument.name}: {kind}"
            assert not argument.is_out, f"{name}.{overload} writes into {argument.name}"
            assert "file" not in argument.name
        for result in schema.returns:
            assert plain.fullmatch(str(result.type)), f"{name}.{overload} gives {result.type}"
    assert admitted > 500


def test_a_network_that_could_not_be_loaded_is_not_saved(tmp_path):
    with torch.library._scoped_library("afina_test", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeExplicitAutograd")

        class Custom(SmallNet):
            def forward(self, x):
                return torch.ops.afina_test.twice(super().forward(x))

        network = capture(Custom(), GREY, DIGITS)
        with pytest.raises(Unsupported, match=r"afina_test\.twice"):
            network.save(tmp_path / "n.pt2")
    assert not (tmp_path / "n.pt2").exists()


def test_branches_on_values_are_saved_and_what_they_call_is_screened(tmp_path):
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            x = self.head(x.flatten(1))
            return torch.cond(x.sum() > 0, lambda x: x.sin(), lambda x: x.cos(), (x,))

    network = capture(Branching(), GREY, DIGITS)
    path = network.save(tmp_path / "n.pt2")
    loaded = Network.load(path)
    images = network.example(3)
    assert torch.equal(only(loaded(images)), only(network(images)))
    assert loaded.fingerprint() == network.fingerprint()

    def call(name, data):
        return data.replace(b"aten.cos.default", b"aten.from_file.default") if name.endswith("model.json") else data

    with pytest.raises(InputError, match="from_file"):
        Network.load(_rewritten(path, tmp_path / "crafted.pt2", call))


def test_a_file_of_the_first_version_is_taken(saved, tmp_path):
    """Version 0.1 noted `afina/network/1`."""
    path = _with_format(saved, tmp_path / "n.pt2", "afina/network/1")
    assert Network.load(path).fingerprint() == Network.load(saved).fingerprint()


@pytest.mark.parametrize(
    ("noted", "way_on"),
    [
        ("afina/network/3", "Install the newest version of Afina"),
        ("afina/network/0", "Save the network again"),
        ("other/network/1", "not written by this library"),
        ("afina/network/x", "not written by this library"),
        (3, "not written by this library"),
        (None, "not written by this library"),
    ],
)
def test_a_file_of_another_format_is_refused_with_the_way_on(saved, tmp_path, noted, way_on):
    with pytest.raises(InputError, match=f"refused(.|\n)*{way_on}"):
        Network.load(_with_format(saved, tmp_path / "n.pt2", noted))
