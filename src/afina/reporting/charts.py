"""The report's charts as plain Plotly data: what is drawn, without colours of its own.

Colours are written as CSS variables (`var(--accent)`); the page puts in what its light or dark scheme says.
Texts that come from the user are escaped here, because Plotly reads a little HTML in them.
"""

import html
import math
import textwrap
from typing import Any

from afina.reporting.facts import pareto, quality_bound, quality_label
from afina.reporting.words import recipe_words, shortened, spread_words
from afina.types import Candidate, Measurement, Result
from afina.units import format_measurement, format_value

Chart = dict[str, Any]
# Beyond this ratio between the largest and the smallest cost, a linear axis hides the small ones.
_LOG_FROM = 4.0
_TICKS = (1, 2, 5)
_MOST_TICKS = 6
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_HOVER_WIDTH, _LABEL_WIDTH = 56, 28
_RIGHT_FROM = 0.6


def charts(result: Result) -> list[Chart]:
    """All charts that the result has data for: trade-offs first, then training curves.

    Each has an `id`, a `title`, a `description` (for those who cannot see it), `data` and `layout`.
    """
    drawn = [
        _tradeoff(result, "size", "Quality against size", "Size of the deployed file", result.budget.size),
        _tradeoff(result, "latency", "Quality against latency", "Latency", result.budget.latency),
        _curves(result, "loss", "Training loss", "Loss"),
        _curves(result, "quality", f"{quality_label(result)} while training", quality_label(result)),
    ]
    return [chart for chart in drawn if chart]


def _tradeoff(result: Result, cost: str, title: str, axis: str, limit: float | None) -> Chart | None:
    points = [c for c in result.candidates if c.status == "judged" and {cost, "quality"} <= c.measurements.keys()]
    points = [c for c in points if math.isfinite(_y(c)) and math.isfinite(_x(c, cost)) and _x(c, cost) > 0]
    if not points:
        return None
    unit = points[0].measurements[cost].unit
    xaxis = _cost_axis(axis, [_x(c, cost) for c in points] + ([limit] if limit else []), unit)
    front = pareto(((_x(c, cost), _y(c)) for c in points), result.metric.higher_is_better)
    # One role for each point: an original that wins is shown as the winner.
    roles = {c.name: "candidate" for c in points} | {result.original: "original"} | {result.winner: "winner"}
    traces = [
        _scatter(result, role, [c for c in points if roles[c.name] == role], cost, xaxis)
        for role in ("candidate", "original", "winner")
    ]
    return {
        "id": f"quality-{cost}",
        "title": title,
        "description": _describe(result, points, cost, title),
        "data": [{"type": "scatter", **trace} for trace in (_front(front), *traces) if trace["x"]],
        "layout": {
            "showlegend": False,
            "xaxis": xaxis,
            "yaxis": _quality_axis(result),
            **_limit_lines(result, limit, unit, xaxis),
        },
    }


def _front(front: list[tuple[float, float]]) -> Chart:
    return {
        "name": "Pareto front",
        "mode": "lines",
        "x": [x for x, _ in front],
        "y": [y for _, y in front],
        "line": {"color": "var(--muted)", "width": 1.5, "shape": "hv", "dash": "dot"},
        "hoverinfo": "skip",
    }


def _scatter(result: Result, role: str, points: list[Candidate], cost: str, xaxis: Chart) -> Chart:
    look: Chart = {
        "candidate": {"color": "var(--soft)", "size": 8, "symbol": "circle-open", "line": {"width": 1.5}},
        "original": {"color": "var(--ink)", "size": 11, "symbol": "square"},
        "winner": {"color": "var(--accent)", "size": 16, "symbol": "star"},
    }[role]
    # The front leaves a point of its own by the other two corners.
    corner = "bottom" if result.metric.higher_is_better else "top"
    sides = ["left" if _is_right(_x(c, cost), xaxis) else "right" for c in points]
    return {
        "name": role.capitalize(),
        "mode": "markers" if role == "candidate" else "markers+text",
        "x": [_x(c, cost) for c in points],
        "y": [_y(c) for c in points],
        "marker": look,
        "error_x": _errors([c.measurements[cost] for c in points], look["color"]),
        "error_y": _errors([c.measurements["quality"] for c in points], look["color"]),
        "customdata": [_hover(result, c) for c in points],
        "hovertemplate": "%{customdata}<extra></extra>",
        "text": [html.escape(shortened(c.name, _LABEL_WIDTH)) for c in points],
        "textfont": {"color": look["color"], "size": 12},
        "textposition": [f"{corner} {side}" for side in sides],
    }


def _errors(measurements: list[Measurement], color: str) -> Chart:
    spreads = [m.spread if m.spread is not None and math.isfinite(m.spread) else 0 for m in measurements]
    return {"type": "data", "array": spreads, "visible": any(spreads), "color": color, "thickness": 1, "width": 3}


def _hover(result: Result, candidate: Candidate) -> str:
    """Name, numbers with their spread, and the recipe, in the little HTML that Plotly reads."""
    lines = [f"<b>{html.escape(shortened(candidate.name, _HOVER_WIDTH))}</b>"]
    for key, label in (("quality", quality_label(result)), ("size", "Size"), ("latency", "Latency")):
        if measurement := candidate.measurements.get(key):
            value = f"{format_measurement(measurement)} {spread_words(measurement)}".strip()
            lines.append(f"{html.escape(label)}: {value}")
    recipe = textwrap.wrap(recipe_words(candidate.recipe, 3), _HOVER_WIDTH, max_lines=4, placeholder=" …")
    return "<br>".join([*lines, *(f"<i>{html.escape(line)}</i>" for line in recipe)])


