"""Every documented command runs as it is written, and what is generated is up to date."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import folder_of_digits
from typer.testing import CliRunner

from afina.cli import app
from afina.jobs import optimize as optimize_module
from afina.jobs.candidates import proposals as ways_module
from afina.models.builtin import convnet
from afina.store.result import read_result

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


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    folder_of_digits(folder / "photos", classes=range(2), count=16)
    (recipe,) = _blocks(ROOT / "docs" / "recipes.md", "yaml")
    quick = recipe.replace("60%", "60%, images: 64, method: svd").replace("80%", "80%, images: 64")
    (folder / "small.yaml").write_text(quick.replace("int4", "int8, images: 64").replace("epochs: 2", "epochs: 1"))
    return folder


@pytest.mark.parametrize(("page", "commands"), _commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_commands_of_a_page_run(page, commands, home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(ways_module, "IMAGES", 64)
    monkeypatch.setattr(optimize_module, "_MOST_EPOCHS", 1)
    monkeypatch.setattr(optimize_module, "_FEWEST_EPOCHS", 1)
    if not (home / "runs" / "demo").exists():
        # What the pages need of the demo's run folder: half as wide a network, for a budget that int8 meets at once.
        optimize_module.optimize(convnet(10, width=32), "digits", size="250KB", epochs=1, out="runs/demo")
    for command in commands:
        arguments = shlex.split(command)[1:]
        if arguments[0] == "optimize":
            arguments += ["--input-size", "32"]
        if arguments[0] in ("factorize", "prune", "quantize", "sparsify", "sensitivity"):
            arguments += ["--images", "64"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code in (0, 3), f"{command}\n{result.stderr}"


def test_the_demo_ends_with_a_verdict_and_a_report(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(optimize_module, "_MOST_EPOCHS", 1)
    monkeypatch.setattr(optimize_module, "_FEWEST_EPOCHS", 1)
    result = CliRunner().invoke(app, ["demo", "--out", "runs/shown"])
    assert result.exit_code in (0, 3), result.stderr
    assert (home / "runs" / "shown" / "report.html").stat().st_size > 10_000


def test_the_python_of_the_readme_runs(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setattr(ways_module, "IMAGES", 64)
    # Trained enough for int8 to lose nothing: else everything that there is would be tried.
    monkeypatch.setattr(optimize_module, "_MOST_EPOCHS", 4)
    monkeypatch.setattr(optimize_module, "_FEWEST_EPOCHS", 1)
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
