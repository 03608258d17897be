"""What a deployed file says about itself: how to preprocess an image, and what the outputs mean.

Two compact JSON texts, `afina.input` and `afina.task`, travel inside the file itself, in whatever place its format
has for such things, so that a file can be judged or used with nothing beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afina.types import InputSpec, TaskSpec, plain_task

if TYPE_CHECKING:
    from afina.graph import Network

INPUT_KEY = "afina.input"
TASK_KEY = "afina.task"
# In the tail of an ONNX file (see `models.onnx.cutting`): the names of what the whole file gave.
TAIL_OUTPUTS_KEY = "afina.outputs"


def describe(network: "Network") -> dict[str, str]:
    """The two texts that go into a file made from `network`; of a user's task file the name alone, not its place."""
    task = replace(network.task, file=Path(network.task.file).name)
    return {INPUT_KEY: _compact(asdict(network.input)), TASK_KEY: _compact(plain_task(task))}


def parse(texts: Mapping[str, str]) -> tuple[InputSpec, TaskSpec] | None:
    """The input and the task that the two texts describe; None where one is missing or is not as `describe` writes it.

    Example:
        >>> text = '{"height":8,"width":8,"mean":[0.5],"std":[0.2],"order":"L"}'
        >>> spec, task = parse({INPUT_KEY: text, TASK_KEY: '{"name":"classify","labels":["cat","dog"]}'})
        >>> spec.shape, task.labels
        ((1, 8, 8), ('cat', 'dog'))
        >>> parse({INPUT_KEY: text}) is None
        True
    """
    try:
        return parse_values(json.loads(texts[INPUT_KEY]), json.loads(texts[TASK_KEY]))
    except (KeyError, ValueError):
        return None


def parse_values(input: Any, task: Any) -> tuple[InputSpec, TaskSpec] | None:
    """As `parse`, from the values of the two JSON texts."""
    try:
        return InputSpec.from_plain(input), TaskSpec(task["name"], tuple(task["labels"]), task.get("file", ""))
    except (KeyError, TypeError):
        return None


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
