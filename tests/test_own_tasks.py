"""A user's own task, in a file, with targets of any form: through every command, and what is said where it fails."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import afina
from afina.cli import app
from afina.data import open_data
from afina.data.decode import seen_part
from afina.errors import InputError
from afina.graph import capture
from afina.graph.network import Network
from afina.jobs.common.exporter import Exporter
from afina.progress import Progress
from afina.runtimes import RUNTIMES
from afina.tasks import View, get_task, named_task
from afina.testing.tasks import check_task
from afina.training import FitConfig, evaluate, fit
from afina.types import InputSpec, TaskSpec

POINTS = Path(__file__).parent / "third_party" / "afina_example" / "points.py"
GREY = InputSpec(16, 16, mean=(0.5,), std=(0.5,), order="L")

MODEL = """\
from torch import nn

def finder():
    model = nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 1, 4, stride=4))
    model.input_size, model.mean, model.std = (1, 16, 16), (0.5,), (0.5,)
    return model
"""


@pytest.fixture(scope="module")
def spots(tmp_path_factory) -> Path:
    """48 images of up to three white spots each, and their places in `points.json`."""
    folder, rng, places = tmp_path_factory.mktemp("spots"), np.random.default_rng(0), {}
    (folder / "images").mkdir()
    for number in range(48):
        pixels, name = np.zeros((16, 16), dtype=np.uint8), f"images/{number:02}.png"
        cells = rng.choice(16, size=rng.integers(1, 4), replace=False)
        places[name] = [[int(cell % 4) * 4 + 2, int(cell // 4) * 4 + 2] for cell in cells]
        for x, y in places[name]:
            pixels[y - 2 : y + 2, x - 2 : x + 2] = 255
        Image.fromarray(pixels).save(folder / name)
    (folder / "points.json").write_text(json.dumps(places))
    return folder


@pytest.fixture
def task_file(tmp_path) -> Path:
    """The task in a file that is no package's, and the model in another."""
    (tmp_path / "finder.py").write_text(MODEL)
    return Path(shutil.copy(POINTS, tmp_path / "points.py"))


def _finder(tmp_path: Path) -> nn.Module:
    namespace: dict = {}
    exec((tmp_path / "finder.py").read_text(), namespace)
    torch.manual_seed(0)
    return namespace["finder"]()


@pytest.fixture
def trained(spots, task_file, tmp_path) -> Network:
    """A network that finds the spots."""
    data = open_data(spots, own=named_task(f"{task_file}:Points"))
    network = capture(_finder(tmp_path), GREY, data.task)
    config = FitConfig(epochs=40, batch_size=8, learning_rate=1e-2, optimizer="adamw", augment=0.0)
    return fit(network, data, config)[0]


def test_targets_of_any_form_keep_the_contract_of_a_task():
    task = get_task(TaskSpec("Points", ("point",), str(POINTS)))
    generator = torch.Generator().manual_seed(0)
    targets = [
        np.asarray([[0.1, 0.1], [0.6, 0.4]]),
        np.zeros((0, 2)),
        np.asarray([[0.9, 0.9]]),
        np.asarray([[0.3, 0.6]]),
    ]
    check_task(task, {"map": torch.randn(4, 1, 4, 4, generator=generator)}, targets)


def test_points_of_a_cropped_photo_follow_what_the_network_sees(tmp_path, task_file):
    (tmp_path / "data").mkdir()
    for number in range(10):
        Image.new("L", (40, 20)).save(tmp_path / "data" / f"{number}.png")
    places = {f"{number}.png": [[20, 10], [2, 2]] for number in range(10)}  # the second is outside of the middle square
    (tmp_path / "data" / "points.json").write_text(json.dumps(places))
    data = open_data(tmp_path / "data", own=named_task(f"{task_file}:Points"))
    assert [target.tolist() for target in data.truth("validation", GREY)] == [[[0.5, 0.5]], [[0.5, 0.5]]]
    _, batch = next(iter(data.batches("train", GREY, batch_size=3)))
    assert [target.tolist() for target in batch] == [[[0.5, 0.5]]] * 3


