"""Models as people have them: folders of transformers, pickled modules, programs of torch.export, builders."""

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import afina
from afina.cli import app
from afina.errors import AfinaError, InputError
from afina.models import load_model
from afina.models.preprocessor_config import input_of_preprocessor
from afina.types import TaskSpec

LABELS = {0: "cat", 1: "dog", 2: "owl"}


# --- transformers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vision transformer as `save_pretrained` writes it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hub") / "vit"
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8,
        id2label=LABELS, label2id={name: key for key, name in LABELS.items()},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    said = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def test_a_folder_of_transformers_is_a_model_with_labels_and_input(vit: Path) -> None:
    import transformers

    loaded, images = load_model(vit, trains=False), torch.randn(3, 3, 32, 32)
    assert loaded.pretrained
    assert loaded.network.outputs == ("logits",)
    assert loaded.network.task == TaskSpec("classification", tuple(LABELS.values()))
    assert loaded.network.input.std == (0.25,) * 3
    assert (loaded.network.input.interpolation, loaded.network.input.shape) == ("bicubic", (3, 32, 32))
    model = transformers.ViTForImageClassification.from_pretrained(vit).eval()
    with torch.no_grad():
        assert torch.allclose(loaded.network(images)["logits"], model(images).logits, atol=1e-5)


def test_a_folder_with_other_classes_gets_a_new_last_layer(vit: Path) -> None:
    loaded = load_model(vit, task=TaskSpec("classification", ("a", "b")), weights="pretrained")
    assert not loaded.pretrained
    assert any("new last layer" in note for note in loaded.notes)
    assert not any("random" in note for note in loaded.notes)  # all but the last layer is trained
    with pytest.raises(InputError, match="copy of the folder"):
        load_model(vit, weights=vit / "model.safetensors")
    kept = load_model(vit, task=TaskSpec("classification", ("dog", "cat", "owl")))
    assert kept.pretrained  # the same labels in another order: its rows are put into that order


def test_a_detector_of_transformers_gives_what_a_device_needs(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.YolosConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=[32, 32],
        patch_size=16, num_detection_tokens=4, num_labels=2,
    )  # fmt: skip
    transformers.YolosForObjectDetection(config).save_pretrained(tmp_path / "yolos")
    network = load_model(tmp_path / "yolos", input_size=(32, 32), trains=False).network
    assert network.outputs == ("logits", "pred_boxes")