def _limit_lines(result: Result, limit: float | None, unit: str, xaxis: Chart) -> Chart:
    """The budget as lines across the plot, each with its value beside it."""
    line = {"type": "line", "line": {"color": "var(--limit)", "width": 1.25, "dash": "dash"}}
    note = {"showarrow": False, "yanchor": "top", "font": {"color": "var(--limit)", "size": 11}}
    shapes: list[Chart] = []
    notes: list[Chart] = []
    if limit is not None:
        shapes.append({**line, "xref": "x", "yref": "paper", "x0": limit, "x1": limit, "y0": 0, "y1": 1})
        side = "right" if _is_right(limit, xaxis) else "left"
        text = f"≤ {format_value(limit, unit)}"
        notes.append({**note, "xref": "x", "yref": "paper", "x": limit, "y": 1, "xanchor": side, "text": text})
    bound = quality_bound(result)
    if bound is not None:
        shapes.append({**line, "xref": "paper", "yref": "y", "x0": 0, "x1": 1, "y0": bound, "y1": bound})
        value = format_value(bound, result.metric.name, share=result.metric.share)
        text = f"{'≥' if result.metric.higher_is_better else '≤'} {value}"
        notes.append({**note, "xref": "paper", "yref": "y", "x": 1, "y": bound, "xanchor": "right", "text": text})
    return {"shapes": shapes, "annotations": notes}


def _is_right(value: float, xaxis: Chart) -> bool:
    """Whether a value lies in the right part of an axis, so that a text beside it has to go to its left."""
    low, high = xaxis["range"]
    place = math.log10(value) if xaxis["type"] == "log" else value
    return bool((place - low) / (high - low) > _RIGHT_FROM)


def _cost_axis(title: str, values: list[float], unit: str) -> Chart:
    """An axis with ticks at 1, 2 and 5 times powers of ten, written in the unit's own words."""
    low, high = min(values), max(values)
    logarithmic = high / low > _LOG_FROM
    axis: Chart = {"title": {"text": title}, "type": "log" if logarithmic else "linear"}
    if logarithmic:
        ticks = _log_ticks(low / 1.4, high * 1.4)
        return {**axis, "range": [math.log10(low / 1.4), math.log10(high * 1.4)], **_tick_words(ticks, unit)}
    margin = 0.12 * (high - low) or 0.2 * high
    low, high = max(0.0, low - margin), high + margin
    return {**axis, "range": [low, high], **_tick_words(_linear_ticks(low, high), unit)}


def _tick_words(ticks: list[float], unit: str) -> Chart:
    return {"tickvals": ticks, "ticktext": [format_value(tick, unit) for tick in ticks]}


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in (_TICKS, (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= _MOST_TICKS:
            break
    return inside


def _linear_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / (_MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (*_TICKS, 10) if factor * power >= rough)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _quality_axis(result: Result) -> Chart:
    axis: Chart = {"title": {"text": quality_label(result)}}
    return {**axis, "tickformat": ".4~p"} if result.metric.share else axis


def _curves(result: Result, field: str, title: str, axis: str) -> Chart | None:
    """One line for each candidate that was trained; the winner in the accent colour."""
    trained = [c for c in result.candidates if c.curve]
    if not trained:
        return None
    traces = []
    for index, candidate in enumerate(trained):
        chosen = candidate.name == result.winner
        color = "accent" if chosen else "ink" if candidate.name == result.original else "muted"
        traces.append(
            {
                "type": "scatter",
                "name": html.escape(shortened(candidate.name, 40)),
                "mode": "lines+markers" if len(candidate.curve) < 30 else "lines",
                "x": [epoch.epoch for epoch in candidate.curve],
                "y": [_finite(getattr(epoch, field)) for epoch in candidate.curve],
                "line": {
                    "color": f"var(--{color})",
                    "width": 2.25 if chosen else 1.5,
                    "dash": "solid" if chosen else _DASHES[index % len(_DASHES)],
                },
                "marker": {"size": 5},
            }
        )
    yaxis: Chart = {"title": {"text": axis}}
    if field == "quality":
        yaxis = _quality_axis(result)
    last = ", ".join(f"{c.name} ends at {getattr(c.curve[-1], field):.4g} after {len(c.curve)} epochs" for c in trained)
    return {
        "id": f"curve-{field}",
        "title": title,
        "description": f"{title}, epoch by epoch: {last}.",
        "data": traces,
        "layout": {"xaxis": {"title": {"text": "Epoch"}, "tickformat": "d"}, "yaxis": yaxis},
    }


def _describe(result: Result, points: list[Candidate], cost: str, title: str) -> str:
    def one(candidate: Candidate) -> str:
        x, y = candidate.measurements[cost], candidate.measurements["quality"]
        return f"{candidate.name} {format_measurement(y)} at {format_measurement(x)}"

    marked = [one(c) for c in points if c.name in (result.original, result.winner)]
    return f"{title} of {len(points)} candidates. {'; '.join(marked)}. All values are in the table of candidates."


def _x(candidate: Candidate, cost: str) -> float:
    return candidate.measurements[cost].value


def _y(candidate: Candidate) -> float:
    return candidate.measurements["quality"].value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
