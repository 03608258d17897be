"""The per-layer table: the winner's layers beside the original's."""

from collections.abc import Callable
from dataclasses import dataclass

from afina.types import LayerRow, Result
from afina.units import format_count, format_size


@dataclass(frozen=True)
class Amount:
    """A number of the winner beside that of the original, and how long their bars are (in % of the longest)."""

    value: int
    text: str
    before: str
    bar: float
    bar_before: float


@dataclass(frozen=True)
class Layer:
    """One line of the table; `status` is empty, `new` (not in the original) or `gone` (not in the winner)."""

    name: str
    kind: str
    status: str
    output: str
    output_before: str
    kept: str
    share: float | None
    precision: str
    precision_before: str
    macs: Amount
    bytes: Amount


def layer_table(result: Result) -> tuple[Layer, ...]:
    """The winner's layers in their order, each beside the original's of that name; then those that are gone."""
    original = {row.name: row for row in result.candidate(result.original).layers}
    winner = {row.name: row for row in result.candidate(result.winner).layers}
    names = [*winner, *(name for name in original if name not in winner)] if winner else []
    rows = [*original.values(), *winner.values()]
    most_macs, most_bytes = max((r.macs for r in rows), default=0), max((r.bytes for r in rows), default=0)
    return tuple(_layer(original.get(name), winner.get(name), most_macs, most_bytes) for name in names)


def _layer(before: LayerRow | None, after: LayerRow | None, most_macs: int, most_bytes: int) -> Layer:
    row = after or before
    assert row is not None
    kept = after.kept if after else None
    return Layer(
        name=row.name,
        kind=row.kind,
        status="" if before and after else "new" if after else "gone",
        output=_shape(after) if after else "",
        output_before=_shape(before) if before and (not after or before.output != after.output) else "",
        kept=f"{kept[0]} of {kept[1]}" if kept else "",
        share=kept[0] / kept[1] if kept and kept[1] else None,
        precision=after.precision if after else "",
        precision_before=before.precision if before and (not after or before.precision != after.precision) else "",
        macs=_amount(before.macs if before else None, after.macs if after else None, most_macs, format_count),
        bytes=_amount(before.bytes if before else None, after.bytes if after else None, most_bytes, format_size),
    )


def _amount(before: int | None, after: int | None, most: int, words: Callable[[float], str]) -> Amount:
    return Amount(
        value=after or 0,
        text=words(after) if after is not None else "",
        before=words(before) if before is not None and before != after else "",
        bar=100 * (after or 0) / most if most else 0.0,
        bar_before=100 * (before or 0) / most if most else 0.0,
    )


def _shape(row: LayerRow) -> str:
    return "×".join(str(size) for size in row.output)
