"""The HTML report: one file that opens offline and asks nothing of the network."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.reporting.charts import charts
from afina.reporting.details import detail_table
from afina.reporting.facts import (
    MEASURES,
    best_achievable,
    certainty,
    comparison,
    exceeded,
    headline,
    limits,
    quality_label,
    title,
)
from afina.reporting.labels import label_columns, label_rows
from afina.reporting.layers import layer_table
from afina.reporting.words import (
    flat,
    input_words,
    provenance,
    recipe_words,
    spread_words,
    step_words,
)
from afina.store.files import write
from afina.types import Candidate, Measurement, Record, Result
from afina.units import format_count, format_measurement, format_size, format_time

# With more classes than this, they are folded away.
_MOST_LABELS = 12


@dataclass(frozen=True)
class Number:
    """A measurement as a table shows it."""

    value: float | None
    text: str
    spread: str = ""
    source: str = ""
    over: bool = False


@dataclass(frozen=True)
class Work:
    """What one technique did, in words."""

    step: str
    touched: tuple[str, ...]
    skipped: dict[str, str]
    change: str
    seconds: str
    notes: tuple[str, ...]


def write_html(result: Result, path: Path, *, log: str = "") -> Path:
    """Write the report as one HTML page with everything inside it.

    Args:
        result: The outcome of a run.
        path: The file to write, whole or not at all.
        log: The run's log, folded away at the end; empty for none.

    Raises:
        StorageError: it cannot be written.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("afina", "reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(_content(result), log=log, plotly=get_plotlyjs())
    write(Path(path), page.encode("utf-8", "replace"))
    return Path(path)


def _content(result: Result) -> dict[str, Any]:
    winner, drawn = result.candidate(result.winner), charts(result)
    return {
        "result": result,
        "title": title(result),
        "headline": headline(result),
        "certainty": certainty(result),
        "unsure": not result.is_sure,
        "limits": limits(result),
        "rows": [(row, _number(row.original), _number(row.winner)) for row in comparison(result)],
        "achievable": best_achievable(result),
        "tradeoffs": [chart for chart in drawn if chart["id"].startswith("quality-")],
        "curves": [chart for chart in drawn if chart["id"].startswith("curve-")],
        "charts": drawn,
        "columns": [
            (measure, quality_label(result) if measure.key == "quality" else measure.label) for measure in MEASURES
        ],
        "candidates": [
            (c, recipe_words(c.recipe, 2), recipe_words(c.recipe), _numbers(result, c)) for c in result.candidates
        ],
        "layers": layer_table(result),
        "details": detail_table(result),
        "label_rows": label_rows(result),
        "label_columns": label_columns(result),
        "winner": winner,
        "works": [_work(record) for record in winner.records],
        "recipe": [step_words(step) for step in winner.recipe],
        "preprocessing": input_words(result.input),
        "labels": result.task.labels,
        "most_labels": _MOST_LABELS,
        "machine": flat(result.machine),
        "sources": _sources(result.candidates),
    }


def _numbers(result: Result, candidate: Candidate) -> list[Number]:
    over = exceeded(result, candidate)
    return [_number(candidate.measurements.get(measure.key), measure.key in over) for measure in MEASURES]


def _number(measurement: Measurement | None, over: bool = False) -> Number:
    if measurement is None:
        return Number(None, "–")
    text = format_measurement(measurement)
    spread = spread_words(measurement).removesuffix(" points").removesuffix(" point")
    return Number(measurement.value, text, spread, provenance(measurement), over)


def _sources(candidates: Iterable[Candidate]) -> list[tuple[str, str]]:
    """For each measurement, all the ways in which the candidates' numbers were obtained, each once."""
    rows = []
    for measure in MEASURES:
        measurements = [c.measurements[measure.key] for c in candidates if measure.key in c.measurements]
        ways = dict.fromkeys((m.how, m.n, m.where, m.unit, m.spread is not None) for m in measurements)
        descriptions = []
        for how, n, where, unit, spread in ways:
            kind = "half the interquartile range" if unit == "s" else "one standard error"
            parts = [how, where, f"n = {n}" if n is not None else "", f"± is {kind}" if spread else ""]
            descriptions.append("; ".join(part for part in parts if part))
        if descriptions:
            rows.append((measure.label, " / ".join(descriptions)))
    return rows


def _work(record: Record) -> Work:
    words = {"parameters": ("parameters", format_count), "macs": ("MACs", format_count), "bytes": ("", format_size)}
    changes = [
        f"{form(record.before[key])} → {form(record.after[key])} {label}".strip()
        for key, (label, form) in words.items()
        if key in record.before and key in record.after
    ]
    return Work(
        step_words(record.step),
        record.touched,
        record.skipped,
        ", ".join(changes),
        format_time(record.seconds),
        record.notes,
    )
