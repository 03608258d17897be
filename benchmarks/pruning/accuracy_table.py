"""`results/accuracy.md` from the rows of the accuracy benchmark."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

OURS = "afina fit"
_HEAD = """# Accuracy at the same cost

Made by `python benchmarks/pruning/accuracy.py SHARED` from the rows in `accuracy.jsonl`. Accuracy on the 10,000 test
images of CIFAR-10 as JPEG; a peer that is more than 5 points below Afina on the first 2,000 of them is left at those
(marked ~). Peers are given the MACs that Afina is given (where they differ by more than 2% of it, they are told).
`global` ranks the channels of all layers together; `inner` spares the residual stream; with `norms`, the
statistics of batch norm are taken anew on 1,024 training images, which Torch-Pruning itself does not do.
"""
_TITLES = {
    "prune": "## Pruned, without any training\n\nBy the share of the MACs that is left.",
    "finetune": "## Pruned, after one epoch\n\nThe same training for all: one epoch at a learning rate of 0.05, "
    "which is what `--finetune 1` does, taught by the original. "
    "Peers: the two importances that are best without training.",
    "finetune-gently": "## Pruned, after one epoch at a learning rate of 0.01",
    "sparsify": "## Single weights, without any training\n\nBy the share of the weights that is zero.",
    "latency": "## Real time\n\nOne image on one thread, float32: time of what Afina pruned to each share of the MACs, "
    "as a share of the original's, which takes turns with it. Axes of 96 channels and more keep a multiple of 8; with "
    "`multiple 8` all axes do.",
}


def write_table(page: Path, rows: Mapping[str, Row]) -> None:
    """Write the page."""
    lines = [_HEAD]
    for part, title in _TITLES.items():
        own = [row for name, row in rows.items() if name.startswith(f"{part}/")]
        if own:
            lines += [title, "", *([summary(own), ""] if part != "latency" else [])]
            lines += _latencies(own) if part == "latency" else _accuracies(own)
    newest = max(rows.values(), key=lambda row: row["date"])
    versions = ", ".join(f"{name} {version}" for name, version in newest["versions"].items())
    lines += [f"{newest['machine']}; {versions}; {newest['date']}."]
    page.write_text("\n".join(lines) + "\n")


def summary(rows: Iterable[Row]) -> str:
    """Where Afina is not the best, in words."""
    cases: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        _, network, target, method = row["name"].split("/")
        if "accuracy" in row and (method == OURS or not method.startswith(OURS)):
            cases.setdefault((network, target), {})[method] = row["accuracy"]
    cases = {case: found for case, found in cases.items() if OURS in found and len(found) > 1}
    won = sum(all(quality <= found[OURS] for quality in found.values()) for found in cases.values())
    below = [
        f"- {network} at {target}: {method} has {quality:.2%}, Afina {found[OURS]:.2%}"
        for (network, target), found in cases.items()
        for method, quality in found.items()
        if quality > found[OURS]
    ]
    told = f"In {won} of {len(cases)} cases no peer is above Afina."
    return "\n".join([told, *([""] if below else []), *below])


def _accuracies(rows: list[Row]) -> list[str]:
    """A table for each network."""
    lines = []
    networks = dict.fromkeys(row["name"].split("/")[1] for row in rows)
    for network in networks:
        own = {tuple(row["name"].split("/")[2:]): row for row in rows if row["name"].split("/")[1] == network}
        targets = sorted({target for target, _ in own}, key=_order)
        methods = sorted({method for _, method in own}, key=lambda name: (not name.startswith(OURS), name))
        whole = next(row["original"] for row in own.values() if "original" in row)
        lines += [f"### {network} ({whole:.2%} whole)", "", f"| method | {' | '.join(map(_percent, targets))} |"]
        lines += ["| --- " * (len(targets) + 1) + "|"]
        lines += [
            f"| {method} | {' | '.join(_cell(own.get((target, method)), target) for target in targets)} |"
            for method in methods
        ]
        lines += [""]
    return lines


def _cell(row: Row | None, target: str) -> str:
    if row is None:
        return ""
    if "failed" in row:
        return "fails"
    about = "~" if row["images"] <= 2000 else ""
    text = f"{about}{row['accuracy']:.2%}"
    if "before" in row:
        text = f"{row['before']:.2%} to {text}"
    if row["zeros"] < 0.01 and abs(row["macs"] / float(target) - 1) > 0.02:
        text += f" ({row['macs']:.1%} of the MACs)"
    return text


def _latencies(rows: list[Row]) -> list[str]:
    targets = [target for target in rows[0]["ratio"] if target != "whole"]
    lines = [f"| network | runtime | original | {' | '.join(map(_percent, targets))} |"]
    lines += ["| --- " * (len(targets) + 3) + "|"]
    for row in sorted(rows, key=lambda row: row["name"]):
        _, network, _, runtime = row["name"].split("/")
        cells = [f"{row['ratio'][target]:.2f}" for target in targets]
        lines += [f"| {network} | {runtime} | {row['latency']['whole'] * 1e3:.2f} ms | {' | '.join(cells)} |"]
    return [*lines, ""]


def _order(target: str) -> tuple[bool, float]:
    """Shares from the largest, patterns last."""
    pattern = ":" in target
    return pattern, 0.0 if pattern else -float(target)


def _percent(target: str) -> str:
    return target if ":" in target else f"{float(target):.0%}"
