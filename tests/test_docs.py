"""Every documented command is understood as it is written and runs in small; what is generated is up to date."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from sklearn import datasets
from sklearn.utils import Bunch
from test_cli import folder_of_digits
from typer.testing import CliRunner

import afina
from afina.cli import app
from afina.models import load_model
from afina.models.builtin import convnet
from afina.store.result import read_result
from afina.types import Measurement

WHOLE = datasets.load_digits()
_NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width=16, num_classes=2):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, width, 3), nn.Conv2d(width, width, 3)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))
"""
ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def _commands() -> list[tuple[str, list[str]]]:
    """The `afina` commands of each page, without those that only show the form of an argument (in capitals)."""
    found = []
    for page in PAGES:
        lines = [line.partition("#")[0].strip() for block in _blocks(page, "console") for line in block.splitlines()]
        commands = [line for line in lines if line.startswith("afina ") and not re.search(r"\b[A-Z]{4,}\b", line)]
        if commands:
            found.append((str(page.relative_to(ROOT)), commands))
    return found


def _small_recipe() -> str:
    """The recipe of the page about recipes, with fewer images and epochs."""
    (recipe,) = _blocks(ROOT / "docs" / "recipes.md", "yaml")
    quick = recipe.replace("60%", "60%, images: 64, method: svd").replace("80%", "80%, images: 64")
    return quick.replace("int4", "int8, images: 64").replace("epochs: 2", "epochs: 1")


def _parse(command: str) -> Any:
    """The context of a documented command, read by the real command line word for word, and not run."""
    group: Any = typer.main.get_command(app)
    with group.make_context("afina", shlex.split(command)[1:], resilient_parsing=True) as context:
        name, called, arguments = group.resolve_command(context, shlex.split(command)[1:])
        assert called is not None, f"No such command: {command}"
        return called.make_context(name, arguments, parent=context)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    """A folder with what the pages name, in small: images, a recipe, the run folder of the demo. No memory is measured.

    The demo's network is an eighth as wide, for a budget that int8 meets at once, `builtin:convnet` is narrow, and of
    the digits there are 300.
    """
    folder = tmp_path_factory.mktemp("docs")
    folder_of_digits(folder / "photos", classes=range(2), count=52)
    (folder / "small.yaml").write_text(_small_recipe())
    _bring_models(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for job in ("benchmark", "profile", "candidates.judging"):
            # In a fresh process for each file, which `test_runtimes` does.
            patch.setattr(f"afina.jobs.{job}.measure_memory", lambda *_, **__: Measurement(1e6, "B", "measured"))
        patch.setattr(datasets, "load_digits", lambda: Bunch(images=WHOLE.images[:300], target=WHOLE.target[:300]))
        afina.optimize(convnet(10, width=8), "digits", size="40KB", epochs=1, out="runs/demo")
        patch.setattr(convnet, "__defaults__", (1, 8, 2, 2, 3))
        yield folder


def _bring_models(folder: Path) -> None:
    """The models of the page on models: an ONNX file, a folder of transformers, a Python file, a pickled module."""
    import transformers

    (folder / "net.py").write_text(_NET)
    network = load_model(f"{folder / 'net.py'}:Net", input_size=(32, 32)).network
    network.save(folder / "net.pt2")
    afina.export(folder / "net.pt2", to="onnx", out=folder / "net.onnx")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder / "vit")
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()), folder / "whole.pt")


@pytest.mark.parametrize(("page", "commands"), _commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_commands_of_a_page_are_understood_as_they_are_written(page, commands):
    for command in commands:
        context = _parse(command)
        assert context.command.name == shlex.split(command)[1], command
        assert not context.args, command


@pytest.mark.parametrize(
    "command", ["afina quantize net.pt2 --data digits --bits int8", "afina tune --trials many", "afina prun net.pt2"]
)
def test_a_command_that_there_is_not_would_be_noticed(command):
    with pytest.raises(Exception, match=r"No such|valid integer"):
        _parse(command)


@pytest.mark.parametrize(("page", "commands"), _commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_commands_of_a_page_run_in_small_one_after_the_other(page, commands, home, monkeypatch):
    monkeypatch.chdir(home)
    for command in commands:
        arguments = shlex.split(command)[1:]
        if arguments[0] == "optimize":
            arguments += ["--input-size", "32", "--epochs", "1", "--finetune", "1"]
        if arguments[0] in ("factorize", "prune", "quantize", "sparsify", "sensitivity"):
            arguments += ["--images", "64"]
        result = CliRunner().invoke(app, arguments)
        # An epoch on 64 images need not keep the budget: the exit code then says so, as the result does.
        expected = 0
        if arguments[0] == "optimize":
            (folder,) = (path.parent for path in (home / "runs").glob("resnet18-photos/result.json"))
            expected = 0 if read_result(folder).fits else 3
        assert result.exit_code == expected, f"{command}\n{result.stderr}"


@pytest.fixture
def all_digits(home, monkeypatch):
    """A budget of half a point needs enough images to see that much."""
    monkeypatch.chdir(home)
    monkeypatch.setattr(datasets, "load_digits", lambda: WHOLE)
    monkeypatch.setattr(convnet, "__defaults__", (1, 24, 1, 2, 3))


def test_the_demo_ends_with_a_verdict_and_a_report(home, all_digits):
    result = CliRunner().invoke(app, ["demo", "--out", "runs/shown"])
    verdict = read_result(home / "runs" / "shown").verdict
    assert result.exit_code == (0 if verdict.startswith("fits") else 3), result.stderr
    assert (home / "runs" / "shown" / "report.html").stat().st_size > 10_000


def test_the_python_of_the_readme_runs(home, all_digits):
    for code in _blocks(ROOT / "README.md", "python"):
        exec(compile(code, "README.md", "exec"), {})
    assert read_result(home / "runs" / "digits").winner


def test_make_runs_what_the_readme_says():
    for target, expected in (("demo", "afina demo"), ("test", "pytest")):
        told = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert expected in told


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_reference_is_up_to_date():
    subprocess.run([sys.executable, ROOT / "docs" / "reference.py", "--check"], check=True)
