"""How an option is declared, once: its name, type and default are a field of a frozen dataclass, the rest an `Option`.

A command's options are one such class. The Python function of the command, its signature and documentation, the command
line with its help, the keys of a recipe's step, the command that resumes a run and the reference are all made from it:

    >>> from afina.jobs.options.sparsify import SparsifyOptions
    >>> options = SparsifyOptions("net.pt2", "my photos", sparsity="80%")
    >>> command_line("sparsify", options)
    "afina sparsify net.pt2 --data 'my photos' --sparsity 80%"
    >>> step_of("sparsify", options).config
    {'sparsity': '80%'}

Nothing here imports torch: `afina --help` reads all declarations.
"""

import inspect
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from afina.errors import InputError, did_you_mean
from afina.types import Step

P = ParamSpec("P")
O = TypeVar("O")  # noqa: E741
R = TypeVar("R")
_SECTIONS = ("Returns:", "Raises:", "Example:")


@dataclass(frozen=True)
class Option:
    """The help of an option and the values that it may have; stands in `Annotated[type, Option(...)]`.

    Attributes:
        help: What it does, its unit, and what its default means where that is not plain.
        choices: The values that it may have; empty where they cannot be listed.
        least: The smallest number that it may be; None for any.
        positional: Whether the command line takes it without a name.
        flags: Spellings on the command line, where `--name` is not one of them.
        metavar: The placeholder of its value in the help.
        separator: The separator of a list that the command line takes as one text.
        python_only: Whether it is for Python alone: an object, or an option that the command line replaces by its own.
        in_recipe: Whether a step of a recipe may have it; options of the whole recipe (data, seed) no step has.
    """

    help: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    positional: bool = False
    flags: tuple[str, ...] = ()
    metavar: str = ""
    separator: str = ""
    python_only: bool = False
    in_recipe: bool = True


@dataclass(frozen=True)
class Declared:
    """An option as its class declares it.

    Attributes:
        name: Name in Python and in recipes.
        type: The type of its value, without the annotation.
        default: The default of its value; `MISSING` where there is none.
        option: Its help, and the values that it may have.
    """

    name: str
    type: Any
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """Its spelling on the command line: `--max-drop`, or the name in capitals where it has none."""
        if self.option.positional:
            return self.name.upper()
        return next(iter(self.option.flags), f"--{self.name.replace('_', '-')}")

    @property
    def kinds(self) -> frozenset[Any]:
        """The plain types that its value may have: `str`, `int`, `float`, `bool`, `tuple`, `Path`."""
        return frozenset(get_origin(each) or each for each in (get_args(self.type) or (self.type,)))

    @property
    def repeats(self) -> bool:
        """Whether it may be given several times."""
        several = (get_args(self.type) or ()) if get_origin(self.type) is not tuple else (self.type,)
        return any(get_origin(each) is tuple and get_args(each)[-1] is Ellipsis for each in several)


def declared(options: type) -> tuple[Declared, ...]:
    """All options of a class: positional ones first, then those of the class itself, then those of each group."""
    return _read(options)


@cache
def _read(kind: Any) -> tuple[Declared, ...]:
    hints = get_type_hints(kind, include_extras=True)
    order = list(dict.fromkeys(name for owner in kind.__mro__ for name in vars(owner).get("__annotations__", ())))
    listed = sorted(fields(kind), key=lambda field: (field.kw_only, order.index(field.name)))
    return tuple(_declared(field, hints[field.name]) for field in listed)


def _declared(field: "Field[Any]", hint: Any) -> Declared:
    if get_origin(hint) is not Annotated:
        raise TypeError(f"{field.name} has no Option: write Annotated[type, Option(...)].")
    kind, *notes = get_args(hint)
    option = next(note for note in notes if isinstance(note, Option))
    return Declared(field.name, kind, field.default, option)


def command(options: Callable[P, O], job: Callable[[O], R]) -> Callable[P, R]:
    """The public function of a command: its arguments are the options, what it does and gives is the job's.

    Args:
        options: The class of the options.
        job: Takes them, checked; its docstring says what the command does, without the options.

    Returns:
        A function with the signature of `options` and a docstring with all of them. A name that is no option is a
        `TypeError`, one that was an option once names what it is now.
    """
    kind: Any = options

    def call(*args: P.args, **keywords: P.kwargs) -> R:
        for name in keywords:
            check_name(kind, name)
        chosen = options(*args, **keywords)
        check_values(chosen)
        return job(chosen)

    call.__name__ = call.__qualname__ = job.__name__.strip("_")
    call.__module__ = job.__module__
    parameters = inspect.signature(options).parameters
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameters[each.name].replace(annotation=each.type) for each in declared(kind)],
        return_annotation=inspect.signature(job).return_annotation,
    )
    call.__doc__ = _documented(inspect.cleandoc(job.__doc__ or ""), declared(kind))
    return call


