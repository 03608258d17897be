"""`afina report`: the report, the model card and the table of a run, rebuilt from its `result.json`."""

from pathlib import Path

from afina.errors import InputError
from afina.jobs.options.declaration import command
from afina.jobs.options.report import ReportOptions
from afina.reporting import write_card, write_csv, write_html
from afina.store.result import read_result
from afina.types import Result


def _report(options: ReportOptions) -> Path:
    """Rebuild `report.html`, `card.md` and `candidates.csv` in the folder of a finished run; gives the page.

    Raises:
        InputError: there is no finished run in that folder.

    Example:
        >>> import afina
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> result = afina.optimize(model, "digits", size="1MB", epochs=1, out="runs/linear")
        >>> afina.report("runs/linear").name
        'report.html'
    """
    folder = Path(options.run)
    if not (folder / "result.json").is_file():
        why = "It holds a run that has not finished." if (folder / "config.yaml").is_file() else "It holds no run."
        raise InputError(
            f"There is no result in {folder}.",
            why=why,
            fix="Give the folder named with --out, or run `afina optimize` again: it resumes.",
        )
    return write_all(read_result(folder / "result.json"), folder)


report = command(ReportOptions, _report)


def write_all(result: Result, folder: Path) -> Path:
    """The page, the card and the table of a result; gives the page."""
    log = folder / "log.txt"
    write_card(result, folder / "card.md")
    write_csv(result, folder / "candidates.csv")
    return write_html(result, folder / "report.html", log=log.read_text() if log.is_file() else "")
