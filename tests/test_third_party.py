"""A package of its own adds parts through entry points; a broken one is one clear error, and breaks nothing else."""

import tomllib
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from afina.cli import app
from afina.errors import InputError
from afina.runtimes import RUNTIMES, runtime_of, runtime_of_format
from afina.tasks import TASKS, get_task
from afina.techniques import TECHNIQUES
from afina.testing.runtimes import check_runtime
from afina.testing.tasks import check_task
from afina.testing.techniques import check_technique
from afina.types import TaskSpec

PACKAGE = Path(__file__).parent / "third_party"
TABLES = {table.group: table for table in (TECHNIQUES, TASKS, RUNTIMES)}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """What an installer would do: the package can be imported, and its entry points are listed."""

    def installed(name: str, groups: dict[str, dict[str, str]]) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [[f"[{group}]", *(f"{key} = {value}" for key, value in rows.items())] for group, rows in groups.items()]
        (folder / "entry_points.txt").write_text("\n".join(line for part in lines for line in part) + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.syspath_prepend(str(PACKAGE))
        for table in TABLES.values():
            table.refresh()

    yield installed
    monkeypatch.undo()
    for table in TABLES.values():
        table.refresh()


@pytest.fixture
def example(install):
    """The package in `tests/third_party`, as its `pyproject.toml` declares it."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    install(project["name"], project["entry-points"])


def test_a_technique_of_another_package_is_found_and_keeps_the_contract(example, small_network):
    assert "round-weights" in TECHNIQUES.names()
    check_technique(TECHNIQUES["round-weights"], small_network, torch.randn(16, 1, 8, 8))


def test_a_task_of_another_package_is_found_and_keeps_the_contract(example):
    task = get_task(TaskSpec("top2", ("ant", "bee", "cow", "dog")))
    logits = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    check_task(task, {"outputs": logits}, torch.arange(16) % 4)
    predictions, second = task.decode({"outputs": logits.numpy()}), logits.argsort(dim=1)[:, -2]
    assert task.value(task.evidence(predictions, second.numpy())) == 1
    assert task.value(task.evidence(predictions, logits.argmin(dim=1).numpy())) == 0


def test_a_runtime_of_another_package_is_found_and_keeps_the_contract(example, small_network, tmp_path):
    runtime = runtime_of_format("packed")
    assert runtime_of("model.ptz") is runtime
    check_runtime(runtime, small_network, small_network.example(3), tmp_path / "files")


@pytest.mark.parametrize(
    ("group", "value", "reason"),
    [
        ("afina.techniques", "afina_example.missing:TECHNIQUE", "cannot be imported"),
        ("afina.techniques", "afina_example.round_weights:apply", "not an afina.techniques.Technique"),
        ("afina.tasks", "afina_example.missing:Top2", "cannot be imported"),
        ("afina.tasks", "afina_example.broken:NoMetric", "`metric` is 'top2', not MetricInfo"),
        ("afina.runtimes", "afina_example.missing:Packed", "cannot be imported"),
        ("afina.runtimes", "afina_example.broken:NoDot", "`suffix` is 'ptz', not a dot and small letters"),
    ],
)
def test_a_broken_package_is_one_error_that_names_it(install, group, value, reason):
    install("broken-package", {group: {"broken": value}})
    with pytest.raises(InputError, match=reason) as error:
        TABLES[group].get("broken")
    assert "broken-package" in str(error.value)
    assert value in str(error.value)
    assert list(TABLES[group].problems()) == ["broken"]


def test_a_network_whose_task_is_of_a_broken_package_is_told_which(install):
    install("broken-package", {"afina.tasks": {"broken": "afina_example.missing:Top2"}})
    with pytest.raises(InputError, match=r"task 'broken' of the package broken-package cannot be imported"):
        get_task(TaskSpec("broken", ("ant", "bee")))
    assert get_task(TaskSpec("classification", ("ant", "bee"))).metric.name == "accuracy"


@pytest.mark.parametrize("attribute", ["missing:Packed", "broken:NoDot"])
def test_an_export_to_a_broken_runtime_writes_nothing_and_one_to_another_goes_on(install, attribute, tmp_path):
    install("broken-package", {"afina.runtimes": {"broken": f"afina_example.{attribute}"}})

    def export(to: str, file: Path):
        words = ["export", "builtin:convnet", "--weights", "random", "--to", to, "--out", str(file)]
        return CliRunner().invoke(app, words)

    refused = export("broken", tmp_path / "out" / "model.ptz")
    assert refused.exit_code == 2
    assert "broken-package" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "out").exists()
    assert export("pt2", tmp_path / "out" / "model.pt2").exit_code == 0
    assert (tmp_path / "out" / "model.pt2").is_file()
