"""Which units matter, without a refit: by the size of their weights, by gradients, by the scales of their norms.

Each function gives, for each axis, one score for each unit (`[size]`, 0 or more); units of small scores go first.
Scores are compared within an axis only.
"""

from collections.abc import Iterable, Mapping

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
_TINY = 1e-12
_NORMS = frozenset("batch_norm instance_norm layer_norm group_norm rms_norm".split())


# Two convolutions `a` and `b` (1 x 1, a batch norm between them); the axis is the 2 channels of `a`:
#
#     a.weight  [[3, 4],        [2 units, 2 inputs]     squares by unit      [25, 4]
#                [0, 2]]
#     bn        scale [1, 5]    gamma / sqrt(var)       times scale^2        [25, 100]    shares  [0.2, 0.8]
#     b.weight  [[1, 1]]        [1 output, 2 units]     squares by unit      [1, 1]       shares  [0.5, 0.5]
#
#     score     the mean of the shares                                                            [0.35, 0.65]
#
# Without the norm's scale unit 1 would look small, though what it gives is five times as large as its weights say.
# Without the shares the weight with the largest numbers would decide alone.
def by_magnitude(network: Network, axes: Iterable[Axis]) -> dict[Axis, Scores]:
    """For each unit, its share of the squares of the weights that write it and read it, mean over these weights.

    Each weight counts the same whatever its scale, and a batch norm's scale is folded into the layer before it.
    Needs no data, and so does not know how large the inputs of the weights are (Li et al. 2017, "Pruning filters for
    efficient ConvNets", section 3.1, with squares for absolute values, and over all the weights of a unit).
    """
    folded, scales = _norms(network)
    result: dict[Axis, Scores] = {}
    for axis in axes:
        shares = []
        for member in axis.members:
            weight = attribute(network.module, member.name)
            if member.role == "other" and (member.name not in scales or member.name in folded.values()):
                continue
            squares = _squares(weight, member.dim)
            if member.role == "producer" and member.name in folded:
                squares = squares * scales[folded[member.name]] ** 2
            shares.append(_share(_per_unit(squares.cpu().numpy(), member, axis)))
        result[axis] = np.mean(shares, axis=0) if shares else np.zeros(axis.size)
    return result


# If all weights w of a unit became zero, an output g would change by about minus the sum of w * dg/dw over them. For a
# unit with two weights, over two batches:
#
#     w * dg/dw   batch 1  [0.5, -0.4]    sum 0.1    square 0.01
#                 batch 2  [0.3,  0.1]    sum 0.4    square 0.16       score 0.085
#
# Signs count within a batch, as the weights become zero together: batch 1 says that they nearly cancel. Between batches
# they do not, since a unit that raises the outputs of some images and lowers those of others matters for both.
#
# A network has many outputs, and one backward pass gives the gradient of one number: g, the sum of s * output / images
# with a random sign s (+1 or -1) for each output of each image. Over the signs, the mean of the squared change of g is
# (but for a factor) the sum of the squared changes of each output of each image: the mean of s s' is 0 for two signs.
def by_gradient(network: Network, axes: Iterable[Axis], images: Iterable[Tensor], seed: int) -> dict[Axis, Scores]:
    """For each unit, the squared first-order change of the outputs if its weights were zero, mean over batches.

    `E[(sum of w * dg/dw over the unit's weights)^2]` (Molchanov et al. 2019, "Importance estimation for neural network
    pruning", equation 8). `g` is a random projection of the outputs in place of the loss, so that no labels are needed
    and every task has one.

    Args:
        network: The network; it is left as it is.
        axes: Axes of this network.
        images: Batches `[N, C, H, W]`.
        seed: The seed of the projection.

    Raises:
        InputError: there are no images.
    """
    axes = tuple(axes)
    differentiable = network.copy().eval()
    parameters = {name: p.requires_grad_(True) for name, p in differentiable.module.named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    totals = {axis: np.zeros(axis.size) for axis in axes}
    batches = 0
    for batch in images:
        projection = _projection(differentiable(batch.to(differentiable.device)), generator)
        gradients = torch.autograd.grad(projection, list(parameters.values()), allow_unused=True)
        changes = {
            name: (parameter * gradient).detach().double()
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
            if gradient is not None
        }
        for axis in axes:
            first_order = np.zeros(axis.size)
            for member in axis.members:
                if member.role == "producer" and member.name in changes:
                    by_position = changes[member.name].movedim(member.dim, 0).flatten(1).sum(1)
                    first_order += _per_unit(by_position.cpu().numpy(), member, axis)
            totals[axis] += first_order**2
        batches += 1
    if not batches:
        raise InputError("There are no calibration images.", fix="Give data with training images.")
    return {axis: total / batches for axis, total in totals.items()}


def _projection(outputs: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """A random sum of all outputs, mean over the images; each output counts by its scale, so that none drowns."""
    total = torch.zeros(())
    for value in outputs.values():
        if value.is_floating_point():
            signs = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
            scale = 1.0 if len(outputs) == 1 else value.detach().square().mean().sqrt().clamp_min(_TINY)
            total = total.to(value.device) + (value * signs).sum() / scale / len(value)
    return total


def by_norm(network: Network, axes: Iterable[Axis]) -> dict[Axis, Scores]:
    """For each unit, its share of the absolute scales of the norms that it goes through, mean over these norms.

    Axes that go through no norm are ranked by magnitude (Liu et al. 2017, "Learning efficient convolutional networks
    through network slimming", section 3; the networks need not have been trained for sparse scales, as theirs were).

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
        shares = [
            _share(_per_unit(attribute(network.module, m.name).detach().double().abs().cpu().numpy(), m, axis))
            for m in axis.members
            if m.name in names
        ]
        if shares:
            result[axis] = np.mean(shares, axis=0)
    if not result:
        raise NothingToDo("No unit goes through a norm, whose scales the batchnorm criterion ranks by.")
    return {axis: result[axis] if axis in result else by_magnitude(network, [axis])[axis] for axis in axes}


def by_chance(axes: Iterable[Axis], seed: int) -> dict[Axis, Scores]:
    """For each unit a random number between 0 and 1, for comparison."""
    generator = np.random.default_rng(seed)
    return {axis: generator.random(axis.size) for axis in axes}


def _norms(network: Network) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The batch norms behind layers, and their scales.

    Returns:
        The name of the norm's weight, by the name of the weight of the layer that this norm alone reads; and
        `|gamma| / sqrt(variance + eps)` of each norm, `[channels]`, by the name of the norm's weight.
    """
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
    """Sum of squares at each position of one dimension of a weight: `[positions]`."""
    squares = weight.detach().double().square().movedim(dim, 0)
    return squares.flatten(1).sum(1) if squares.ndim > 1 else squares


def _per_unit(values: Scores, member: Member, axis: Axis) -> Scores:
    """Values of each position of a member's dimension, summed over the positions of each unit: `[size]`.

    Example:
        >>> columns = Member("fc.weight", 1, np.array([0, 0, 1, -1]), "consumer")  # the last column is of no unit
        >>> _per_unit(np.array([1.0, 2.0, 4.0, 8.0]), columns, Axis("conv", 2, (columns,)))
        array([3., 4.])
    """
    inside = member.units >= 0
    return np.bincount(member.units[inside], weights=values[inside], minlength=axis.size).astype(np.float64)


def _share(values: Scores) -> Scores:
    """Values as shares of their sum; unchanged where that is 0."""
    total = values.sum()
    return values / total if total > 0 else values
