"""Options of `afina report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from afina.jobs.options.declaration import Option


@dataclass(frozen=True)
class ReportOptions:
    """Rebuild the report of a run from its result, and open it."""

    run: Annotated[str | Path, Option("The folder of a finished run.", positional=True)]
