"""`results/tables.md` from the rows: `python benchmarks/factorization/table.py`."""

from rows import NAMES, PAGE, SHARES, Row, Rows, made

_HEAD = """# Decomposition without training, beside plain decompositions

Made by `python benchmarks/factorization/table.py` from the rows beside it. Accuracy on the 10,000 test images of
CIFAR-10 as JPEG by the share of the network's parameters that is left; a peer that is more than 5 points below Afina
on the first 2,000 of them is left at those (marked ~). Afina rests on 1,024 training images without their labels.
Peers decompose each weight by `tensorly` without images, and leave the first layer and the classifier whole. Every
layer keeps the same share of its parameters; with `energy`, of its spectrum's energy, for all layers together the
same. With `norms`, the statistics of batch norm are taken anew on 1,024 training images.
"""

_ALL = 10_000


def main() -> None:
    """Write the page."""
    rows = Rows().found
    lines = [_HEAD]
    for network in NAMES:
        own = {name.split("/", 1)[1]: row for name, row in rows.items() if name.startswith(f"{network}/")}
        if own:
            original = next((row["original"] for row in own.values() if "original" in row), 0.0)
            lines += [f"## {network} ({original:.2%} whole)", "", *_grid(own), ""]
    PAGE.write_text("\n".join([*lines, made(rows.values()), ""]))
    print(f"written: {PAGE}")


def _grid(rows: dict[str, Row]) -> list[str]:
    """Methods by shares; Afina's lines first."""
    columns = [f"{float(share):.0%}" for share in SHARES]
    lines = [f"| {' | '.join(['method', *columns])} |", "| --- " * (len(columns) + 1) + "|"]
    methods = sorted({name.split("/")[1] for name in rows}, key=lambda name: (not name.startswith("afina"), name))
    for method in methods:
        cells = [_cell(rows.get(f"{share}/{method}")) for share in SHARES]
        lines.append(f"| {' | '.join([method, *cells])} |")
    return lines


def _cell(row: Row | None) -> str:
    if row is None or "failed" in row:
        return "" if row is None else "fails"
    sampled = "~" if row.get("images", _ALL) < _ALL else ""
    return f"{sampled}{row['accuracy']:.2%}"


if __name__ == "__main__":
    main()
