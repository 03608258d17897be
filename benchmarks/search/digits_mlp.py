"""A multi-layer perceptron on scikit-learn's digits, trained for a few epochs, with 7 parameters."""

import itertools
from typing import Any

import numpy as np

CHOICES: dict[str, list[Any]] = {
    "learning_rate": [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1],
    "width": [8, 16, 32, 64],
    "layers": [1, 2],
    "batch_size": [16, 64, 256],
    "weight_decay": [0.0, 0.001, 0.01],
    "activation": ["relu", "tanh"],
    "optimizer": ["sgd", "momentum", "adam"],
}
EPOCHS = 4


def train(p: dict[str, Any], images: Any, labels: Any, held: Any, truth: Any) -> float:
    """Validation cross-entropy after a few epochs of a network with these parameters."""
    rng = np.random.default_rng(0)
    sizes = [64, *[p["width"]] * p["layers"], 10]
    weights = [rng.normal(size=(a, b)) * np.sqrt(2 / a) for a, b in itertools.pairwise(sizes)]
    weights += [np.zeros(b) for b in sizes[1:]]
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    step = 0
    with np.errstate(all="ignore"):
        for _ in range(EPOCHS):
            order = rng.permutation(len(images))
            for start in range(0, len(order), p["batch_size"]):
                chosen = order[start : start + p["batch_size"]]
                _, slopes = _loss(weights, images[chosen], labels[chosen], p)
                step += 1
                for i, slope in enumerate(slopes):
                    weights[i] = _stepped(weights[i], slope, first[i], second[i], step, p)
        loss, _ = _loss(weights, held, truth, {**p, "weight_decay": 0.0})
    return float(loss) if np.isfinite(loss) else float("nan")


def _loss(weights: list[Any], images: Any, labels: Any, p: dict[str, Any]) -> tuple[float, list[Any]]:
    depth = len(weights) // 2
    relu = p["activation"] == "relu"
    layers = [images]
    for i in range(depth):
        x = layers[-1] @ weights[i] + weights[depth + i]
        layers.append(x if i == depth - 1 else (np.maximum(x, 0) if relu else np.tanh(x)))
    scores = layers[-1] - layers[-1].max(axis=1, keepdims=True)
    chances = np.exp(scores)
    chances /= chances.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(np.maximum(chances[rows, labels], 1e-300)).mean()
    back = chances
    back[rows, labels] -= 1
    back /= len(labels)
    slopes: list[Any] = [None] * len(weights)
    for i in reversed(range(depth)):
        slopes[i] = layers[i].T @ back + p["weight_decay"] * weights[i]
        slopes[depth + i] = back.sum(axis=0)
        back = back @ weights[i].T
        back = back * ((layers[i] > 0) if relu else 1 - layers[i] ** 2)
    return loss, slopes


def _stepped(weight: Any, slope: Any, first: Any, second: Any, step: int, p: dict[str, Any]) -> Any:
    rate = p["learning_rate"]
    if p["optimizer"] == "sgd":
        return weight - rate * slope
    if p["optimizer"] == "momentum":
        first *= 0.9
        first += slope
        return weight - rate * first
    first *= 0.9
    first += 0.1 * slope
    second *= 0.999
    second += 0.001 * slope**2
    return weight - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
