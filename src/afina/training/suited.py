"""Defaults of trainings: the optimizer, batch size, epochs and learning rates that suit a network and its data.

Three kinds of training occur, each with a constructor of its `FitConfig` here, so that defaults stand in one place:

- `initial_training`: on labels, from random weights or from pretrained ones;
- `fine_tuning`: of a network that a technique has changed, with the original as its teacher;
- `quantization_aware_training`: the same, with simulated integers in the network.

An argument that is None is chosen here; any other value is taken as it is, and so is every further option of
`FitConfig` that is passed by name.
"""

from typing import Any

import torch

from afina.graph.network import Network
from afina.training.config import FitConfig, Optimizer

# The highest learning rate of the schedule: the nearer the weights are to what they should be, the lower.
RATES_FROM_RANDOM_WEIGHTS: dict[Optimizer, float] = {"sgd": 0.1, "adamw": 1e-3}
RATES_OF_FINE_TUNING: dict[Optimizer, float] = {"sgd": 0.05, "adamw": 5e-4}
RATES_FROM_PRETRAINED_WEIGHTS: dict[Optimizer, float] = {"sgd": 0.02, "adamw": 2e-4}
RATES_OF_QUANTIZATION_AWARE_TRAINING: dict[Optimizer, float] = {"sgd": 0.01, "adamw": 1e-4}

# Trainings are sized in steps, so that a small data set gets more epochs than a large one.
INITIAL_STEPS, FINE_TUNING_STEPS = 4000, 2000
_FEWEST_EPOCHS, _MOST_EPOCHS = 3, 20
_SMALLEST_BATCH, _LARGEST_BATCH, _STEPS_IN_AN_EPOCH = 8, 128, 16
# For classification; a regression has nothing to smooth and takes no notice.
_LABEL_SMOOTHING = 0.1


def suited_optimizer(network: Network) -> Optimizer:
    """`sgd` for networks whose norms are batch norms; others need adaptive steps: `adamw`.

    Those are transformers, convolutions with transformers behind them (DETR, MobileViT), and plain VGG.
    """
    ops = {node.target for node in network.graph.nodes}
    batch_norm, layer_norm = torch.ops.aten.batch_norm.default, torch.ops.aten.layer_norm.default
    return "sgd" if batch_norm in ops and layer_norm not in ops else "adamw"


def suited_batch(images: int) -> int:
    """The batch size for so many training images: enough steps in an epoch also where there are few.

    Example:
        >>> suited_batch(100), suited_batch(1_000), suited_batch(50_000)
        (8, 62, 128)
    """
    return max(_SMALLEST_BATCH, min(_LARGEST_BATCH, images // _STEPS_IN_AN_EPOCH))


def suited_epochs(images: int, steps: int) -> int:
    """The epochs over so many training images that come to about `steps` steps of `suited_batch`: 3 to 20.

    Example:
        >>> suited_epochs(1_000, FINE_TUNING_STEPS), suited_epochs(50_000, FINE_TUNING_STEPS)
        (20, 5)
    """
    steps_in_an_epoch = max(1, images // suited_batch(images))
    return max(_FEWEST_EPOCHS, min(_MOST_EPOCHS, steps // steps_in_an_epoch))


def initial_training(
    network: Network,
    images: int,
    *,
    pretrained: bool,
    epochs: int | None = None,
    optimizer: Optimizer | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> FitConfig:
    """How a network is trained on labels before anything is compressed.

    Args:
        network: What is trained.
        images: The number of training images.
        pretrained: Whether its weights (but for the head) are good already, so that large steps would lose them.
        epochs: Passes over the images; by default about 4000 steps, in 3 to 20 epochs.
        optimizer: By default `suited_optimizer`.
        learning_rate: The highest of the schedule; by default 0.1 (`sgd`) or 0.001 (`adamw`) from random weights, a
            fifth of that from pretrained ones.
        batch_size: By default `suited_batch`.
        options: Further options of `FitConfig`; `label_smoothing` is 0.1 unless it is among them.

    Raises:
        InputError: a value is out of range.
    """
    rates = RATES_FROM_PRETRAINED_WEIGHTS if pretrained else RATES_FROM_RANDOM_WEIGHTS
    epochs = suited_epochs(images, INITIAL_STEPS) if epochs is None else epochs
    options = {"label_smoothing": _LABEL_SMOOTHING, **options}
    return _config(network, images, rates, epochs, optimizer, learning_rate, batch_size, options)


def fine_tuning(
    network: Network,
    images: int,
    *,
    epochs: int | None = None,
    optimizer: Optimizer | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> FitConfig:
    """How a network that a technique has changed is trained to recover its quality, with the original as its teacher.

    Args:
        network: What is trained.
        images: The number of training images.
        epochs: Passes over the images; by default about 2000 steps, in 3 to 20 epochs.
        optimizer: By default `suited_optimizer`.
        learning_rate: The highest of the schedule; by default 0.05 (`sgd`) or 0.0005 (`adamw`).
        batch_size: By default `suited_batch`.
        options: Further options of `FitConfig`, such as `keep_zeros=True` for a sparse network.

    Raises:
        InputError: a value is out of range.

    Example:
        >>> from afina.graph import capture
        >>> from afina.types import InputSpec, TaskSpec
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> spec = InputSpec(8, 8, mean=(0.5,), std=(0.5,), order="L")
        >>> network = capture(module, spec, TaskSpec("classification", ("cat", "dog")))
        >>> config = fine_tuning(network, images=1_000, epochs=4)
        >>> config.epochs, config.optimizer, config.learning_rate, config.batch_size
        (4, 'adamw', 0.0005, 62)
    """
    epochs = suited_epochs(images, FINE_TUNING_STEPS) if epochs is None else epochs
    return _config(network, images, RATES_OF_FINE_TUNING, epochs, optimizer, learning_rate, batch_size, options)


def quantization_aware_training(
    network: Network,
    images: int,
    *,
    epochs: int,
    optimizer: Optimizer | None = None,
    learning_rate: float | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> FitConfig:
    """How a network is trained with simulated integers, with the float network as its teacher.

    The weights are nearly right already: the learning rate is low and falls along a cosine, no decay pulls the weights
    away from their steps, and those that are zero stay zero.

    Args:
        network: What is trained.
        images: The number of training images.
        epochs: Passes over the images.
        optimizer: By default `suited_optimizer`.
        learning_rate: The highest of the schedule; by default 0.01 (`sgd`) or 0.0001 (`adamw`).
        batch_size: By default `suited_batch`.
        options: Further options of `FitConfig`.

    Raises:
        InputError: a value is out of range.
    """
    rates = RATES_OF_QUANTIZATION_AWARE_TRAINING
    options = {"weight_decay": 0.0, "keep_zeros": True, "schedule": "cosine", **options}
    return _config(network, images, rates, epochs, optimizer, learning_rate, batch_size, options)


def _config(
    network: Network,
    images: int,
    rates: dict[Optimizer, float],
    epochs: int,
    optimizer: Optimizer | None,
    learning_rate: float | None,
    batch_size: int | None,
    options: dict[str, Any],
) -> FitConfig:
    chosen = suited_optimizer(network) if optimizer is None else optimizer
    return FitConfig(
        epochs=epochs,
        optimizer=chosen,
        # An optimizer that is not known has no rate: `FitConfig` refuses it by name.
        learning_rate=rates.get(chosen) if learning_rate is None else learning_rate,
        batch_size=suited_batch(images) if batch_size is None else batch_size,
        **options,
    )
