"""Options of `afina export`."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from afina.jobs.options.declaration import Option
from afina.jobs.options.shared import Model, ModelOptions


@dataclass(frozen=True)
class ExportOptions(ModelOptions):
    """Write MODEL as a file for a runtime, and check that the file answers as the model does."""

    model: Model
    _: KW_ONLY
    to: Annotated[str, Option("Format of the file: `onnx`, `openvino`, `pt2`, or that of another runtime.")]
    out: Annotated[
        str | Path | None,
        Option("The file to write; named after the model (`NAME.onnx`, `.xml`, `.pt2`) by default."),
    ] = None
    half: Annotated[bool, Option("Store the weights of layers in 16 bits (fp16), where they fit and do no harm.")] = (
        False
    )
