"""A convolutional network on scikit-learn's digits, trained for a few epochs, with 8 parameters.

Torch is for the trainings alone: methods that live in an environment of their own read the table without it.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

CHOICES: dict[str, list[Any]] = {
    "learning_rate": [0.001, 0.003, 0.01, 0.03, 0.1],
    "width": [4, 8, 16],
    "layers": [1, 2],
    "kernel_size": [3, 5],
    "batch_size": [16, 64, 256],
    "weight_decay": [0.0, 0.01],
    "activation": ["relu", "tanh"],
    "optimizer": ["sgd", "momentum", "adam"],
}
EPOCHS = 3


def train(p: dict[str, Any], images: Any, labels: Any, held: Any, truth: Any) -> float:
    """Validation cross-entropy after a few epochs of a network with these parameters; NaN where it diverged."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    rng, network = np.random.default_rng(0), _network(p)
    x, y, held, truth = (
        torch.as_tensor(images).float().reshape(-1, 1, 8, 8),
        torch.as_tensor(labels),
        torch.as_tensor(held).float().reshape(-1, 1, 8, 8),
        torch.as_tensor(truth),
    )
    optimizer = _optimizer(network, p)
    for _ in range(EPOCHS):
        for chosen in torch.as_tensor(rng.permutation(len(x))).split(p["batch_size"]):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[chosen]), y[chosen]).backward()
            optimizer.step()
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(network(held), truth))
    return loss if np.isfinite(loss) else float("nan")


def _network(p: dict[str, Any]) -> "nn.Module":
    from torch import nn

    layers: list[nn.Module] = []
    channels = 1
    for i in range(p["layers"]):
        layers.append(nn.Conv2d(channels, p["width"] * (i + 1), p["kernel_size"], padding=p["kernel_size"] // 2))
        layers.append(nn.ReLU() if p["activation"] == "relu" else nn.Tanh())
        layers.append(nn.MaxPool2d(2))
        channels = p["width"] * (i + 1)
    side = 8 // 2 ** p["layers"]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, 10))


def _optimizer(network: "nn.Module", p: dict[str, Any]) -> "torch.optim.Optimizer":
    import torch

    options = {"lr": p["learning_rate"], "weight_decay": p["weight_decay"]}
    if p["optimizer"] == "adam":
        return torch.optim.Adam(network.parameters(), **options)
    return torch.optim.SGD(network.parameters(), momentum=0.9 if p["optimizer"] == "momentum" else 0.0, **options)