def test_a_folder_that_timm_wrote_for_the_hub_is_a_model(tmp_path: Path) -> None:
    import timm
    from timm.models import save_for_hf

    module = timm.create_model("test_vit", num_classes=2, pretrained=False).eval()
    save_for_hf(module, tmp_path / "t", model_config={"label_names": ["cat", "dog"]})
    loaded, images = load_model(tmp_path / "t", trains=False), torch.randn(2, 3, 160, 160)
    assert loaded.network.task == TaskSpec("classification", ("cat", "dog"))
    with torch.no_grad():
        assert torch.allclose(loaded.network(images)["outputs"], module(images), atol=1e-5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not json", "cannot be read"), ("{}", "no model_type"),
        ('{"model_type": "bert", "architectures": ["BertModel"]}', "no model for images"),
        ('{"model_type": "mine", "auto_map": {"AutoModel": "modeling_mine.Mine"}}', "modeling_mine.Mine"),
    ],
)  # fmt: skip
def test_folders_that_are_not_read_say_why(content: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(AfinaError, match=said):
        load_model(tmp_path, trains=False)


def test_a_name_that_is_not_in_the_cache_says_so_where_there_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("afina.models.huggingface.is_reachable", lambda url: False)
    with pytest.raises(InputError, match="not in the cache"):
        load_model("hf:nobody/nothing", trains=False)


def test_weights_that_do_not_fit_or_are_pickles_are_refused(vit: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((vit / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        load_model(tmp_path, trains=False)


@pytest.mark.parametrize(
    ("said", "resize", "share"),
    [
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
         "crop", 0.875),
        ({"size": {"height": 224, "width": 224}}, "stretch", 1.0),
        ({"size": 224, "crop_pct": 0.9}, "crop", 0.9),
        ({"size": {"shortest_edge": 224}, "do_pad": True}, "letterbox", 1.0),
    ],
)  # fmt: skip
def test_the_way_of_resizing_is_that_of_the_preprocessor(said: dict[str, Any], resize: str, share: float) -> None:
    spec = input_of_preprocessor(said)
    assert (spec.resize, round(spec.crop_share, 3), spec.shape) == (resize, share, (3, 224, 224))


# --- files of torch ---------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, width, 3), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def test_a_pickled_module_is_read_only_where_it_is_trusted(tmp_path: Path) -> None:
    path, module = tmp_path / "net.pt", Net().eval()
    torch.save({"epoch": 3, "model": module}, path)
    with pytest.raises(InputError, match=r"--trust") as caught:
        load_model(path, input_size=(8, 8), trains=False)
    assert "Net" in str(caught.value)
    loaded = load_model(path, input_size=(8, 8), trust=True, trains=False)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(loaded.network(images)["outputs"], module(images), atol=1e-6)


def test_trust_on_the_command_line_is_told(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "net.pt")
    done = CliRunner().invoke(app, ["profile", str(tmp_path / "net.pt"), "--runtime", "none", "--input-size", "8"])
    assert (done.exit_code, "--trust" in done.output) == (2, True)
    command = ["profile", str(tmp_path / "net.pt"), "--runtime", "none", "--input-size", "8", "--trust"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    assert "unpickled" in done.output


def test_a_missing_class_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone_library.py").write_text("import torch\nclass Odd(torch.nn.Module):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import gone_library

    torch.save(gone_library.Odd(), tmp_path / "odd.pt")
    (tmp_path / "gone_library.py").unlink()
    monkeypatch.delitem(sys.modules, "gone_library")
    with pytest.raises(InputError, match="gone_library"):
        load_model(tmp_path / "odd.pt", trust=True, input_size=(8, 8))


def test_weights_and_torchscript_as_a_model_name_the_way_on(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(InputError, match="--weights"):
        load_model(tmp_path / "weights.pth", trust=True)
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"")
        archive.writestr("script/code/__torch__.py", b"")
    with pytest.raises(InputError, match=r"TorchScript[^$]*ONNX"):
        load_model(tmp_path / "script.pt", trust=True)


def test_an_archive_that_unpacks_to_far_more_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\0" * 300_000_000)
    with pytest.raises(InputError, match="unpacks to"):
        load_model("builtin:convnet", weights=tmp_path / "bomb.pth")


def test_a_program_of_torch_export_is_a_model(tmp_path: Path) -> None:
    module, images = Net().eval(), torch.randn(2, 3, 8, 8)
    batch = {"x": {0: torch.export.Dim("n", min=1, max=64)}}
    torch.export.save(torch.export.export(module, (images,), dynamic_shapes=batch), tmp_path / "net.pt2")
    network = load_model(tmp_path / "net.pt2", trains=False).network
    assert network.input.shape == (3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(network(images)["outputs"], module(images), atol=1e-6)
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("a.txt", "nothing")
    with pytest.raises(AfinaError, match=r"other\.pt2"):
        load_model(tmp_path / "other.pt2", trains=False)


# --- builders ---------------------------------------------------------------------------------------------------------


def test_a_builder_takes_arguments_a_class_builds_and_a_package_imports_itself(tmp_path: Path) -> None:
    package = tmp_path / "nets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("from torch import nn\nHead = nn.Linear\n")
    (package / "net.py").write_text(
        "from torch import nn\nfrom .parts import Head\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self, width=4, num_classes=3):\n        super().__init__()\n"
        "        self.conv, self.head = nn.Conv2d(3, width, 3), Head(width, num_classes)\n\n"
        "    def forward(self, x):\n        return self.head(self.conv(x).mean((2, 3)))\n"
    )
    loaded = load_model(f"{package / 'net.py'}:Net(width=6, num_classes=5)", input_size=(8, 8), trains=False)
    assert loaded.network.module.get_parameter("conv.weight").shape[0] == 6
    assert loaded.network.module.get_parameter("head.weight").shape == (5, 6)
    with pytest.raises(InputError, match="plain values"):
        load_model(f"{package / 'net.py'}:Net(6)")
    with pytest.raises(InputError, match="depth"):
        load_model(f"{package / 'net.py'}:Net(depth=6)")


def test_packages_of_one_name_are_not_mistaken_for_each_other(tmp_path: Path) -> None:
    for folder, width in (("a", 3), ("b", 5)):
        package = tmp_path / folder / "mods"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "part.py").write_text(f"WIDTH = {width}\n")
        (package / "net.py").write_text(
            "from torch import nn\nfrom .part import WIDTH\n\ndef build():\n"
            "    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.Flatten())\n"
        )
    sys.path.insert(0, str(tmp_path / "a"))
    try:
        import mods.net  # type: ignore[import-not-found]

        loaded = load_model(f"{tmp_path / 'b' / 'mods' / 'net.py'}:build", input_size=(8, 8), trains=False)
        assert loaded.network.module.get_parameter("0.weight").shape[0] == 5
        assert sys.modules["mods.net"] is mods.net
    finally:
        sys.path.remove(str(tmp_path / "a"))
        for name in [name for name in sys.modules if name.partition(".")[0] == "mods"]:
            del sys.modules[name]


def test_a_damaged_archive_is_one_clear_error(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "bad.pt")
    content = bytearray((tmp_path / "bad.pt").read_bytes())
    content[content.rindex(b"PK\x01\x02") : content.rindex(b"PK\x01\x02") + 4] = b"XXXX"
    for name in ("bad.pt", "bad.pt2"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="bad"):
            load_model(tmp_path / name, trust=True)


def test_a_folder_of_models_asks_which(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.onnx, b\.onnx"):
        load_model(tmp_path)


def test_profile_takes_a_saved_network(tmp_path: Path) -> None:
    load_model("builtin:convnet", input_size=(8, 8)).network.save(tmp_path / "net.pt2")
    assert afina.profile(tmp_path / "net.pt2", runtimes=["none"]).totals["parameters"].value > 0
