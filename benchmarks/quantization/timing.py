"""Times files in turns in a fresh process, as `afina.runtimes.measure_latency` does, also as OpenVINO runs by default.

Afina's own sessions ask OpenVINO for the precision of the network that was judged. Left to itself, OpenVINO computes
float in bfloat16 where the processor can. A peer's file is timed as its user would run it: with the defaults.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from afina.devices import worker
from afina.errors import AfinaError
from afina.runtimes import runtime_of
from afina.runtimes.base import Session
from afina.runtimes.openvino_runtime import OpenVINORuntime

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class DefaultOpenVINO(OpenVINORuntime):
    """OpenVINO with nothing set but threads and what it is used for; its files name an `.xml` file."""

    name = "openvino default"
    suffix = ".default"

    def files(self, path: Path) -> tuple[Path, ...]:
        return (path,)

    def _open(self, path: Path, threads: int) -> Session:
        import openvino

        core = openvino.Core()
        model = core.read_model(path.read_text())
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        request: Callable[..., Any] | None = None

        def session(images: np.ndarray) -> tuple[np.ndarray, ...]:
            nonlocal request
            if request is None:  # compiled for the one shape that is timed
                model.reshape(list(images.shape))
                request = core.compile_model(model, "CPU", settings).create_infer_request().infer
            return (np.array(request([images], share_inputs=True)[0]),)

        return session


def as_default(path: Path) -> Path:
    """A file that stands for this `.xml` file, run with OpenVINO's defaults."""
    link = path.with_suffix(DefaultOpenVINO.suffix)
    link.write_text(str(path.absolute()))
    return link


def time_in_turns(
    files: Mapping[str, Path], shape: tuple[int, int, int], *, threads: int, seconds: float
) -> dict[str, dict[str, float]]:
    """For each file the median seconds of one image (`value`), its `spread` and the number of runs (`n`)."""
    request = {
        "kind": "latency",
        "artifacts": {name: str(path.absolute()) for name, path in files.items()},
        "shape": shape,
        "threads": threads,
        "batch": 1,
        "seconds": seconds,
    }
    environment = {**os.environ, **dict.fromkeys(_THREADS, str(threads))}
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(request), capture_output=True, text=True, env=environment
    )
    if done.returncode or not done.stdout:
        raise AfinaError("The process that measures died.", why=" ".join(done.stderr.splitlines()[-3:]))
    answer: dict[str, Any] = json.loads(done.stdout)
    if "error" in answer:
        raise AfinaError(answer["error"]["what"], why=answer["error"]["why"])
    found: dict[str, dict[str, float]] = answer["result"]
    return found


if __name__ == "__main__":
    peer = DefaultOpenVINO()
    worker.runtime_of = lambda path: peer if Path(path).suffix == peer.suffix else runtime_of(path)
    worker.main()
