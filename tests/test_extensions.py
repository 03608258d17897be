"""Tables that other packages extend: found without an import, checked when asked for, harmless when broken."""

import re
import sys
import textwrap
from abc import ABC, abstractmethod

import pytest

from afina.errors import InputError
from afina.extensions import BrokenContract, Table, concrete_class

GROUP = "afina.test_shapes"


class Shape(ABC):
    corners: int

    @abstractmethod
    def area(self) -> float:
        """In square metres."""


class Square(Shape):
    corners = 4

    def area(self) -> float:
        return 1.0


def _accept(value):
    return concrete_class(value, Shape, {"corners": int})()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes an installed package of one module, with entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(package, points, source=""):
        (tmp_path / f"{package}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]) + "\n")

    before = set(sys.modules)
    yield write
    for name in set(sys.modules) - before:
        sys.modules.pop(name)


def _table():
    return Table("shape", GROUP, {"square": Square()}, accept=_accept)


def test_a_package_adds_an_entry_by_an_entry_point(install):
    install(
        "roundthings",
        {"triangle": "roundthings:Triangle"},
        f"""
        from {__name__} import Square
        class Triangle(Square):
            corners = 3
        """,
    )
    table = _table()
    assert table.names() == ("square", "triangle")
    assert "roundthings" not in sys.modules
    assert table.get("triangle").corners == 3
    assert list(table.loaded()) == ["square", "triangle"]
    assert table.problems() == {}


def test_a_mistyped_name_is_told_the_nearest(install):
    install("roundthings", {"triangle": "roundthings:Triangle"})
    with pytest.raises(InputError, match=r"There is no shape 'triangel'.\nDid you mean triangle"):
        _table().get("triangel")


BROKEN = {
    "cannot be imported": ("import no_such_library", "cannot be imported", "No module named 'no_such_library'"),
    "ends the process": ("raise SystemExit(3)", "cannot be imported", "SystemExit: 3"),
    "has no such name": ("x = 1", "cannot be imported", "Thing"),
    "is no class": ("Thing = 3", "breaks the contract of a shape", "not a subclass of .*Shape"),
    "leaves a method out": (
        f"from {__name__} import Shape\nclass Thing(Shape):\n    corners = 3",
        "breaks the contract of a shape",
        "it does not implement `area`",
    ),
    "leaves an attribute out": (
        f"from {__name__} import Shape\nclass Thing(Shape):\n    def area(self): return 1.0",
        "breaks the contract of a shape",
        "it has no attribute `corners`",
    ),
    "has an attribute of another type": (
        f"from {__name__} import Square\nclass Thing(Square):\n    corners = 'four'",
        "breaks the contract of a shape",
        "its attribute `corners` is 'four', not int",
    ),
    "calls itself otherwise": (
        f"from {__name__} import Square\nclass Thing(Square):\n    name = 'other'",
        "breaks the contract of a shape",
        "its attribute `name` is 'other', not 'thing'",
    ),
    "cannot be made": (
        f"from {__name__} import Square\nclass Thing(Square):\n    def __init__(self, size): pass",
        "breaks the contract of a shape",
        "TypeError",
    ),
}


@pytest.mark.parametrize(("source", "fault", "part"), BROKEN.values(), ids=BROKEN)
def test_a_broken_package_is_named_with_the_part_that_is_broken_and_harms_no_other_entry(install, source, fault, part):
    install("badthings", {"thing": "badthings:Thing"}, source)
    table = _table()
    assert table.get("square").corners == 4
    assert table.names() == ("square", "thing")
    with pytest.raises(InputError, match=f"'thing' of the package badthings {fault}") as caught:
        table.get("thing")
    assert "thing = badthings:Thing" in str(caught.value)
    assert re.search(part, str(caught.value))
    assert list(table.loaded()) == ["square"]
    assert list(table.problems()) == ["thing"]


def test_a_built_in_entry_cannot_be_replaced(install):
    install("badthings", {"square": "badthings:Thing"}, "Thing = 3")
    table = _table()
    assert table.names() == ("square",)
    assert isinstance(table.get("square"), Square)


def test_two_packages_with_one_name_are_both_named(install):
    install("ones", {"thing": "ones:Thing"}, "Thing = 3")
    install("twos", {"thing": "twos:Thing"}, "Thing = 3")
    with pytest.raises(InputError, match="They are from: ones, twos"):
        _table().get("thing")


def test_a_built_in_entry_given_as_text_is_imported_when_asked_for():
    table = Table("constant", GROUP, {"pi": "math:pi"}, accept=float)
    assert table.get("pi") == pytest.approx(3.14159, abs=1e-5)


def test_what_is_installed_later_is_found_after_a_refresh(install):
    table = _table()
    assert table.names() == ("square",)
    install("roundthings", {"thing": "roundthings:Thing"})
    table.refresh()
    assert table.names() == ("square", "thing")


def test_a_contract_says_its_broken_part_by_an_exception():
    with pytest.raises(BrokenContract, match="it is not a subclass"):
        concrete_class(3, Shape, {})
