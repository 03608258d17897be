"""Which units matter: by the size of their weights, or by what their consumers would miss on real images."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from afina.errors import InputError
from afina.graph.axes import Axis, Member
from afina.graph.axes.builder import arguments, op_name
from afina.graph.network import Network
from afina.graph.propagate import attribute
from afina.progress import Progress

Scores = NDArray[np.float64]


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


def by_activation(
    network: Network, axes: Iterable[Axis], images: Iterable[Tensor], progress: Progress
) -> dict[Axis, Scores]:
    """For each unit, how much of its consumers' outputs (as energy, on `images`) would go with it.

    For a consumer with weight W, a unit x counts for `mean(x^2) * ||W_x||^2`, as a share of the sum over all
    units: the diagonal of what pruning loses in the metric of the layer's inputs. One pass over the images, in
    the memory of one batch. An axis that no layer with weights reads is ranked by magnitude.
    """
    axes = tuple(axes)
    wanted = {member.name for axis in axes for member in axis.members if member.role == "consumer"}
    watcher = _Watcher(network, wanted)
    seen = 0
    with network.inference(), progress.work("Looking at activations", 1) as bar:
        for batch in images:
            watcher.run(batch.to(network.device))
            seen += len(batch)
        bar.advance()
    if not seen:
        raise InputError("There are no calibration images.", why="The calibration iterable is empty.")
    result: dict[Axis, Scores] = {}
    for axis in axes:
        consumers = [m for m in axis.members if m.role == "consumer" and m.name in watcher.losses]
        parts = [_share(_per_unit(watcher.losses[m.name].cpu().numpy(), m, axis)) for m in consumers]
        result[axis] = np.mean(parts, axis=0) if parts else by_magnitude(network, [axis])[axis]
    return result


class _Watcher(Interpreter):
    """Runs the graph and adds up, for each wanted weight, the energy that each input position gives to its output."""

    def __init__(self, network: Network, wanted: set[str]) -> None:
        super().__init__(network.module)
        self.losses: dict[str, Tensor] = {}
        self._wanted = wanted

    def run_node(self, n: Node) -> Any:
        if n.op == "call_function" and op_name(n) in _READERS:
            weight = arguments(n)["weight"]
            if isinstance(weight, Node) and weight.op == "get_attr" and str(weight.target) in self._wanted:
                loss = _energy(n, self.env[arguments(n)["input"]], self.env[weight])
                name = str(weight.target)
                self.losses[name] = self.losses[name] + loss if name in self.losses else loss
        return super().run_node(n)


def _energy(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    """Energy that each position of the summed dimension of `weight` gives to the output, summed over a batch."""
    if op_name(node) == "linear":
        return x.double().square().flatten(0, -2).sum(0) * _squares(weight, 1)
    power = x.double().square().transpose(0, 1).flatten(1).sum(1)
    if "transpose" in op_name(node):
        return power * _squares(weight, 0)
    groups = arguments(node)["groups"]
    rows = weight.double().square().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum((1, 3))
    return (power.reshape(groups, -1) * rows).sum(0)


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
        if layer.op == "call_function" and op_name(layer) in _READERS and len(layer.users) == 1:
            weight = arguments(layer)["weight"]
            if isinstance(weight, Node) and weight.op == "get_attr":
                folded[str(weight.target)] = name
    return folded, scales


def _squares(weight: Tensor | nn.Parameter, dim: int) -> Tensor:
    """Sum of squares at each position of one dimension."""
    return (
        weight.detach().double().square().movedim(dim, 0).flatten(1).sum(1)
        if weight.ndim > 1
        else weight.detach().double().square()
    )


def _per_unit(values: NDArray[np.float64], member: Member, axis: Axis) -> Scores:
    inside = member.units >= 0
    sums = np.bincount(member.units[inside], weights=values[inside], minlength=axis.size)
    return sums.astype(np.float64)


def _share(values: Scores) -> Scores:
    total = values.sum()
    return values / total if total > 0 else values


_READERS = frozenset(["linear", *(f"conv{n}d" for n in (1, 2, 3)), *(f"conv_transpose{n}d" for n in (1, 2, 3))])
