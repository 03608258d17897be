"""The summary that the command line prints at the end."""

import textwrap
from pathlib import Path

from afina.reporting.facts import Row, best_achievable, certainty, comparison, headline
from afina.reporting.words import spread_words
from afina.types import Measurement, Result
from afina.units import format_measurement

_WIDTH = 100


def summary(result: Result) -> str:
    """Plain text for a terminal: the verdict, the original beside the winner, the limits, where the file is."""
    lines = [result.verdict.upper(), *textwrap.wrap(headline(result), _WIDTH), ""]
    lines += _aligned([("", "original", result.winner, "change", "limit", ""), *map(_cells, comparison(result))])
    sure = textwrap.wrap(certainty(result), _WIDTH) if result.is_sure else []
    lines += ["", *sure, *_nearest(result), *(f"Note: {note}" for note in result.notes)]
    lines = [_plain(line).rstrip() for line in lines]
    if result.artifact:
        lines.append(f"File:   {Path(result.out) / result.artifact}")
        lines.append(f"Report: {Path(result.out) / 'report.html'}")
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    limit = met = ""
    if row.limit:
        drop = "drop " if row.limit.name == "max_drop" else ""
        limit = f"{drop}<= {row.limit.allowed}"
        met = row.limit.state.replace("missed", "MISSED")
    return (row.label, _number(row.original), _number(row.winner), row.change, limit, met)


def _number(measurement: Measurement | None) -> str:
    if measurement is None:
        return "not measured"
    return f"{format_measurement(measurement)} {spread_words(measurement)}".strip()


def _plain(text: str) -> str:
    """The text with signs such as `×` replaced by ASCII, which any terminal can print."""
    for sign, plain in (("×", "x"), ("−", "-"), ("±", "+-"), ("µ", "u")):
        text = text.replace(sign, plain)
    return text


def _nearest(result: Result) -> list[str]:
    if result.fits:
        return []
    rows = [
        f"Best achievable {label.lower()}: {value}{f' ({name})' if name else ''}"
        for label, value, name in best_achievable(result)
    ]
    return [*rows, ""] if rows else []


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