def _documented(text: str, options: tuple[Declared, ...]) -> str:
    """A docstring with the options put before what it returns."""
    lines = text.splitlines()
    at = next((i for i, line in enumerate(lines) if line in _SECTIONS), len(lines))
    before, after = "\n".join(lines[:at]).rstrip(), "\n".join(lines[at:])
    arguments = "\n".join(f"    {each.name}: {_help_of(each)}" for each in options)
    return "\n\n".join(part for part in (before, f"Args:\n{arguments}", after) if part) + "\n"


def _help_of(each: Declared) -> str:
    text = each.option.help
    if each.option.choices:
        *first, last = (f"`{choice}`" for choice in each.option.choices)
        text += f" One of {', '.join(first)} or {last}." if first else f" {last}."
    return text


def check_name(options: type, name: str) -> None:
    """Check that an option has this name.

    Raises:
        InputError: the name is one of an earlier version; the error says the new name.
        TypeError: there is and was no option of this name.
    """
    names = [each.name for each in declared(options)]
    if name in names:
        return
    renamed: Mapping[str, str] = getattr(options, "RENAMED", {})
    if name in renamed:
        raise InputError(f"The option {name!r} has another name now.", fix=f"Write {renamed[name]} instead.")
    raise TypeError(f"There is no option {name!r}. {did_you_mean(name, names)}")


def check_values(options: Any) -> None:
    """Check that each option has a value that it may have, and that all together make sense (`options.check()`).

    Raises:
        InputError: one has not; the error names the option, its value and the allowed ones.
    """
    for each in declared(type(options)):
        value = getattr(options, each.name)
        if value is None:
            continue
        if each.option.choices and value not in each.option.choices:
            raise InputError(
                f"{each.flag} {value!r} is not known.",
                why=f"There are: {', '.join(each.option.choices)}.",
                fix=did_you_mean(str(value), each.option.choices),
            )
        least = each.option.least
        if least is not None and isinstance(value, (int, float)) and not value >= least:
            raise InputError(f"{each.flag} is {value}.", fix=f"Give {least:g} or more.")
    check = getattr(options, "check", None)
    if check is not None:
        check()


def changed(options: Any) -> Iterator[tuple[Declared, Any]]:
    """Options that are not at their defaults, with their values."""
    for each in declared(type(options)):
        value = getattr(options, each.name)
        if each.default is MISSING or value != each.default:
            yield each, value


def plain(options: Any) -> dict[str, Any]:
    """All options but those for Python alone, as plain data: what a run folder keeps of a command."""
    return {
        each.name: plain_value(getattr(options, each.name))
        for each in declared(type(options))
        if not each.option.python_only
    }


def plain_value(value: Any) -> Any:
    """A value as JSON and YAML can hold it; an object by the name of its type."""
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value) if isinstance(value, Path) else f"<{type(value).__name__}>"


def command_line(name: str, options: Any) -> str:
    """The command that does the same, quoted for a shell.

    Where an option is an object that only Python has (a module, a data set), the call that a user has to repeat.
    """
    words = ["afina", name]
    for each, value in changed(options):
        if each.option.python_only:
            continue
        if not isinstance(value, (str, int, float, bool, Path, list, tuple)):
            return f"# from Python: the same call of afina.{name}(...), with {each.name} as it was"
        items = value if isinstance(value, (list, tuple)) else [value]
        if each.option.separator:
            items = [each.option.separator.join(map(str, items))]
        elif not each.repeats and isinstance(value, tuple):
            items = ["x".join(map(str, items))]
        for item in items:
            flag = [] if each.option.positional else [each.flag]
            words += flag if item is True and bool in each.kinds else [*flag, str(item)]
    return shlex.join(words)


def step_of(name: str, options: Any) -> Step:
    """The command as a step of a recipe: what differs from the defaults, without what a recipe says as a whole."""
    config = {e.name: plain_value(v) for e, v in changed(options) if e.option.in_recipe and not e.option.python_only}
    return Step(name, config)


def recipe_keys(options: type) -> dict[str, Declared]:
    """The options that a step of a recipe may say, by name."""
    return {e.name: e for e in declared(options) if e.option.in_recipe and not e.option.python_only}
