"""The quality label by label, where the task says it: the original's figures beside the winner's."""

import math
from dataclasses import dataclass

from afina.reporting.words import metric_words
from afina.types import LabelTable, MetricInfo, Result
from afina.units import format_value

_MOST = 100  # rows: of a thousand classes, those that lost most are what a reader looks for


@dataclass(frozen=True)
class LabelRow:
    """One label.

    Attributes:
        label: Its name.
        cells: For each column the winner's value, that as text, and the original's as text (empty where not known).
    """

    label: str
    cells: tuple[tuple[float | None, str, str], ...]


def label_columns(result: Result) -> tuple[str, ...]:
    """The titles of the columns; none where the task says nothing of single labels."""
    table = _table(result, result.winner)
    titles = [metric_words(column) for column in table.columns] if table else []
    return tuple(title[:1].upper() + title[1:] for title in titles)


def label_rows(result: Result) -> tuple[LabelRow, ...]:
    """The labels that lost most first, at most a hundred of them."""
    after, before = _table(result, result.winner), _table(result, result.original)
    if after is None:
        return ()
    earlier = before.rows if before is not None and before.columns == after.columns else {}
    rows = []
    for label, values in after.rows.items():
        was = earlier.get(label, (None,) * len(values))
        lost = _lost(after.columns[0], was[0], values[0])
        cells = tuple(
            (value, _text(column, value), _text(column, old) if old is not None else "")
            for column, value, old in zip(after.columns, values, was, strict=True)
        )
        rows.append((-lost, LabelRow(label, cells)))
    return tuple(row for _, row in sorted(rows, key=lambda row: row[0])[:_MOST])


def _lost(column: MetricInfo, before: float | None, after: float | None) -> float:
    lost = 0.0 if before is None or after is None else column.lost(before, after)
    return lost if math.isfinite(lost) else 0.0


def _table(result: Result, name: str) -> LabelTable | None:
    """The figures on the images that judged: those of the test split, where there is one."""
    measured = result.candidate(name).measurements
    quality = measured.get("test_quality", measured.get("quality"))
    return None if quality is None else quality.by_label


def _text(column: MetricInfo, value: float | None) -> str:
    return "–" if value is None else format_value(value, column.name, share=column.share)
