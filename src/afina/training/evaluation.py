"""Runs a network over images in torch: its outputs (`predict`), and its quality with a standard error (`evaluate`)."""

from collections.abc import Mapping

import numpy as np
import torch

from afina.data import ImageData
from afina.errors import InputError
from afina.graph.network import Network
from afina.tasks import get_task, value_with_error
from afina.types import Measurement


def predict(
    network: Network,
    data: ImageData,
    split: str = "validation",
    *,
    batch_size: int | None = None,
    limit: int | None = None,
) -> dict[str, np.ndarray]:
    """The network's raw outputs `[N, ...]` by name, in the order of the data, computed on its device.

    Args:
        network: What is run, in inference form; its mode is put back.
        data: The images.
        split: `train` or `validation`; no image is varied.
        batch_size: Images at once; by default what is fast on the network's device.
        limit: At most so many images.

    Raises:
        InputError: there is no image.

    Example:
        >>> from afina.data import open_data
        >>> from afina.graph import capture
        >>> data = open_data("digits", seed=0)
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> predict(capture(module, data.native, data.task), data, limit=32)["outputs"].shape
        (32, 10)
    """
    outputs = []
    size = batch_size or network.batch
    with network.inference():
        for images, _ in data.batches(split, network.input, batch_size=size, limit=limit):
            answers = network(images.to(network.device))
            outputs.append({name: _plain(value) for name, value in answers.items()})
    if not outputs:
        raise InputError(f"{data.name} has no image for {split}.", fix="Give a folder with images for that split.")
    return {name: torch.cat([part[name] for part in outputs]).numpy() for name in network.outputs}


def evaluate(
    network: Network,
    data: ImageData,
    split: str = "validation",
    *,
    batch_size: int | None = None,
    limit: int | None = None,
    reference: Mapping[str, np.ndarray] | None = None,
) -> Measurement:
    """The network's quality in float32: the task's metric, and its standard error.

    Args:
        network: What is evaluated, in inference form; its mode is put back.
        data: The images.
        split: `train` or `validation`.
        batch_size: Images at once; by default what is fast on the network's device.
        limit: At most so many images.
        reference: Outputs of another network on the same images, by name. With it, the measurement is the
            agreement with that network, which stands in for quality where there are no labels.

    Raises:
        InputError: there is no image, or there are neither labels nor a `reference`.

    Example:
        >>> from afina.data import open_data
        >>> from afina.graph import capture
        >>> data = open_data("digits", seed=0)
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> quality = evaluate(capture(module, data.native, data.task), data, limit=32)
        >>> quality.unit, quality.how, quality.n
        ('accuracy', 'measured', 32)
    """
    task = get_task(network.task)
    if reference is None and not data.labelled:
        raise InputError(
            f"{data.name} has no labels, so that quality cannot be measured.",
            fix="Give labelled images, or compare with the outputs of another network (reference=).",
        )
    outputs = predict(network, data, split, batch_size=batch_size, limit=limit)
    count = len(next(iter(outputs.values())))
    if reference is None:
        evidence = task.evidence(task.decode(outputs), data.truth(split, network.input, count))
    else:
        evidence = task.agreement_evidence(outputs, {name: value[:count] for name, value in reference.items()})
    agreement = reference is not None
    value, error = value_with_error(task, evidence, agreement=agreement)
    metric = task.agreement if agreement else task.metric
    where = f"torch, {network.device.type}"
    details = task.details(evidence, list(outputs))
    return Measurement(value, metric.name, "measured", error, len(evidence), where, details, metric.share)


def _plain(value: torch.Tensor) -> torch.Tensor:
    """In a type that numpy has, on the processor."""
    return (value.float() if value.is_floating_point() else value).cpu()
