"""`docs/zoo.md` from the rows of the zoo."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from study import STAGES

_PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
_HEAD = """# The zoo: which models can be pruned

Every torchvision classifier, and the smallest model of each timm module that has one under 40 million parameters,
with random weights at its own input size. Each is captured, its axes are found, about half of its parameters are
removed (one share of every free axis), and the result is run on 1 and 3 images, compared with the original in which
the same units are masked, trained for one step, saved and loaded, and run by ONNX Runtime. Made by
`python benchmarks/pruning/zoo.py`; times are processor seconds on one core.

"""


def write_table(rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, int]) -> None:
    """Write the page."""
    by_name = {row["model"]: row for row in rows}
    lines = [_HEAD + summary(rows, chosen), ""]
    for family in ("torchvision", "timm"):
        names = sorted(name for name in chosen if name.startswith(family))
        lines += [
            f"## {family}",
            "",
            f"| model | million parameters | GMACs | {' | '.join(STAGES)} | analysis, surgery |",
        ]
        lines.append("| --- " * (len(STAGES) + 4) + "|")
        lines += [_line(name, by_name.get(name)) for name in names]
        lines.append("")
    reasons = [
        f"- `{name}`, {stage}: {text}"
        for name in sorted(chosen)
        for stage, text in by_name.get(name, {"stages": {}})["stages"].items()
        if text != "pass"
    ]
    lines += ["## What does not pass, and why", "", *(reasons or ["Nothing."]), ""]
    unknown = [f"- `{name}`: {op}: {why}" for name in sorted(chosen) for op, why in _unknown(by_name.get(name))]
    lines += ["## Ops that were not understood (what reaches them stays whole)", "", *(unknown or ["None."])]
    _PAGE.write_text("\n".join(" ".join(line.split()) if line.startswith("-") else line for line in lines) + "\n")


def summary(rows: Sequence[Mapping[str, Any]], chosen: Mapping[str, int]) -> str:
    """How many pass, in words."""
    parts = []
    for family in ("torchvision", "timm"):
        own = [row for row in rows if row["model"].startswith(family) and row["model"] in chosen]
        good = sum(all(row["stages"].get(stage) == "pass" for stage in STAGES) for row in own)
        total = sum(name.startswith(family) for name in chosen)
        parts.append(f"{good} of {total} {family} models pass every stage ({len(own)} studied).")
    times = sorted(row["took"]["analyse"] + row["surgery"] for row in rows if "surgery" in row)
    if times:
        fast = sum(seconds < 10 for seconds in times) / len(times)
        parts.append(f"Analysis and surgery take under 10 s for {fast:.0%} of them, at most {times[-1]:.1f} s.")
    return " ".join(parts)


def _line(name: str, row: Mapping[str, Any] | None) -> str:
    short = name.partition(":")[2]
    if row is None:
        return f"| {short} |" + " |" * (len(STAGES) + 3)
    cells = [str(row["stages"].get(stage, "")).partition(":")[0] for stage in STAGES]
    before, after = row.get("before"), row.get("after")
    size = [
        f"{before[key] / unit:.2f} to {after[key] / unit:.2f}" if before and after else ""
        for key, unit in (("parameters", 1e6), ("macs", 1e9))
    ]
    seconds = f"{row['took']['analyse']:.1f} s, {row['surgery']:.1f} s" if "surgery" in row else ""
    return f"| {short} | {' | '.join(size)} | {' | '.join(cells)} | {seconds} |"


def _unknown(row: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for op, why in (row or {}).get("unknown", {}).items():
        found.setdefault(op.partition(" (")[0], why)
    return list(found.items())
