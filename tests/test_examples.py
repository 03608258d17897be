"""Every example in a docstring is true: what stands behind `>>>` anywhere in the package runs as a test."""

import doctest
import re
from pathlib import Path

import pytest

import afina

PACKAGE = Path(afina.__file__).parent
PROMPT = re.compile(r"^\s*>>> ", flags=re.MULTILINE)
# A training and a search: `tests/test_docs.py` runs it.
TAKES_A_MINUTE = "demo"


def _modules_with_examples() -> list[str]:
    """Found in the text, so that nothing is imported before its own test runs."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if PROMPT.search(path.read_text())]
    parts = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in files]
    return [".".join(part for part in names if part != "__init__") for names in parts]


@pytest.mark.parametrize("name", _modules_with_examples())
def test_the_examples_of_a_module_are_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    # The function of a command has the docstring of its job: what both say is run once.
    tests = {
        tuple((example.source, example.want) for example in test.examples): test
        for test in doctest.DocTestFinder(exclude_empty=True).find(module)
        if test.examples
    }
    written = len(PROMPT.findall(Path(module.__file__).read_text()))
    assert sum(map(len, tests)) == written, "doctest does not see all of them (a decorator may hide a docstring)"
    runner = doctest.DocTestRunner()
    for test in tests.values():
        runner.run(test)
    assert not runner.failures


@pytest.mark.parametrize("name", [name for name in afina._COMMANDS if name != TAKES_A_MINUTE])
def test_every_command_shows_how_it_is_called_from_python(name: str) -> None:
    _, _, example = getattr(afina, name).__doc__.partition("\nExample:\n")
    assert f"afina.{name}(" in example
    assert PROMPT.match(example)