@pytest.mark.parametrize("augment", ["shift+flip", "crop+flip"])
def test_points_follow_an_image_that_is_varied(tmp_path, task_file, augment):
    (tmp_path / "data").mkdir()
    places = {}
    for number in range(12):
        picture = np.zeros((64, 64), dtype=np.uint8)
        x, y = 22 + number, 40 - number
        picture[y - 2 : y + 3, x - 2 : x + 3] = 255
        Image.fromarray(picture).save(tmp_path / "data" / f"{number}.png")
        places[f"{number}.png"] = [[x + 0.5, y + 0.5]]
    (tmp_path / "data" / "points.json").write_text(json.dumps(places))
    data = open_data(tmp_path / "data", own=named_task(f"{task_file}:Points"), augment=augment)
    input, seen = replace(GREY, height=64, width=64), []
    for images, targets in data.batches("train", input, batch_size=5, augment=1.0, seed=3):
        for image, target in zip(images[:, 0], targets, strict=True):
            for place in target:
                if place.min() > 0.1 and place.max() < 0.9:  # all of the spot is seen
                    y, x = (image > image.max() / 2).nonzero().float().mean(0)
                    assert torch.tensor([x, y]).add(0.5).div(64).sub(place).abs().max() < 0.02
                    seen.append((place * 64).round().int().tolist())
    unvaried = [[round(x), round(y)] for ((x, y),) in places.values()]
    assert len([place for place in seen if place not in unvaried]) >= 4


def test_a_mask_beside_a_photo_is_cut_as_the_photo_is():
    mask = np.zeros((20, 40), dtype=np.uint8)
    mask[:, 10:30] = 7  # the middle square, which a square network sees
    seen = View(seen_part(40, 20, GREY), GREY).picture(Image.fromarray(mask), (4, 4))
    assert seen.tolist() == [[7] * 4] * 4


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_network_for_targets_of_any_form_is_trained_quantized_and_judged_in_each_runtime(
    runtime, trained, spots, task_file
):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    data = open_data(spots, own=named_task(f"{task_file}:Points"))
    assert evaluate(trained, data).value > 0.8
    network, record = afina.quantize(trained, spots, task=f"{task_file}:Points", runtime=runtime, images=32)
    assert record.after["quality"] > 0.75
    answers = Exporter(RUNTIMES[runtime], 1).judge(network, data, Progress())
    assert (answers.quality.unit, answers.quality.n) == ("f1", 10)
    assert answers.quality.value > 0.75


def test_a_network_keeps_its_users_task_in_its_file_also_for_another_process(trained, spots, task_file, tmp_path):
    path = trained.save(tmp_path / "spots.pt2")
    words = [
        "prune",
        str(path),
        "--data",
        str(spots),
        "--macs",
        "60%",
        "--task",
        f"{task_file}:Points",
        "--images",
        "32",
    ]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "small.pt2"), "--json"])
    assert done.exit_code == 0, done.output
    small = Network.load(tmp_path / "small.pt2")
    assert small.task == TaskSpec("Points", ("point",), str(task_file))
    assert json.loads(done.stdout)["record"]["after"]["quality"] > 0.5


def test_optimize_and_report_carry_a_users_task(spots, task_file, tmp_path):
    out = tmp_path / "run"
    result = afina.optimize(
        f"{tmp_path / 'finder.py'}:finder",
        spots,
        size="20KB",
        epochs=8,
        finetune=1,
        task=f"{task_file}:Points",
        out=out,
    )
    assert result.metric.name == "f1"
    afina.report(out)
    card = (out / "card.md").read_text()
    assert "Intended for Points of images" in card
    assert "np.argwhere(logits > 0)" in card
    assert "A logit for each cell" in (out / "artifact" / "metadata.json").read_text()


