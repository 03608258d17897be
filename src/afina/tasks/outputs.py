"""Outputs that no task is known for: they are compared with the original's, each in relative terms.

For an output `y` of the original and `z` of the other network, over all images:

    signal-to-noise   10 log10 (sum y² / sum (z - y)²), in dB
    agreement         1 - sum (z - y)² / sum y²
    cosine            the mean over images of (y . z) / (|y| |z|)

20 dB are an agreement of 99%, 30 dB one of 99.9%. Of several outputs the worst counts.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afina.errors import InputError
from afina.tasks.base import Arrays, Shapes, Task, Tensors
from afina.types import MetricInfo, OutputGuide

# What is kept of each output and image: energy of the original's, energy of the difference, cosine.
_FIGURES = 3
_TINY = 1e-30
_MOST_DB = 150.0  # of outputs that are the same


class Outputs(Task):
    """Any outputs; nothing is known of their meaning, so that only two networks can be compared.

    The evidence of an image has, for each output in their order, its energy, that of the difference, and the cosine.
    """

    metric = MetricInfo(
        "agreement", higher_is_better=True, share=True, words="agreement with the original", of_original=True
    )
    agreement = metric
    meaning = "What the original model gives; no task is known for it."
    code = "print({name: value[0].tolist() for name, value in outputs.items()})"

    def check_outputs(self, shapes: Shapes) -> None:
        """Anything goes."""

    def loss(self, outputs: Tensors, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """There is none: raises `InputError`."""
        raise InputError(
            "The network cannot be trained on labels: no task is known for its outputs.",
            fix="Train it with its original as the teacher, or name its task with --task.",
        )

    def distance(self, outputs: Tensors, reference: Tensors, *, temperature: float = 4.0) -> Tensor:
        """Energy of the difference over that of the reference, mean over the outputs, so that no scale counts more."""
        shares = [
            (outputs[name].float() - wanted.float()).square().mean() / wanted.float().square().mean().clamp_min(_TINY)
            for name, wanted in reference.items()
            if wanted.is_floating_point()
        ]
        return torch.stack(shares).mean()

    def head_outputs(self) -> None:
        """The network's outputs stay as they are."""

    def decode(self, outputs: Arrays) -> Arrays:
        """The outputs themselves."""
        return outputs

    def evidence(self, predictions: Arrays, targets: Any) -> np.ndarray:
        """The figures of each output and image, float64 `[N, 3 * outputs]`."""
        return np.concatenate([_figures(predictions[name], wanted) for name, wanted in targets.items()], axis=1)

    def value(self, evidence: np.ndarray) -> float:
        """The agreement of the worst output; minus infinity where a number is not finite."""
        return min(_agreement(part) for part in _by_output(evidence))

    def details(self, evidence: np.ndarray, outputs: Sequence[str]) -> dict[str, float]:
        """Signal-to-noise and cosine of each output; with the name of the output where there are several."""
        figures: dict[str, float] = {}
        for name, part in zip(outputs, _by_output(evidence), strict=True):
            of = f"{name}: " if len(outputs) > 1 else ""
            figures[f"{of}signal-to-noise in dB"] = min(-10 * math.log10(max(1 - _agreement(part), _TINY)), _MOST_DB)
            figures[f"{of}cosine"] = float(part[:, 2].mean())
        return figures

    def agreement_words(self, evidence: np.ndarray, outputs: Sequence[str]) -> str:
        """The agreement, with signal-to-noise and cosine."""
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.details(evidence, outputs).items())
        return f"{super().agreement_words(evidence, outputs)} ({figures})"

    def guide(self, shapes: Shapes) -> OutputGuide:
        """What reports say of the outputs."""
        return replace(super().guide(shapes), use="what its original is for, on images")

    def plain(self, predictions: Arrays) -> list[dict[str, Any]]:
        """The numbers of each output."""
        count = len(next(iter(predictions.values())))
        return [{name: values[i].tolist() for name, values in predictions.items()} for i in range(count)]


def _figures(values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    rows, original = (array.reshape(len(array), -1).astype(np.float64) for array in (values, wanted))
    signal, noise = (original**2).sum(1), ((rows - original) ** 2).sum(1)
    lengths = np.sqrt(signal * (rows**2).sum(1))
    cosine = np.where(lengths > 0, (rows * original).sum(1) / np.maximum(lengths, _TINY), noise == 0)
    finite = np.isfinite(rows).all(1)
    return np.stack([signal, np.where(finite, noise, np.inf), np.where(finite, cosine, -1.0)], axis=1)


def _by_output(evidence: np.ndarray) -> list[np.ndarray]:
    return np.split(evidence, evidence.shape[1] // _FIGURES, axis=1)


def _agreement(part: np.ndarray) -> float:
    signal, noise = float(part[:, 0].sum()), float(part[:, 1].sum())
    return 1 - noise / max(signal, _TINY) if noise else 1.0
