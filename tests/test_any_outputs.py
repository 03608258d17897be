"""A network of which no task is known, and a plain folder of pictures: what needs no labels works on it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GREY
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import afina
from afina.errors import InputError
from afina.graph import Network, capture
from afina.runtimes import get_runtime
from afina.types import UNKNOWN_TASK

QUICK = {"images": 32, "example": GREY}


class Heads(nn.Module):
    """A map, an embedding of length one and a pair of vectors, from one body."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.map, self.vector = nn.Conv2d(24, 3, 1), nn.Linear(24, 12)

    def forward(self, x: torch.Tensor) -> dict:
        y = self.body(self.norm(self.stem(x)).relu()).relu()
        vector = self.vector(y.mean((2, 3)))
        return {"map": self.map(y), "embedding": nn.functional.normalize(vector), "pair": [vector, vector * 100]}


NAMES = ["map", "embedding", "pair.0", "pair.1"]


TECHNIQUES = [
    ("prune", {"macs": "70%", "multiple": 1}),
    ("sparsify", {"sparsity": 0.3}),
    ("factorize", {"parameters": "80%"}),
    ("quantize", {"calibration": "minmax"}),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(load_digits().images[:60]):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def heads() -> Heads:
    torch.manual_seed(0)
    module = Heads()
    nn.init.uniform_(module.norm.running_mean, -0.2, 0.2)
    return module.eval()


@pytest.mark.parametrize(
    ("technique", "options"),
    TECHNIQUES,
)
def test_a_technique_keeps_all_outputs_and_tells_what_they_lose(technique, options, heads, pictures, tmp_path):
    network, record = getattr(afina, technique)(heads, str(pictures), **options, **QUICK)
    assert (list(network.outputs), network.task) == (NAMES, UNKNOWN_TASK)
    assert 0.5 < record.after["quality"] < 1 == record.before["quality"]
    told = next(note for note in record.notes if note.startswith("agreement"))
    assert all(f"{name}: signal-to-noise in dB" in told and f"{name}: cosine" in told for name in NAMES)
    loaded = Network.load(network.save(tmp_path / "n.pt2"))
    images = loaded.example(3)
    for name in ("onnxruntime", "openvino"):
        runtime = get_runtime(name)
        if runtime.available():
            session = runtime.load(runtime.export(loaded, tmp_path / f"m{runtime.suffix}"), threads=1)
            answers = session(images.numpy())
            with loaded.inference():
                expected = loaded(images)
            assert list(answers) == NAMES
            for output, value in expected.items():
                error = np.linalg.norm(answers[output] - value.numpy()) / np.linalg.norm(value.numpy())
                assert error < (0.1 if technique == "quantize" else 1e-4), output


def test_a_student_learns_all_outputs_of_its_teacher(heads, pictures):
    torch.manual_seed(1)
    network, record = afina.distill(heads, Heads(), unlabelled=str(pictures), epochs=3, example=GREY)
    assert list(network.outputs) == NAMES
    assert record.after["quality"] > record.before["quality"]


def test_what_is_lost_in_each_layer_is_measured_on_all_outputs(heads, pictures):
    rows = afina.sensitivity(heads, str(pictures), **QUICK)
    assert {row.name for row in rows} >= {"stem", "body"}
    assert all(row.measured[-1] > 0 for row in rows)


def test_optimize_and_recipes_judge_by_the_agreement_of_the_worst_output(heads, pictures, tmp_path):
    result = afina.optimize(
        heads, str(pictures), size="12KB", max_drop="20%", example=GREY, epochs=0, threads=1, out=tmp_path / "run"
    )
    assert (result.metric.name, result.verdict) == ("agreement", "fits")
    details = result.candidate(result.winner).measurements["quality"].details
    assert set(details) == {f"{name}: {figure}" for name in NAMES for figure in ("signal-to-noise in dB", "cosine")}
    page = (tmp_path / "run" / "report.html").read_text()
    shown = page[page.index('<table id="details"') :]
    shown = shown[: shown.index("</table>")]
    for name, value in details.items():
        output, figure = name.split(": ")
        assert f"<code>{output}</code>" in shown
        assert figure in shown
        assert f">{value:.4g}" in shown
    again = afina.run(tmp_path / "run" / "recipe.yaml", heads, str(pictures), example=GREY, out=tmp_path / "again")
    assert again.quality.value > 0.8


class Queries(nn.Module):
    """Chooses places by their scores, as transformer detectors do, and fixes the number of images on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.body, self.score = nn.Conv2d(16, 24, 3, padding=1), nn.Linear(24, 5)
        self.inner, self.boxes, self.classes = nn.Linear(24, 32), nn.Linear(32, 4), nn.Linear(32, 5)
        self.scale = torch.tensor(0.5)

    def forward(self, x: torch.Tensor) -> dict:
        count = int(x.shape[0])
        maps = self.body(self.norm(self.stem(x)).relu()).relu().flatten(2).transpose(1, 2)
        places = self.score(maps).max(-1).values.topk(9).indices
        rows = maps.gather(1, places.reshape(count, 9, 1).repeat(1, 1, 24))
        rows = self.inner(rows).relu() * self.scale
        return {"boxes": self.boxes(rows).sigmoid(), "classes": self.classes(rows)}


@pytest.fixture(scope="module")
def queries() -> Queries:
    torch.manual_seed(0)
    module = Queries()
    nn.init.uniform_(module.norm.running_mean, -0.2, 0.2)
    return module.eval()


@pytest.mark.parametrize(
    ("technique", "options"),
    [*TECHNIQUES, ("distill", {"epochs": 1, "features": "auto"})],
)
def test_a_network_that_takes_one_image_at_a_time_goes_through_all_techniques(technique, options, queries, pictures):
    data = str(pictures)
    if technique == "distill":
        network, record = afina.distill(queries, queries, unlabelled=data, example=GREY, **options)
    else:
        network, record = getattr(afina, technique)(queries, data, **options, **QUICK)
    assert network.batch_size == 1
    assert record.after["quality"] > 0.5
    assert {name: tuple(value.shape) for name, value in network(network.example(3)).items()} == {
        "boxes": (3, 9, 4),
        "classes": (3, 9, 5),
    }


def test_norms_of_a_network_that_takes_one_image_keep_their_statistics_and_the_user_is_told(queries):
    network = capture(queries, GREY)
    assert any("batch norms keep their statistics" in note for note in network.notes)
    before = network.module.norm.running_mean.clone()
    sum(value.square().mean() for value in network.train()(network.example(2)).values()).backward()
    assert torch.equal(network.module.norm.running_mean, before)
    assert network.module.stem.weight.grad is not None


def test_training_on_labels_is_refused_with_the_way_on(heads):
    with pytest.raises(InputError, match="classification needs one output"):
        afina.optimize(heads, "digits", size="10KB", example=GREY)