def test_another_task_file_makes_another_network(trained, task_file):
    before = trained.fingerprint()
    assert trained.fingerprint() == before
    task_file.write_text(task_file.read_text().replace("0.15", "0.2"))
    assert trained.fingerprint() != before


def test_a_task_whose_file_is_gone_is_one_error_that_says_so_and_outputs_still_compares(
    trained, spots, task_file, tmp_path
):
    path = trained.save(tmp_path / "spots.pt2")
    moved = task_file.rename(tmp_path / "moved.py")
    with pytest.raises(InputError, match=r"(?s)Points is defined in .*points.py, and there is no such file.*--task"):
        get_task(Network.load(path).task)
    gone = CliRunner().invoke(
        app, ["prune", str(path), "--data", str(spots), "--macs", "60%", "--task", f"{task_file}:Points"]
    )
    assert gone.exit_code == 2
    assert "Traceback" not in gone.output
    network, _ = afina.prune(path, spots, macs="60%", images=32, task="outputs")
    assert network.task.name == "outputs"
    network, _ = afina.prune(path, spots, macs="60%", images=32, task=f"{moved}:Points")
    assert network.task.file == str(moved)
    exported = afina.export(path, to="onnx", out=tmp_path / "spots.onnx").file
    rows = afina.benchmark([exported], data=spots, task="outputs")
    assert rows[0].measurements["quality"].value == 1
    assert str(tmp_path) not in Path(exported).read_bytes().decode("latin-1")


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        ("def plain", "def explain", "does not implement `plain`"),
        ('metric = MetricInfo("f1", ', "metric = dict(", "`metric` is {.*}, not MetricInfo"),
        ("def read_targets", "def read_my_targets", "does not implement `read_targets`"),
        ("reads = OWN", "reads = 'boxes'", "`reads` is 'boxes', not one of"),
        ("found, given, there = evidence", "found, given = evidence", r"Its `value` raises ValueError: too many"),
        ('"""Points found', 'return np.zeros((1, 3))\n        """', "gives 1 rows for 4 images"),
        ("return F.mse_loss(next", "return (next", "Its `distance` gives tuple, not one finite number"),
        ("places = view.points", "places = view.nothing", "Its `fit_target` raises AttributeError"),
        ("shape = next(iter", "shape = shapes['map'], next(iter", "Its `check_outputs` raises KeyError: 'map'"),
        ("reads = OWN", "reads = OWN\n\n    def __init__(self):\n        pass", "The task Points cannot be made"),
        ("points = {name: np.reshape", "points = {name + 'x': np.reshape", "has no image 'images/00.pngx'"),
    ],
)  # fmt: skip
def test_a_task_that_breaks_the_contract_is_one_error_that_names_the_part(
    before, after, part, spots, task_file, tmp_path
):
    text = task_file.read_text()
    assert before in text
    task_file.write_text(text.replace(before, after))
    words = ["prune", f"{tmp_path / 'finder.py'}:finder", "--data", str(spots), "--macs", "60%"]
    refused = CliRunner().invoke(app, [*words, "--task", f"{task_file}:Points", "--out", str(tmp_path / "small.pt2")])
    assert refused.exit_code == 2
    assert re.search(part, refused.stderr), refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "small.pt2").exists()


def test_a_task_that_does_not_fit_the_outputs_says_what_was_expected_and_what_came(spots, task_file):
    expected = r"(?s)Points needs one map \[N, 1, height, width\], and the network gives outputs \[N, 10\]"
    with pytest.raises(InputError, match=expected):
        afina.prune("builtin:convnet", spots, weights="random", macs="60%", task=f"{task_file}:Points")


def test_images_without_what_the_task_reads_are_told(task_file, tmp_path):
    (tmp_path / "other").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "other" / "a.png")
    with pytest.raises(InputError, match=r"other has no points\.json"):
        open_data(tmp_path / "other", own=named_task(f"{task_file}:Points"))
