"""A command of the command line, made from the options that its Python function declares.

Each option becomes a `typer` option of the same name, help and default. What the command line has beside Python (where
the result is written, how it is shown) is declared in the same way, in a class of its own (`cli/shown.py`).
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING
from typing import Annotated, Any

import typer

from afina.cli.running import guarded, progress_of
from afina.cli.shown import Shown
from afina.errors import InputError
from afina.jobs.options.declaration import Declared, declared

# What runs: the Python function, its arguments, and what only the command line has.
Run = Callable[[Callable[..., Any], dict[str, Any], Any], None]


def add(app: typer.Typer, name: str, options: type, shown: type[Shown], run: Run, *, resumes: bool = False) -> None:
    """Add a command to the application.

    Args:
        app: The application.
        name: Name of the command and of the function in `afina`.
        options: The class of its options, whose docstring is the help.
        shown: The class of the options that only the command line has.
        run: Calls the function and shows its result.
        resumes: Whether an interrupted command goes on where it stopped.
    """
    renamed: dict[str, str] = getattr(options, "RENAMED", {})

    def call(**values: Any) -> None:
        only_here = shown(**{each.name: _value(each, values) for each in declared(shown)})

        def work() -> None:
            import afina

            for old, new in renamed.items():
                if values[f"renamed_{old}"] is not None:
                    raise InputError(
                        f"{_flag(old)} of `afina {name}` has another name now.",
                        fix=f"Write {_flag(new)} {values[f'renamed_{old}']}",
                    )
            arguments = {each.name: _value(each, values) for each in declared(options) if not each.option.python_only}
            if any(each.name == "progress" for each in declared(options)):
                arguments["progress"] = progress_of(only_here.quiet)
            run(getattr(afina, name), arguments, only_here)

        guarded(work, only_here.debug, resumes=resumes)

    visible = [each for each in (*declared(options), *declared(shown)) if not each.option.python_only]
    parameters = [_parameter(each) for each in visible]
    parameters += [_hidden(old) for old in renamed]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__doc__ = options.__doc__
    app.command(name)(call)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _value(each: Declared, values: dict[str, Any]) -> Any:
    """An option's value as Python has it: several become a tuple."""
    value = values[each.name]
    return tuple(value or ()) if each.repeats else value


def _parameter(each: Declared) -> inspect.Parameter:
    # The command line says nothing of values that only Python can give.
    text = re.sub(r"; from Python[^.]*\.", ".", each.option.help)
    text += f" ({', '.join(each.option.choices)})" if each.option.choices else ""
    if each.option.positional:
        settings = typer.Argument(help=text, metavar=each.flag)
    else:
        spellings = each.option.flags or (_flag(each.name),)
        if spellings[-1].startswith("--no-"):
            spellings = ("/".join(spellings),)
        settings = typer.Option(*spellings, help=text, metavar=each.option.metavar or None)
    default: Any = inspect.Parameter.empty
    if each.default is not MISSING:
        default = each.default
        if each.repeats:
            default = list(default) or None
        elif isinstance(default, tuple):
            default = each.option.separator.join(map(str, default))
    return inspect.Parameter(
        each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[_type(each), settings]
    )


def _hidden(old: str) -> inspect.Parameter:
    """A hidden option with a name of an earlier version, so that an error can say the new name."""
    annotation = Annotated[str | None, typer.Option(_flag(old), hidden=True)]
    return inspect.Parameter(f"renamed_{old}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _type(each: Declared) -> Any:
    """The type that the command line parses. Units and files stay text: they are parsed where values of Python are."""
    if each.repeats:
        return list[str] if each.default is MISSING else list[str] | None
    kinds = each.kinds - {type(None)}
    for kind in (bool, int, float):
        if kinds == {kind}:
            return kind if each.default is not None else kind | None
    if kinds == {int, float}:
        return float
    return str if each.default is MISSING or each.default is not None else str | None
