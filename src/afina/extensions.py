"""Tables of interchangeable parts (techniques, runtimes, tasks, samplers) that installed packages can extend.

A table holds built-in entries by name, and adds what other packages declare as entry points of one group:

    [project.entry-points."afina.runtimes"]      # in the pyproject.toml of the other package
    myruntime = "mypackage.runtime:MyRuntime"

Names are listed without importing anything. An entry is imported and checked against its contract when it is asked
for, so that a broken package breaks only the command that uses it. Nothing here imports torch.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from afina.errors import InputError, did_you_mean

Entry = TypeVar("Entry")
_Class = TypeVar("_Class", bound=type)


class BrokenContract(Exception):
    """What a table's `accept` raises where an entry breaks the contract; the text names the part that is broken."""


class Table(Generic[Entry]):
    """Entries by name: the built-in ones, and those that installed packages add.

    Args:
        kind: What one entry is, in the singular, for messages: `runtime`.
        group: The group of entry points: `afina.runtimes`.
        built_in: Built-in entries by name. A text is imported when it is first asked for (`package.module:attribute`,
            as in an entry point).
        accept: Called with what an entry point refers to; returns the entry that the table holds (the same object, or
            an instance of the class that it is). It raises `BrokenContract` where the contract is not kept. Built-in
            entries are not passed through it.

    Example:
        >>> shapes = Table("shape", "afina.doctest", {"square": 4, "triangle": 3}, accept=int)
        >>> shapes.names()
        ('square', 'triangle')
        >>> shapes.get("square")
        4
        >>> shapes.get("squar")
        Traceback (most recent call last):
        afina.errors.InputError: There is no shape 'squar'.
        Did you mean square?
    """

    def __init__(
        self, kind: str, group: str, built_in: Mapping[str, Entry | str], accept: Callable[[Any], Entry]
    ) -> None:
        self.kind, self.group = kind, group
        self._built_in = dict(built_in)
        self._accept = accept
        self._entries: dict[str, Entry] = {}
        self._points: dict[str, list[EntryPoint]] | None = None

    def names(self) -> tuple[str, ...]:
        """All names, built-in ones first; nothing is imported."""
        return (*self._built_in, *sorted(self._entry_points()))

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in self._entry_points()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def get(self, name: str) -> Entry:
        """The entry of that name, imported and checked.

        Raises:
            InputError: there is none of that name, it cannot be imported, or it breaks the contract; the package, the
                entry point and the broken part are named.
        """
        if name not in self._entries:
            if name in self._built_in:
                self._entries[name] = self._load_built_in(name)
            elif name in self._entry_points():
                self._entries[name] = self._load(self._entry_points()[name])
            else:
                raise InputError(f"There is no {self.kind} {name!r}.", fix=did_you_mean(name, self.names()))
        return self._entries[name]

    def __getitem__(self, name: str) -> Entry:
        return self.get(name)

    def loaded(self) -> dict[str, Entry]:
        """All entries that can be imported and keep the contract, by name; `problems` tells of the others."""
        return self._load_all()[0]

    def problems(self) -> dict[str, InputError]:
        """For each entry that cannot be used, what is wrong with it."""
        return self._load_all()[1]

    def refresh(self) -> None:
        """Look for entry points again: a package was installed or removed since the last look."""
        self._entries = {name: entry for name, entry in self._entries.items() if name in self._built_in}
        self._points = None

    def _load_all(self) -> tuple[dict[str, Entry], dict[str, InputError]]:
        entries, problems = dict[str, Entry](), dict[str, InputError]()
        for name in self.names():
            try:
                entries[name] = self.get(name)
            except InputError as error:
                problems[name] = error
        return entries, problems

    def _entry_points(self) -> dict[str, list[EntryPoint]]:
        """Entry points by name. A built-in entry cannot be replaced: its name is left out."""
        if self._points is None:
            self._points = {}
            for point in entry_points(group=self.group):
                if point.name not in self._built_in:
                    self._points.setdefault(point.name, []).append(point)
        return self._points

    def _load_built_in(self, name: str) -> Entry:
        entry = self._built_in[name]
        if not isinstance(entry, str):
            return entry
        loaded: Entry = EntryPoint(name, entry, self.group).load()
        return loaded

    def _load(self, points: list[EntryPoint]) -> Entry:
        point = points[0]
        if len({(_package(other), other.value) for other in points}) > 1:
            packages = ", ".join(sorted({_package(other) for other in points}))
            raise InputError(
                f"There are several {self.kind}s named {point.name!r}.",
                why=f"They are from: {packages}.",
                fix="Uninstall all of these packages but one.",
            )
        try:
            value = point.load()
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {error}".strip()[:300]
            raise self._broken(point, "cannot be imported", f"Importing it raised {reason}") from error
        try:
            return self._accept(value)
        except BrokenContract as error:
            raise self._broken(point, f"breaks the contract of a {self.kind}", str(error)) from error
        except Exception as error:
            reason = f"Making one of it raised {type(error).__name__}: {error}"[:300]
            raise self._broken(point, f"breaks the contract of a {self.kind}", reason) from error

    def _broken(self, point: EntryPoint, fault: str, reason: str) -> InputError:
        package = _package(point)
        return InputError(
            f"The {self.kind} {point.name!r} of the package {package} {fault}.",
            why=f"Entry point {point.name} = {point.value} of group {self.group}: {reason}",
            fix=f"Update or uninstall {package}, or tell its makers.",
        )


def concrete_class(value: object, base: _Class, attributes: Mapping[str, type | tuple[type, ...]]) -> _Class:
    """`value`, where it is a subclass of `base` that can be used: for the `accept` of a table of classes.

    Args:
        value: What an entry point refers to.
        base: The abstract class of the contract.
        attributes: Attributes that the class itself must have, with the types that each may have.

    Raises:
        BrokenContract: it is no such class, it leaves a method abstract, or an attribute is missing or of another
            type; the text names which.

    Example:
        >>> concrete_class(bool, int, {"name": str})
        Traceback (most recent call last):
        afina.extensions.BrokenContract: it has no attribute `name`
    """
    if not (isinstance(value, type) and issubclass(value, base)):
        raise BrokenContract(f"it is not a subclass of {base.__module__}.{base.__name__}")
    if inspect.isabstract(value):
        methods = ", ".join(f"`{name}`" for name in sorted(getattr(value, "__abstractmethods__", ())))
        raise BrokenContract(f"it does not implement {methods}")
    for name, kinds in attributes.items():
        if not hasattr(value, name):
            raise BrokenContract(f"it has no attribute `{name}`")
        if not isinstance(getattr(value, name), kinds):
            expected = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
            raise BrokenContract(f"its attribute `{name}` is {getattr(value, name)!r}, not {expected}")
    return cast(_Class, value)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "(unknown)"
