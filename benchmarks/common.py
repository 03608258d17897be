"""What the benchmarks share: where results go, and what is kept beside every number."""

import json
import time
from pathlib import Path
from typing import Any

from afina.jobs.machine import available_cores, describe_machine
from afina.types import Result

RESULTS = Path(__file__).with_name("results")


def keep(name: str, values: dict[str, Any]) -> Path:
    """Write `values` with the machine, the versions and the date; gives the file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    about = {"date": time.strftime("%Y-%m-%d"), "machine": describe_machine(available_cores())}
    path.write_text(json.dumps({**values, **about}, indent=2) + "\n")
    print(f"kept in {path}")
    return path


def brief(result: Result, seconds: float) -> dict[str, Any]:
    """A result without its tables: verdict, and the measurements of every candidate."""
    original, winner = result.candidate(result.original), result.candidate(result.winner)
    return {
        "verdict": result.verdict,
        "budget": {k: v for k, v in vars(result.budget).items() if v is not None},
        "winner": result.winner,
        "drop": result.drop,
        "seconds": round(seconds),
        "size_ratio": original.measurements["size"].value / winner.measurements["size"].value,
        "speedup": original.measurements["latency"].value / winner.measurements["latency"].value,
        "candidates": {
            c.name: {key: m.value for key, m in c.measurements.items()}
            if c.status == "judged"
            else {"rejected": c.reason}
            for c in result.candidates
        },
    }
