"""A package of its own adds a technique through entry points; a broken one is one clear error."""

import tomllib
from pathlib import Path

import pytest
import torch

from afina.errors import InputError
from afina.techniques import TECHNIQUES
from afina.testing.techniques import check_technique

PACKAGE = Path(__file__).parent / "third_party"


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
        TECHNIQUES.refresh()

    yield installed
    monkeypatch.undo()
    TECHNIQUES.refresh()


def test_a_technique_of_another_package_is_found_and_keeps_the_contract(install, small_network):
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    install(project["name"], project["entry-points"])
    assert "round-weights" in TECHNIQUES.names()
    check_technique(TECHNIQUES["round-weights"], small_network, torch.randn(16, 1, 8, 8))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("afina_example.missing:TECHNIQUE", "cannot be imported"),
        ("afina_example.round_weights:apply", "not an afina.techniques.Technique"),
    ],
)
def test_a_broken_package_is_one_error_that_names_it(install, value, reason):
    install("broken-package", {"afina.techniques": {"broken": value}})
    with pytest.raises(InputError, match=reason) as error:
        TECHNIQUES.get("broken")
    assert "broken-package" in str(error.value)
    assert value in str(error.value)
