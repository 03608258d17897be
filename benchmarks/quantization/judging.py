"""One row: what a quantized file or module answers, beside the float network and the labels."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import Builder, Maker, Module
from rows import RUNS, Row
from subjects import IMAGES, Subject, open_subject

from afina.graph.network import Network
from afina.progress import PlainProgress
from afina.runtimes import get_runtime, outputs_of_file, parity, runtime_of
from afina.tasks.base import only_output
from afina.training import predict

RUNTIMES = ("onnxruntime", "openvino")
Measure = Callable[[Subject, int], Row]  # of a network, with a seed
Case = tuple[str, str, str, Measure]  # bits, method, runtime
_BATCH = 64
TRAINED_NOISE = parity.INT8_NOISE


def of(network: str, shared: Path, measure: Measure, seed: int) -> Row:
    """The row of the network of that name, which is opened now."""
    return measure(open_subject(network, shared), seed)


def of_module(build: Builder, subject: Subject, seed: int) -> Row:
    """A row of something that torch runs."""
    start = time.monotonic()
    module = build(subject, seed)
    made = time.monotonic() - start
    return {**judged(outputs_of_module(module, subject), subject), "made": round(made, 1), "seed": seed}


def of_file(make: Maker, runtime: str, label: str, subject: Subject, seed: int) -> Row:
    """A row of a file that a peer writes; `label` tells it from its others."""
    start = time.monotonic()
    path = make(subject, seed, file_of(subject, f"{label}-{seed}", runtime))
    made = time.monotonic() - start
    found = judged(outputs_of(path, subject), subject)
    return {**found, "bytes": size_of(path), "made": round(made, 1), "seed": seed}


def of_afina(options: dict[str, Any], runtime: str, label: str, subject: Subject, seed: int) -> Row:
    """A row of Afina: what its file answers, and how far that agrees with the network that was simulated."""
    start = time.monotonic()
    path, network = ours(options, runtime, f"{label}-{seed}", subject, seed)
    made = time.monotonic() - start
    outputs = outputs_of(path, subject)
    simulated = only_output(predict(network, subject.data, batch_size=_BATCH, limit=subject.held_out))
    return {
        **judged(outputs, subject),
        "simulated": judged(simulated, subject).get("accuracy"),
        "same": round(float(np.mean(outputs.argmax(1) == simulated.argmax(1))), 5),
        "bytes": size_of(path),
        "made": round(made, 1),
        "seed": seed,
    }


def ours(options: dict[str, Any], runtime: str, label: str, subject: Subject, seed: int) -> tuple[Path, Network]:
    """Afina's file, and the network that it was made from.

    An untrained network amplifies the last bit of rounding beyond what a file may differ by (see `subjects`): its files
    are let through, since what is reported of them is how they agree and what they take.
    """
    import afina

    parity.INT8_NOISE = TRAINED_NOISE if subject.data.labelled else math.inf
    network, _ = afina.quantize(
        subject.network,
        subject.data,
        runtime=runtime,
        seed=seed,
        progress=PlainProgress(every=60),
        **{"images": IMAGES, **options},
    )
    return get_runtime(runtime).export(network, file_of(subject, f"{label}-{runtime}", runtime)), network


def file_of(subject: Subject, label: str, runtime: str) -> Path:
    """Where a quantized file is kept."""
    return RUNS / subject.name / f"{label.replace(' ', '-').replace(':', '')}{get_runtime(runtime).suffix}"


def outputs_of_module(module: Module, subject: Subject) -> np.ndarray:
    """Its outputs, by torch, on the images that the subject is judged on."""
    batches = subject.data.batches("validation", subject.network.input, batch_size=_BATCH, limit=subject.held_out)
    with torch.inference_mode():
        return np.concatenate([module(images).numpy() for images, _ in batches])


def outputs_of(path: Path, subject: Subject, threads: int = 1) -> np.ndarray:
    """A file's outputs, by its runtime, on the same images."""
    outputs = outputs_of_file(
        path, subject.data, subject.network.input, threads=threads, batch_size=_BATCH, limit=subject.held_out
    )
    return np.asarray(only_output(outputs))


def judged(outputs: np.ndarray, subject: Subject) -> Row:
    """Accuracy where there are labels, top-1 agreement with the float network, and signal-to-noise ratio in dB."""
    expected = subject.expected
    row: Row = {}
    if subject.data.labelled:
        row["accuracy"] = round(float(np.mean(outputs.argmax(1) == subject.targets)), 5)
        row["original"] = round(float(np.mean(expected.argmax(1) == subject.targets)), 5)
    row["agreement"] = round(float(np.mean(outputs.argmax(1) == expected.argmax(1))), 5)
    row["snr"] = round(noise_ratio(expected, outputs), 2)
    row["images"] = len(outputs)
    return row


def noise_ratio(expected: np.ndarray, outputs: np.ndarray) -> float:
    """Energy of the expected outputs over that of the error, in dB."""
    wide = expected.astype(np.float64)
    noise = float(np.sum((outputs - wide) ** 2))
    return 10 * float(np.log10(np.sum(wide**2) / max(noise, np.finfo(np.float64).tiny)))


def size_of(path: Path) -> int:
    """Bytes of all files of the artifact."""
    return sum(part.stat().st_size for part in runtime_of(path).files(path))
