"""Options of `afina benchmark`."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from afina.jobs.options.declaration import Option
from afina.jobs.options.shared import CacheMemory, CommonOptions, Data, InputSize, TaskName


@dataclass(frozen=True)
class BenchmarkOptions(CommonOptions):
    """FILES side by side on the same images: quality, latency, size, memory."""

    files: Annotated[
        tuple[str, ...] | Sequence[str | Path], Option("`.onnx`, OpenVINO `.xml` or `.pt2` files.", positional=True)
    ]
    data: Data
    _: KW_ONLY
    input_size: Annotated[
        InputSize,
        Option("Height and width in pixels for files that do not say, as in `224` or `224x320`.", metavar="SIZE"),
    ] = None
    task: TaskName = None
    cache_memory: CacheMemory = None
    threads: Annotated[int | None, Option("Threads of the runtimes; all cores by default.", least=1)] = None
    batch: Annotated[int, Option("Images per call when latency is measured.", least=1)] = 1
