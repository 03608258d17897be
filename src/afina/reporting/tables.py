"""What machines read of a run: `candidates.csv` and the artifact's `metadata.json`."""

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from afina.reporting.facts import MEASURES
from afina.reporting.words import input_words, metric_words
from afina.store.files import write
from afina.store.result import to_plain
from afina.types import Candidate, Result

_FIELDS = ("value", "unit", "spread", "n", "how")


def write_csv(result: Result, path: Path) -> Path:
    """One row for each candidate; `recipe` is JSON, and each measurement has five columns (`size_value`, ...)."""
    columns = [f"{measure.key}_{field}" for measure in MEASURES for field in _FIELDS]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["name", "status", "reason", "recipe", "file", *columns])
    for candidate in result.candidates:
        recipe = json.dumps(to_plain(candidate.recipe), ensure_ascii=False)
        writer.writerow(
            [candidate.name, candidate.status, candidate.reason, recipe, candidate.file or "", *_numbers(candidate)]
        )
    write(Path(path), stream.getvalue().encode())
    return Path(path)


def write_metadata(result: Result, path: Path) -> Path:
    """What someone who has only the artifact needs: how to preprocess, what the outputs mean, where it comes from."""
    winner = result.candidate(result.winner)
    content = {
        "schema": "afina/artifact/1",
        "file": Path(result.artifact).name,
        "runtime": result.runtime,
        "model": result.model,
        "data": result.data,
        "input": {
            **asdict(result.input),
            "layout": "NCHW",
            "dtype": "float32",
            "scale": 1 / 255,
            "steps": input_words(result.input),
        },
        "output": {
            "shapes": {name: ["N", *shape] for name, shape in result.guide.shapes.items()},
            "meaning": result.guide.meaning,
        },
        "task": result.task.name,
        "labels": result.task.labels,
        "metric": {**asdict(result.metric), "description": metric_words(result.metric)},
        "verdict": result.verdict,
        "drop": result.drop,
        "name": winner.name,
        "recipe": [asdict(step) for step in winner.recipe],
        "measurements": {key: asdict(value) for key, value in winner.measurements.items()},
        "machine": result.machine,
    }
    write(Path(path), (json.dumps(to_plain(content), indent=2, ensure_ascii=False) + "\n").encode())
    return Path(path)


def _numbers(candidate: Candidate) -> list[Any]:
    cells: list[Any] = []
    for measure in MEASURES:
        measurement = candidate.measurements.get(measure.key)
        values = [getattr(measurement, field) for field in _FIELDS] if measurement else [None] * len(_FIELDS)
        cells += ["" if value is None else value for value in values]
    return cells
