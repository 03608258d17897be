"""Wall time and peak memory of quantizing ResNet-50 and ViT-B/16 at 224 pixels: Afina beside NNCF's default.

    python benchmarks/quantization/calibration.py SHARED              # on a quiet machine
    python benchmarks/quantization/calibration.py SHARED --threads 1 --only 'resnet50/nncf*'

Rows in `results/calibration.jsonl`, named NETWORK/METHOD/IMAGES/THREADS. Each is made in a process of its own that may
use so many cores: calibration, rounding and the file for OpenVINO, from the float network and images that are decoded.
NNCF starts from an ONNX file that is there already, and once more (`from torch`) from the module, as Afina does.
`afina judged` is all that `afina quantize` does: the files of the float and of the quantized network are also compared
with the networks, and judged on all validation images. Memory is all that the process has resident at its peak,
libraries and images included; `start` is what it has before.
"""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from judging import file_of, ours
from peers import nncf_static
from rows import Row, Rows, arguments
from subjects import IMAGES, Subject, open_subject

from afina.jobs.common.subject import context_of
from afina.progress import PlainProgress
from afina.runtimes import get_runtime
from afina.techniques.quantize import QuantizeConfig, apply

CASES = (
    ("resnet50", "nncf performance fast", IMAGES),
    ("resnet50", "nncf performance fast from torch", IMAGES),
    ("resnet50", "afina", IMAGES),
    ("resnet50", "afina", 1000),
    ("resnet50", "afina judged", IMAGES),
    ("vit_b_16", "nncf performance fast", IMAGES),
    ("vit_b_16", "afina", IMAGES),
)
_BITS = {"weight_type": "int8", "activation_type": "int8"}


def main() -> None:
    """Each case in its own process."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    rows = Rows("calibration", options.only, options.skip, options.again)
    for network, method, images in CASES:
        name = f"{network}/{method}/{images}/{options.threads}"
        if rows.wanted(name):
            open_subject(network, options.shared).file()  # made once, and not counted
            rows.measure(name, partial(_apart, case, network, method, images, options.shared, options.threads))


def case(network: str, method: str, images: int, shared: Path, threads: int) -> Row:
    """Seconds, and bytes resident at the start and at the peak, in this process."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    subject = open_subject(network, shared)
    for _ in subject.calibration(images=images):  # images are decoded once, for everyone
        pass
    begun, start = _status("VmRSS"), time.monotonic()
    path = file_of(subject, f"{method}-{images}", "openvino")
    if method == "afina judged":
        ours({**_BITS, "images": images}, "openvino", f"{method}-{images}", subject, 0)
    elif method == "afina":
        _made(subject, images, path)
    else:
        nncf_static(subject, 0, path, converted=not method.endswith("from torch"))
    return {"took": round(time.monotonic() - start, 1), "start": begun, "peak": _status("VmHWM"), "threads": threads}


def _made(subject: Subject, images: int, path: Path) -> None:
    """The file, as `afina quantize` makes it."""
    runtime = get_runtime("openvino")
    context = context_of(subject.data, subject.network, images, 0, PlainProgress(every=60))
    config = QuantizeConfig(**_BITS, policy=runtime.policy())
    network, _ = apply(subject.network, config, context)
    runtime.export(network, path)


def _apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of `work`, from a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _status(key: str) -> int:
    """Bytes, as Linux says; elsewhere the peak for both."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
