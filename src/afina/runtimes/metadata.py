"""What a deployed file says about itself: how to preprocess an image, and what the outputs mean.

Two compact JSON texts, `afina.input` and `afina.task`, travel inside the file itself, in whatever place its format
has for such things, so that a file can be judged or used with nothing beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from afina.types import InputSpec, TaskSpec

if TYPE_CHECKING:
    from afina.graph import Network

INPUT_KEY = "afina.input"
TASK_KEY = "afina.task"


def describe(network: "Network") -> dict[str, str]:
    """The two texts that go into a file made from `network`."""
    return {INPUT_KEY: _compact(asdict(network.input)), TASK_KEY: _compact(asdict(network.task))}


def parse(texts: Mapping[str, str]) -> tuple[InputSpec, TaskSpec] | None:
    """What the two texts say; None where one of them is missing or is not what `describe` writes."""
    try:
        return parse_values(json.loads(texts[INPUT_KEY]), json.loads(texts[TASK_KEY]))
    except (KeyError, ValueError):
        return None


def parse_values(input: Any, task: Any) -> tuple[InputSpec, TaskSpec] | None:
    """The same from values that JSON has been read into already."""
    try:
        spec = InputSpec(**{**input, "mean": tuple(input["mean"]), "std": tuple(input["std"])})
        return spec, TaskSpec(task["name"], tuple(task["labels"]))
    except (KeyError, TypeError):
        return None


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
