"""How a command runs its job: errors to messages and exit codes, results to text or JSON."""

import json
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import typer

from afina.errors import AfinaError
from afina.progress import PlainProgress, Progress, RichProgress

MISSES = 3


def verdict_code(fits: bool) -> None:
    """Leave with exit code 3 where the budget is missed."""
    if not fits:
        raise typer.Exit(MISSES)


def guarded(run: Any, debug: bool, *, resumes: bool = False) -> None:
    """Turn errors into one clear message and an exit code; `resumes`: what was finished is there for the next time."""
    try:
        run()
    except typer.Exit:
        raise
    except AfinaError as error:
        _fail(error, error.exit_code, debug)
    except KeyboardInterrupt:
        consequence = "What is finished is kept: the same command resumes." if resumes else "Nothing was written."
        typer.echo(f"Stopped. {consequence}", err=True)
        raise typer.Exit(1) from None
    except Exception as error:
        text = f"Something unexpected happened: {type(error).__name__}: {error}\nRun again with --debug to see where."
        _fail(RuntimeError(text) if not debug else error, 1, debug)


def _fail(error: Exception, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    typer.echo(f"Error: {error}", err=True)
    raise typer.Exit(code) from None


def check_files(**options: Path | None) -> None:
    """Raise `InputError` for a file, by the option that names it, that could not be written after the work."""
    from afina.store.files import check_target

    for name, path in options.items():
        if path is not None:
            check_target(path, f"--{name}", makes_folder=True)


def progress_of(quiet: bool) -> Progress:
    if quiet:
        return Progress()
    return RichProgress() if sys.stderr.isatty() else PlainProgress()


def show(value: Any, text: str, as_json: bool) -> None:
    if not as_json:
        typer.echo(text)
        return
    from afina.store.result import to_plain

    typer.echo(json.dumps(to_plain(value), indent=2))
