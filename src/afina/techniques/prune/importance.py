"""Which units matter, without a refit: by the size of their weights, by gradients, by the scales of their norms."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from afina.errors import InputError, NothingToDo
from afina.graph.axes import Axis, Member
from afina.graph.network import Network
from afina.graph.ops import arguments, op_name
from afina.graph.stored import attribute

Scores = NDArray[np.float64]
_LAYERS = frozenset(["linear", *(f"conv{n}d" for n in (1, 2, 3)), *(f"conv_transpose{n}d" for n in (1, 2, 3))])
_NORMS = frozenset("batch_norm instance_norm layer_norm group_norm rms_norm".split())


def by_magnitude(network: Network, axes: Iterable[Axis]) -> dict[Axis, Scores]:
    """For each unit, the mean squared size of the weights that write it and read it (a group L2 norm).

    Each weight counts the same whatever its scale, and a batch norm's scale is folded into the layer before it.
    Needs no data, and knows nothing of what the unit does on it (Li et al. 2017, "Pruning filters").
    """
    folded, scales = _norms(network)
    result: dict[Axis, Scores] = {}
    for axis in axes:
        parts = []
        for member in axis.members:
            weight = attribute(network.module, member.name)
            if member.role == "other" and (member.name not in scales or member.name in folded.values()):
                continue
            size = _squares(weight, member.dim)
            if member.role == "producer" and member.name in folded:
                size = size * scales[folded[member.name]] ** 2
            parts.append(_share(_per_unit(size.cpu().numpy(), member, axis)))
        result[axis] = np.mean(parts, axis=0) if parts else np.zeros(axis.size)
    return result


def by_gradient(network: Network, axes: Iterable[Axis], images: Iterable[Tensor], seed: int) -> dict[Axis, Scores]:
    """For each unit, the squared first-order change of the outputs if its weights were zero, mean over batches.

    `E[(sum of w * dg/dw over the unit's weights)^2]` (Molchanov et al. 2019, equation 8). `g` is a random projection
    of the outputs in place of the loss, so that no labels are needed and every task has one.

    Raises:
        InputError: there are no images.
    """
    axes = tuple(axes)
    twin = network.copy().eval()
    parameters = {name: p.requires_grad_(True) for name, p in twin.module.named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    totals = {axis: np.zeros(axis.size) for axis in axes}
    batches = 0
    for batch in images:
        outputs = twin(batch.to(twin.device))
        signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
        projection = (outputs * signs).sum() / len(batch)
        gradients = torch.autograd.grad(projection, list(parameters.values()), allow_unused=True)
        change = {
            name: (parameter * gradient).detach().double()
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
            if gradient is not None
        }
        for axis in axes:
            first = np.zeros(axis.size)
            for member in axis.members:
                if member.role == "producer" and member.name in change:
                    sums = change[member.name].movedim(member.dim, 0).flatten(1).sum(1)
                    first += _per_unit(sums.cpu().numpy(), member, axis)
            totals[axis] += first**2
        batches += 1
    if not batches:
        raise InputError("There are no calibration images.", fix="Give data with training images.")
    return {axis: total / batches for axis, total in totals.items()}


def by_norm(network: Network, axes: Iterable[Axis]) -> dict[Axis, Scores]:
    """For each unit, the absolute scale of the norms that it goes through (Liu et al. 2017, "Network slimming").

    Raises:
        NothingToDo: no axis goes through a norm with a scale.
    """
    names = {
        str(arguments(node)["weight"].target)
        for node in network.graph.nodes
        if node.op == "call_function" and op_name(node) in _NORMS and isinstance(arguments(node)["weight"], Node)
    }
    result: dict[Axis, Scores] = {}
    for axis in axes:
        parts = [
            _share(_per_unit(attribute(network.module, m.name).detach().double().abs().cpu().numpy(), m, axis))
            for m in axis.members
            if m.name in names
        ]
        if parts:
            result[axis] = np.mean(parts, axis=0)
    if not result:
        raise NothingToDo("No unit goes through a norm, whose scales the batchnorm criterion ranks by.")
    return {axis: result[axis] if axis in result else by_magnitude(network, [axis])[axis] for axis in axes}


def by_chance(axes: Iterable[Axis], seed: int) -> dict[Axis, Scores]:
    """Random numbers, for comparison."""
    generator = np.random.default_rng(seed)
    return {axis: generator.random(axis.size) for axis in axes}


def _norms(network: Network) -> tuple[dict[str, str], dict[str, Tensor]]:
    """For each layer that a batch norm alone reads, the norm's weight; and the scale that each norm applies."""
    folded: dict[str, str] = {}
    scales: dict[str, Tensor] = {}
    for node in network.graph.nodes:
        if node.op != "call_function" or op_name(node) != "batch_norm":
            continue
        a = arguments(node)
        if not isinstance(a["weight"], Node) or a["weight"].op != "get_attr":
            continue
        name = str(a["weight"].target)
        scale = attribute(network.module, name).detach().double().abs()
        if isinstance(a["running_var"], Node):
            scale = scale / (attribute(network.module, str(a["running_var"].target)).double() + a["eps"]).sqrt()
        scales[name] = scale
        layer = a["input"]
        if layer.op == "call_function" and op_name(layer) in _LAYERS and len(layer.users) == 1:
            weight = arguments(layer)["weight"]
            if isinstance(weight, Node) and weight.op == "get_attr":
                folded[str(weight.target)] = name
    return folded, scales


def _squares(weight: Tensor, dim: int) -> Tensor:
    """Sum of squares at each position of one dimension."""
    squares = weight.detach().double().square().movedim(dim, 0)
    return squares.flatten(1).sum(1) if squares.ndim > 1 else squares


def _per_unit(values: Scores, member: Member, axis: Axis) -> Scores:
    inside = member.units >= 0
    return np.bincount(member.units[inside], weights=values[inside], minlength=axis.size).astype(np.float64)


def _share(values: Scores) -> Scores:
    total = values.sum()
    return values / total if total > 0 else values
