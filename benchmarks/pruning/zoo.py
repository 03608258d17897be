"""Structured pruning of every torchvision classifier and of the smallest model of each timm module, stage by stage.

    python benchmarks/pruning/zoo.py --family all          # what has no row yet; a run that was stopped goes on
    python benchmarks/pruning/zoo.py --again torchvision:swin_t timm:levit_128s
    python benchmarks/pruning/zoo.py --table               # only docs/zoo.md, from the rows

Each model is studied (`study.py`) in a process of its own with a time limit, and leaves one JSON line in
`results/zoo.jsonl`; the last line of a model counts.
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import psutil
from models import choose
from study import STAGES, study
from table import write_table

RESULTS = Path(__file__).parent / "results"
ROWS = RESULTS / "zoo.jsonl"
_LOOK = 0.5  # seconds between looks at the memory of a process


def main() -> None:
    """Study the models that are asked for, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as torchvision:resnet18; all of the family where none is given")
    parser.add_argument("--family", choices=("torchvision", "timm", "all"), default="all")
    parser.add_argument("--again", action="store_true", help="also those that have a row")
    parser.add_argument("--failed", action="store_true", help="also those whose row is not all pass")
    parser.add_argument("--limit", type=float, default=300, help="seconds for a model")
    parser.add_argument("--memory", type=float, default=14, help="GB of resident memory for a model")
    parser.add_argument("--table", action="store_true", help="only write docs/zoo.md")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    chosen = choose(RESULTS / "zoo-models.json")
    if not options.table:
        done = rows()
        for name in options.names or sorted(chosen, key=lambda name: chosen[name]):
            skip = name in done and not options.again and not (options.failed and not passed(done[name]))
            if skip or options.family not in ("all", name.split(":")[0]):
                continue
            row = run(name, options.limit, options.memory * 1e9)
            with ROWS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(name, "pass" if passed(row) else row["stages"], f"{row['seconds']:.0f} s", flush=True)
    write_table(list(rows().values()), chosen)


def rows() -> dict[str, dict[str, Any]]:
    """The last row of each model."""
    lines = ROWS.read_text().splitlines() if ROWS.is_file() else []
    return {row["model"]: row for row in map(json.loads, lines)}


def passed(row: dict[str, Any]) -> bool:
    """Whether every stage passed."""
    return all(row["stages"].get(stage) == "pass" for stage in STAGES)


def run(name: str, limit: float, memory: float) -> dict[str, Any]:
    """The row of one model, from a process that is ended when its time is over or it takes too much memory."""
    start = time.monotonic()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["study"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_study, args=(name, sender))
    process.start()
    sender.close()
    row: dict[str, Any] = {"model": name, "stages": {}}
    ended, peak = "", 0
    try:
        # The row comes again after each stage, so that what was done is known when it is ended.
        while not ended:
            if receiver.poll(_LOOK):
                row = receiver.recv()
            peak = max(peak, _resident(process.pid))
            if time.monotonic() > start + limit:
                ended = f"fail: not done in {limit:.0f} s"
            elif peak > memory:
                ended = f"fail: it takes more than {memory / 1e9:.0f} GB of memory"
    except EOFError:
        ended = "fail: the process ended by itself"
    missing = [stage for stage in STAGES if stage not in row["stages"]]
    if missing and not any(text != "pass" for text in row["stages"].values()):
        row["stages"][missing[0]] = ended
    process.kill()
    process.join()
    row["seconds"], row["memory"] = round(time.monotonic() - start, 1), peak
    return row


def _resident(process: int | None) -> int:
    """Bytes of memory that a process takes now."""
    try:
        return int(psutil.Process(process).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _study(name: str, sender: Any) -> None:
    for row in study(name):
        sender.send(row)
    sender.close()


if __name__ == "__main__":
    main()
