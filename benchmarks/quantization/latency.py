"""Time of one image at 224 pixels: float, peers' int8, Afina's all-int8 and its chosen plan, in turns in one run.

    python benchmarks/quantization/latency.py SHARED                  # on a quiet machine
    python benchmarks/quantization/latency.py SHARED --only 'mobilenet*/openvino'

Rows in `results/latency.jsonl`, named NETWORK/RUNTIME: the median of each file, and the time of the chosen plan as a
share of the fastest of the others. `int16` are activations in 16 bits, where the runtime has them. Peers' files and
the float file are timed on OpenVINO with its defaults (bfloat16 where the processor can), and the float file also in
float32. Files are kept in `runs/quantization`, those of peers from `agreement.py` where they are there; `--fresh` makes
Afina's again. Then `table.py` writes the page.
"""

from functools import partial
from pathlib import Path
from typing import Any

from judging import RUNTIMES, file_of, ours
from peers import FILES, openvino_of
from rows import Row, Rows, arguments
from subjects import LARGE, Subject, open_subject
from timing import as_default, time_in_turns

from afina.runtimes import get_runtime

AUTO = "afina auto"
OURS: dict[str, dict[str, Any]] = {
    "afina int8": {"weight_type": "int8", "activation_type": "int8"},
    "afina int8, int16": {"weight_type": "int8", "activation_type": "int16"},
    AUTO: {"plan": "auto"},
}


def main() -> None:
    """Each network on each runtime."""
    parser = arguments(__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--duration", type=float, default=60, help="seconds of timing at most, for each row")
    parser.add_argument("--fresh", action="store_true", help="make Afina's files again")
    parser.add_argument("--peers", action="store_true", help="only float and peers, printed and not kept")
    options = parser.parse_args()
    rows = Rows("latency", options.only, options.skip, options.again)
    for network in LARGE:
        for runtime in RUNTIMES:
            name = f"{network}/{runtime}"
            if options.peers and rows.wanted(name):
                print(name, timed(others(open_subject(network, options.shared), runtime), options), flush=True)
            elif not options.peers:
                rows.measure(name, partial(row, network, runtime, options))


def row(network: str, runtime: str, options: Any) -> Row:
    """Everything on one runtime, and how the chosen plan compares with the fastest of the others."""
    subject = open_subject(network, options.shared)
    found = timed({**others(subject, runtime), **own(subject, runtime, options.fresh)}, options)
    latency = found["latency"]
    best = min((name for name in latency if name != AUTO), key=lambda name: latency[name])
    return {**found, "best": best, "ratio": round(latency[AUTO] / latency[best], 3)}


def timed(files: dict[str, Path], options: Any) -> Row:
    """Medians and spreads in milliseconds."""
    found = time_in_turns(files, (3, 224, 224), threads=options.threads, seconds=options.duration)
    return {
        "latency": {name: round(each["value"] * 1e3, 3) for name, each in found.items()},
        "spread": {name: round(each["spread"] * 1e3, 3) for name, each in found.items()},
        "runs": {name: each["n"] for name, each in found.items()},
        "threads": options.threads,
    }


def others(subject: Subject, runtime: str) -> dict[str, Path]:
    """The float file and those of peers, as a user of the runtime has them."""
    onnx = peer(subject, "onnxruntime minmax")
    if runtime == "onnxruntime":
        return {"float": subject.file(), "onnxruntime int8": onnx}
    return {
        "float": subject.file("openvino"),
        "float default": as_default(subject.file("openvino")),
        "nncf int8": as_default(peer(subject, "nncf performance fast")),
        "onnxruntime int8": as_default(openvino_of(onnx)),
    }


def peer(subject: Subject, method: str) -> Path:
    """A peer's W8A8 file, made where it is not there."""
    runtime, make = FILES["W8A8"][method]
    path = file_of(subject, f"W8A8-{method}-0", runtime)
    return path if path.is_file() else make(subject, 0, path)


def own(subject: Subject, runtime: str, fresh: bool) -> dict[str, Path]:
    """Afina's files, made where they are not there."""
    found = {}
    runs = get_runtime(runtime).activation_bits
    for name, asked in OURS.items():
        if int(asked.get("activation_type", "int8").removeprefix("int")) not in runs:
            continue
        label = f"latency-{name}"
        path = file_of(subject, f"{label}-{runtime}", runtime)
        found[name] = ours(asked, runtime, label, subject, 0)[0] if fresh or not path.is_file() else path
        assert found[name].suffix == get_runtime(runtime).suffix
    return found


if __name__ == "__main__":
    main()
