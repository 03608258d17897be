"""What the benchmarks share: where results go, and what is kept beside every number."""

import argparse
import atexit
import json
import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

from afina.capacity import available_cores
from afina.devices.machine import describe_machine, processor
from afina.types import Result

RESULTS = Path(__file__).with_name("results")

Row = dict[str, Any]


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of all benchmarks that keep rows."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder with models/ and data/")
    parser.add_argument("--only", default="*", help="names of rows, as in 'resnet20/W8A8/*'")
    parser.add_argument("--skip", default="", help="names of rows that are left out, as in '*/afina*'")
    parser.add_argument("--again", default="", help="names of rows that are measured again")
    return parser


class Rows:
    """Rows of one benchmark, one JSON line for each name; the last of a name counts.

    Args:
        path: The file.
        only: Pattern of the rows that are wanted.
        skip: Pattern of those among them that are not.
        again: Pattern of the rows that are wanted although they are there.

    Attributes:
        libraries: Those whose versions are kept with each row.
        shown: Values that are told when a row is kept.
        found: The rows, by name.
    """

    libraries: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()

    def __init__(self, path: Path, only: str = "*", skip: str = "", again: str = "") -> None:
        self._path, self._only, self._skip, self._again = path, only, skip, again
        lines = path.read_text().splitlines() if path.is_file() else []
        self.found: dict[str, Row] = {row["name"]: row for row in map(json.loads, lines)}
        self._offered: list[str] = []
        if only != "*":
            atexit.register(self._tell_of_no_match)

    def _tell_of_no_match(self) -> None:
        if self._offered and not any(fnmatch(name, self._only) for name in self._offered):
            print(f"No row is named {self._only!r}; the first of {len(self._offered)} is {self._offered[0]!r}.")

    def wanted(self, name: str) -> bool:
        """Whether it was asked for, and is not there."""
        self._offered.append(name)
        there = name in self.found and not (self._again and fnmatch(name, self._again))
        return fnmatch(name, self._only) and not fnmatch(name, self._skip) and not there

    def measure(self, name: str, measure: Callable[[], Row]) -> None:
        """Measure and keep one row, where it is wanted; what fails is kept as `failed`, with the reason."""
        if not self.wanted(name):
            return
        start = time.monotonic()
        try:
            values = measure()
        except Exception as error:
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            values = {"failed": f"{type(error).__name__}: {first[:300]}"}
        self.keep(name, values, time.monotonic() - start)

    def keep(self, name: str, values: Row, seconds: float) -> None:
        """Write one row at once, so that a stopped run goes on after it."""
        row = {"name": name, **values, "seconds": round(seconds, 1), **about(self.libraries)}
        self.found[name] = row
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(name, {key: row[key] for key in self.shown if key in row}, flush=True)


def about(libraries: Iterable[str]) -> Row:
    """When, where and with which versions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{processor()}, {available_cores()} cores",
        "versions": {name: version for name in libraries if (version := _version(name))},
    }


def made(rows: Iterable[Row]) -> str:
    """Where, with what and when rows were made, in one line: all machines, all versions, first and last day."""
    found: dict[str, set[str]] = {"machine": set(), "date": set()}
    for row in rows:
        for name, value in {**row["versions"], "machine": row["machine"], "date": row["date"]}.items():
            found.setdefault(name, set()).add(value)
    told = {name: " and ".join(sorted(values)) for name, values in found.items()}
    days = dict.fromkeys((min(found["date"]), max(found["date"])))
    versions = ", ".join(f"{name} {value}" for name, value in told.items() if name not in ("machine", "date"))
    return f"{told['machine']}; {versions}; {' to '.join(days)}."


def keep(name: str, values: dict[str, Any]) -> Path:
    """Write `values` with the machine, the versions and the date; gives the file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    about = {"date": time.strftime("%Y-%m-%d"), "machine": describe_machine(available_cores())}
    path.write_text(json.dumps({**values, **about}, indent=2) + "\n")
    print(f"kept in {path}")
    return path


def brief(result: Result, seconds: float) -> dict[str, Any]:
    """A result without its tables: verdict, and the measurements of every candidate."""
    original, winner = result.candidate(result.original), result.candidate(result.winner)
    return {
        "verdict": result.verdict,
        "budget": {k: v for k, v in vars(result.budget).items() if v is not None},
        "winner": result.winner,
        "drop": result.drop,
        "seconds": round(seconds),
        "size_ratio": original.measurements["size"].value / winner.measurements["size"].value,
        "speedup": original.measurements["latency"].value / winner.measurements["latency"].value,
        "candidates": {
            c.name: {key: m.value for key, m in c.measurements.items()}
            if c.status == "judged"
            else {"rejected": c.reason}
            for c in result.candidates
        },
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
