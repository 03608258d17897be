"""Options of `afina run`."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

from afina.jobs.options.declaration import Option
from afina.jobs.options.shared import Data, DataOptions, Model, RunFolder, RuntimeOptions


@dataclass(frozen=True)
class RunOptions(DataOptions, RuntimeOptions):
    """Apply a recipe to MODEL: its steps in order, and the file that comes out of them judged."""

    recipe: Annotated[
        str | Path | Mapping[str, Any] | Sequence[Any],
        Option(
            "A YAML or JSON file: `steps:` and a list, each step with its options; from Python also its content: "
            '`[{"prune": {"macs": "50%"}}, {"quantize": {"weight_type": "int4"}}]`.',
            positional=True,
        ),
    ]
    model: Model
    data: Data
    _: KW_ONLY
    out: RunFolder = None
