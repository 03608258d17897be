"""What the command line has beside Python: where a result is written, and how it is shown."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from afina.jobs.options.declaration import Option


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Options that every command has."""

    quiet: Annotated[bool, Option("Say nothing but the result.", flags=("--quiet", "-q"))] = False
    as_json: Annotated[bool, Option("Print the result as JSON on standard output.", flags=("--json",))] = False
    debug: Annotated[bool, Option("Show the traceback of an error.")] = False


@dataclass(frozen=True, kw_only=True)
class NetworkShown(Shown):
    """Options of a command that makes a network."""

    out: Annotated[str | None, Option("The .pt2 file to write; named after the model by default.", metavar="FILE")] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class TableShown(Shown):
    """Options of a command that makes a table."""

    csv: Annotated[str | None, Option("Write the table here.", metavar="FILE")] = None


@dataclass(frozen=True, kw_only=True)
class PlotShown(TableShown):
    """Options of a command that makes a table and a plot."""

    plot: Annotated[str | None, Option("Write a page with the plot here (.html).", metavar="FILE")] = None


@dataclass(frozen=True, kw_only=True)
class ReportShown(Shown):
    """Options of `afina report`."""

    open_browser: Annotated[bool, Option("Open it in the browser.", flags=("--open", "--no-open"))] = True


def file_of(text: str | None) -> Path | None:
    """The path of a file option; None where it is not given."""
    return None if text is None else Path(text)
