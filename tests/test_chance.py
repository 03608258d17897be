"""A network that is no better than guessing is an alarm, before hours rest on it."""

import numpy as np
import pytest
import torch
from conftest import DIGITS, GREY
from torch import nn
from typer.testing import CliRunner

import afina
from afina.cli import app
from afina.graph import capture
from afina.progress import Progress
from afina.tasks import get_task
from afina.types import TaskSpec


class _Heard(Progress):
    """What a user is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def guessing():
    """A network whose weights look trained, and which knows nothing."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    return capture(module, GREY, DIGITS)


def test_the_best_answer_without_looking_is_what_chance_means_for_each_task():
    numbers = np.array([[1.0], [2.0], [9.0]])
    flags = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 0]], dtype=np.float32)
    chances = {
        "classification": (np.array([0, 1, 1, 1]), 0.75),
        "regression": (numbers, np.abs(numbers - 2).mean()),
        "multilabel": (flags, (0.5 + 0.75) / 2),
        "outputs": (numbers, None),
    }
    for name, (targets, chance) in chances.items():
        assert get_task(TaskSpec(name, ("a", "b", "c"))).chance(targets) == pytest.approx(chance), name


@pytest.mark.parametrize("command", ["prune", "factorize", "sparsify", "quantize"])
def test_every_command_that_reads_labels_says_once_that_the_network_only_guesses(command, guessing):
    heard = _Heard()
    options = {
        "prune": {"macs": "60%"},
        "factorize": {"parameters": "60%"},
        "sparsify": {"sparsity": "50%"},
        "quantize": {},
    }
    _, record = getattr(afina, command)(guessing, "digits", images=64, progress=heard, **options[command])
    assert len(heard.warnings) == 1
    for part in (
        "no better than guessing",
        "accuracy",
        "on 256 validation images",
        "--mean",
        "RGB or BGR",
        "right weights",
    ):
        assert part in heard.warnings[0]
    assert heard.warnings[0] in record.notes


def test_a_recipe_says_it_once_for_the_original_and_keeps_it_in_its_result(guessing, tmp_path):
    heard = _Heard()
    recipe = [{"prune": {"macs": "60%", "images": 64}}, {"sparsify": {"sparsity": "50%", "images": 64}}]
    result = afina.run(recipe, guessing, "digits", out=tmp_path / "run", progress=heard)
    assert heard.warnings == list(result.notes)
    assert len(result.notes) == 1


def test_files_that_only_guess_are_told_when_they_are_compared(guessing, tmp_path):
    heard = _Heard()
    exported = afina.export(guessing, to="onnx", out=tmp_path / "model.onnx")
    afina.benchmark([exported.file], data="digits", progress=heard)
    assert len(heard.warnings) == 1
    assert "model.onnx is no better than guessing" in heard.warnings[0]


def test_the_report_of_a_run_carries_the_alarm(guessing, tmp_path):
    result = afina.optimize(guessing, "digits", size="100KB", epochs=0, out=tmp_path / "run")
    assert any("no better than guessing" in note for note in result.notes)
    assert "no better than guessing" in (tmp_path / "run" / "card.md").read_text()


def test_a_network_that_knows_its_images_and_one_of_random_weights_that_are_asked_for_raise_no_alarm(digits_network):
    heard = _Heard()
    afina.prune(digits_network, "digits", macs="60%", images=64, progress=heard)
    afina.sparsify("builtin:mlp", "digits", sparsity="50%", images=64, weights="random", input_size=8, progress=heard)
    assert heard.warnings == []


def test_the_command_line_shows_it_as_a_warning(guessing, tmp_path):
    guessing.save(tmp_path / "model.pt2")
    words = ["sparsify", str(tmp_path / "model.pt2"), "--data", "digits", "--sparsity", "50%", "--images", "64"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "sparse.pt2")])
    assert done.exit_code == 0
    assert done.stderr.count("WARNING: The network is no better than guessing") == 1
