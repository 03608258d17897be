"""Options of `afina demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from afina.jobs.options.declaration import Option
from afina.jobs.options.shared import CommonOptions


@dataclass(frozen=True, kw_only=True)
class DemoOptions(CommonOptions):
    """Real scanned digits, a small network, a sixth of its size: the whole job, with no download and no argument."""

    out: Annotated[str | Path, Option("The run folder; the same command on it resumes.")] = "runs/demo"
    runtime: Annotated[str, Option("What will run the file: `onnxruntime`, `openvino`.")] = "onnxruntime"
