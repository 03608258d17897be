"""The table of `results/runs.jsonl`: `python benchmarks/search/table.py [FILE] > benchmarks/search/results/table.md`.

Score of a run: (best - minimum) / (median of random's best - minimum), at the same number of trials. Only seeds that
all methods of a table have are counted, so that runs are paired; wins count ties as half, and p is of Wilcoxon's
signed-rank test on the logarithms of the scores.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from run import RESULTS, read
from scipy.stats import rankdata, wilcoxon

OURS = "tensor-train"
_TINY = 1e-9


def main() -> None:
    """Print the tables in Markdown."""
    rows = read(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "runs.jsonl")
    for budget in ("50", "100", "200", "500"):
        for group, label in (("plain", "unrotated"), ("rotated", "rotated"), ("digits", "real tables")):
            chosen = [r for r in rows if group in r["task"] and budget in r["best"]]
            if any(r["method"] == OURS for r in chosen):
                _print(chosen, budget, label)


def _print(rows: list[dict[str, Any]], budget: str, label: str) -> None:
    scores, kinds = _scores(rows, budget)
    methods = sorted({m for s in scores.values() for m in s})
    whole = {k: s for k, s in scores.items() if OURS in s}
    print(f"\n## {label}, {budget} trials\n")
    print("| method | runs beside ours | mean score | its rank | ours wins | p | s / trial |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for method in methods:
        paired = [(s[method], s[OURS]) for s in whole.values() if method in s]
        if not paired:
            continue
        theirs, ours = np.array(paired).T
        every = [s for s in whole.values() if method in s]
        rank = np.mean([rankdata(list(s.values()))[list(s).index(method)] for s in every])
        wins = np.mean((ours < theirs) + 0.5 * (ours == theirs)) if method != OURS else np.nan
        gap = np.log(ours + _TINY) - np.log(theirs + _TINY)
        p = wilcoxon(gap).pvalue if method != OURS and gap.any() else np.nan
        seconds = np.mean([r["seconds"] / r["trials"] for r in rows if r["method"] == method])
        print(
            f"| {method} | {len(paired)} | {theirs.mean():.4f} | {rank:.2f} | "
            + (f"{100 * wins:.0f}% | {p:.2g}" if method != OURS else "| ")
            + f" | {seconds:.3f} |"
        )
    tasks = sorted({k[0] for k in whole}, key=lambda t: (kinds[t], t))
    print(f"\n| task | {' | '.join(methods)} |\n| --- |{' --- |' * len(methods)}")
    for task in tasks:
        cells = []
        for method in methods:
            found = [s[method] for k, s in whole.items() if k[0] == task and method in s]
            cells.append(f"{np.mean(found):.4f}" if found else "")
        best = min((float(c) for c in cells if c), default=0.0)
        print(f"| {task} | {' | '.join(f'**{c}**' if c and float(c) == best else c for c in cells)} |")


def _scores(rows: list[dict[str, Any]], budget: str) -> tuple[dict[Any, dict[str, float]], dict[str, str]]:
    """Scores by (task, seed) and method."""
    random = defaultdict(list)
    for r in rows:
        if r["method"] == "random":
            random[r["task"]].append(r["best"][budget] - r["minimum"])
    scores: dict[Any, dict[str, float]] = defaultdict(dict)
    for r in rows:
        scale = float(np.median(random[r["task"]])) if random[r["task"]] else 1.0
        scores[r["task"], r["seed"]][r["method"]] = (r["best"][budget] - r["minimum"]) / max(scale, _TINY)
    return scores, {r["task"]: r["task"].partition("/")[2] for r in rows}


if __name__ == "__main__":
    main()
