"""Sensitivities for people: a text table, a CSV file, a page with a plot."""

import csv
import html
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from afina.store.files import write
from afina.types import Sensitivity

_TITLES = {"axis": "Units of an axis gone", "layer": "Weights of a layer zero"}
_SMALLEST = 1e-9


def sensitivity_text(rows: Sequence[Sensitivity]) -> str:
    """The rows as a table: share of the outputs' variance that is lost, at each share that is gone."""
    shares = _shares(rows)
    width = max((len(row.name) for row in rows), default=4)
    heads = " ".join(f"{f'-{share:.0%}':>8}" for share in shares)
    lines = [f"{'axis or layer':{max(width, 13)}}  {'kind':10} {'size':>8} {heads}"]
    for row in rows:
        cells = " ".join(f"{value:8.2%}" if value < 10 else f"{value:8.1f}" for value in row.measured)
        lines.append(f"{row.name:{max(width, 13)}}  {row.kind:10} {row.size:>8} {cells}")
    lines.append("(mean squared change of the outputs, as a share of what they vary over the images)")
    return "\n".join(lines)


def write_sensitivity_csv(rows: Sequence[Sensitivity], path: Path) -> Path:
    """One line for each axis or layer and share that is gone.

    Raises:
        StorageError: it cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["name", "kind", "size", "gone", "share_gone", "loss", "layers", "readers"])
    for row in rows:
        for gone, loss in zip(row.gone, row.measured, strict=True):
            cells = [row.name, row.kind, row.size, gone, f"{gone / row.size:.4f}", f"{loss:.6g}"]
            table.writerow([*cells, " ".join(row.layers), " ".join(row.readers)])
    write(path, text.getvalue().encode())
    return path


def write_sensitivity_html(rows: Sequence[Sensitivity], path: Path, title: str) -> Path:
    """One page that opens offline: loss against the share that is gone, one line for each axis and each layer.

    Raises:
        StorageError: it cannot be written.
    """
    import plotly.graph_objects as graph
    from plotly.subplots import make_subplots

    parts = {"axis": [r for r in rows if r.kind != "weights"], "layer": [r for r in rows if r.kind == "weights"]}
    shown = {kind: kind_rows for kind, kind_rows in parts.items() if kind_rows}
    figure = make_subplots(rows=len(shown), cols=1, subplot_titles=[_TITLES[kind] for kind in shown])
    for place, (kind, kind_rows) in enumerate(shown.items(), start=1):
        for trace in _traces(kind_rows):
            figure.add_trace(graph.Scatter(**trace, legendgroup=kind), row=place, col=1)
    figure.update_yaxes(type="log", title_text="Loss of the outputs", tickformat=".2~p")
    figure.update_xaxes(title_text="Share gone", tickformat=".0%")
    figure.update_layout(title=html.escape(title), template="plotly_white", height=480 * max(len(shown), 1))
    page = figure.to_html(include_plotlyjs=True, full_html=True, default_width="100%")
    write(path, page.encode("utf-8", "replace"))
    return path


def _traces(rows: Sequence[Sensitivity]) -> Iterator[dict[str, Any]]:
    """One line of the plot for each row, the most sensitive first."""
    for row in sorted(rows, key=lambda row: -max(row.measured, default=0.0)):
        yield {
            "x": [gone / row.size for gone in row.gone],
            "y": [max(value, _SMALLEST) for value in row.measured],
            "name": html.escape(row.name),
            "mode": "lines+markers",
            "hovertext": [f"{html.escape(row.name)}: {gone} of {row.size} {row.kind}" for gone in row.gone],
        }


def _shares(rows: Sequence[Sensitivity]) -> list[float]:
    """The shares of the row that shows most of them: small axes may have fewer."""
    longest = max(rows, key=lambda row: (len(row.gone), row.size), default=None)
    return [] if longest is None else [gone / longest.size for gone in longest.gone]
