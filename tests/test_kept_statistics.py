"""What one command measured serves the next on the same network and images, and never stands in anybody's way."""

import os

import pytest
import torch
from conftest import DIGITS, GREY
from torch import nn

import afina
from afina.graph import capture
from afina.graph.statistics import find_readers, gather
from afina.progress import Progress
from afina.techniques import kept as kept_module
from afina.techniques.kept import KeptStatistics
from afina.types import InputSpec, TaskSpec


class Said(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return capture(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)), GREY, DIGITS)


@pytest.fixture(autouse=True)
def everything_is_worth_keeping(monkeypatch):
    monkeypatch.setattr(kept_module, "_WORTH_SECONDS", 0.0)


class Measuring:
    """Measures moments, and counts of how many layers."""

    def __init__(self, network) -> None:
        self._network, self.layers = network, 0

    def __call__(self, readers):
        self.layers += len(readers)
        return gather(self._network, readers, torch.ones(8, 1, 8, 8).split(4), 8)


def test_the_next_command_reads_what_the_first_measured(network, tmp_path):
    readers, measure, said = find_readers(network), Measuring(network), Said()
    first = KeptStatistics(tmp_path, "images", said).moments(network, {"0.weight": readers["0.weight"]}, measure)
    assert (measure.layers, said.lines) == (1, [])
    again = KeptStatistics(tmp_path, "images", said)
    found = again.moments(network, readers, measure)
    assert measure.layers == 2  # the other layer alone
    assert list(found) == list(readers)
    assert found["0.weight"].rows == first["0.weight"].rows
    assert torch.equal(found["0.weight"].xx, first["0.weight"].xx)
    again.moments(network, readers, measure)
    assert measure.layers == 2
    assert [line.split(" (")[0] for line in said.lines] == ["Statistics of an earlier command are used"]


def test_other_weights_or_images_have_statistics_of_their_own(network, tmp_path):
    readers, measure = find_readers(network), Measuring(network)
    KeptStatistics(tmp_path, "images", Progress()).moments(network, readers, measure)
    KeptStatistics(tmp_path, "other images", Progress()).moments(network, readers, measure)
    assert measure.layers == 4
    with torch.no_grad():
        network.module.get_parameter("0.weight")[0] += 1e-3
    KeptStatistics(tmp_path, "images", Progress()).moments(network, readers, measure)
    assert measure.layers == 6


def test_what_is_broken_is_made_anew_and_told_once(network, tmp_path):
    readers, measure, said = find_readers(network), Measuring(network), Said()
    KeptStatistics(tmp_path, "images", said).moments(network, readers, measure)
    kept = KeptStatistics(tmp_path, "images", said)
    kept.values(network, "numbers", lambda: [1, 2])
    for file in tmp_path.rglob("*.*"):
        file.write_bytes(b"{")
    found = kept.moments(network, readers, measure)
    assert measure.layers == 4
    assert list(found) == list(readers)
    assert kept.values(network, "numbers", lambda: [3]) == [3]
    assert sum("cannot be read and are made anew" in line for line in said.lines) <= 2
    assert kept.values(network, "numbers", lambda: [4]) == [3]


def test_a_folder_that_cannot_be_written_is_told_once_and_work_goes_on(network, tmp_path):
    (tmp_path / "statistics").write_text("a file where the folder should be")
    readers, measure, said = find_readers(network), Measuring(network), Said()
    kept = KeptStatistics(tmp_path / "statistics", "images", said)
    assert list(kept.moments(network, readers, measure)) == list(readers)
    assert kept.values(network, "numbers", lambda: [1]) == [1]
    assert len(said.lines) == 1
    assert "are not kept for the next command" in said.lines[0]


def test_what_can_be_read_but_not_touched_is_used(network, tmp_path, monkeypatch):
    readers, measure = find_readers(network), Measuring(network)
    KeptStatistics(tmp_path, "images", Progress()).moments(network, readers, measure)

    def denied(*_):
        raise PermissionError

    monkeypatch.setattr("os.utime", denied)
    KeptStatistics(tmp_path, "images", Progress()).moments(network, readers, measure)
    assert measure.layers == 2


def test_images_of_another_split_have_statistics_of_their_own(tmp_path):
    from test_cli import folder_of_digits

    from afina.data import open_data
    from afina.jobs.common.subject import context_of

    photos, keys = folder_of_digits(tmp_path / "photos", splits=("all",)) / "all", set()
    torch.manual_seed(0)
    network = capture(
        nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), InputSpec(8, 8), TaskSpec("classification", tuple("012"))
    )
    for seed in (1, 2):
        data = open_data(photos, seed=seed)
        context = context_of(data, network, 32, 0, Progress())
        assert context.kept is None  # tests keep nothing
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AFINA_CACHE", str(tmp_path / "cache"))
            keys.add(context_of(data, network, 32, 0, Progress()).kept._folder_of(network))
    assert len(keys) == 2


def test_the_oldest_goes_where_there_is_too_much(network, tmp_path, monkeypatch):
    readers, measure = find_readers(network), Measuring(network)
    for age, images in enumerate(("old", "new")):
        kept = KeptStatistics(tmp_path, images, Progress())
        kept.moments(network, readers, measure)
        for folder in tmp_path.iterdir():
            os.utime(folder, (1000 * (age + 1),) * 2)
    monkeypatch.setattr(kept_module, "_MOST_IN_ALL", 1.0)
    KeptStatistics(tmp_path, "newest", Progress()).moments(network, readers, measure)
    (left,) = tmp_path.iterdir()
    assert left == KeptStatistics(tmp_path, "newest", Progress())._folder_of(network)


def test_a_second_pruning_of_the_same_network_measures_nothing_again(tmp_path, monkeypatch):
    from PIL import Image

    photos, generator = tmp_path / "photos", torch.Generator().manual_seed(0)
    photos.mkdir()
    for number in range(40):
        pixels = torch.randint(0, 255, (8, 8), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(photos / f"{number}.png")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten())
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "cache"))
    first, record = afina.prune(module, photos, macs="50%", input_size=8)
    said = Said()
    with monkeypatch.context() as patch:
        patch.setattr("afina.techniques.context.gather", None)  # would be called in vain
        second, again = afina.prune(module, photos, macs="50%", input_size=8, progress=said)
    assert any("Statistics of an earlier command are used" in line for line in said.lines)
    assert record.step == again.step
    for name, value in first.module.state_dict().items():
        assert torch.equal(value, second.module.state_dict()[name]), name
