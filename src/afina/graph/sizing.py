"""The cost that a network would have with fewer units, as arithmetic on its axes' sizes: nothing is rewritten."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from afina.graph.axes import Axis
from afina.graph.cost import macs_by_weight
from afina.graph.network import Network
from afina.graph.stored import attribute

Counts = Mapping[str, int]


@dataclass(frozen=True)
class _Term:
    """One weight: what it costs, and how many positions of its dimensions go with which axes.

    A linear layer with 10 outputs reads a `cat` of an axis `a` of 4 units and an axis `b` of 2. Its weight is
    `[10, 6]`: `value` is 60, and `dims` is `((6, ((("a",), 4), (("b",), 2))),)`. With 2 of the 4 units of `a` there are
    6 - 4 * (1 - 2/4) = 4 columns, and 60 * 4/6 = 40 numbers.

    Positions of a product go with several axes, whose shares are multiplied: 2 heads of 3 numbers are
    `(6, ((("heads", "head-dim"), 6),))`, and with 1 head of 2 numbers 6 - 6 * (1 - 1/2 * 2/3) = 2 positions are left.

    Attributes:
        value: Parameters, or multiply-accumulates, with all units.
        dims: For each dimension that an axis runs through: its size, and sets of axes with the number of positions that
            go with just these.
    """

    value: float
    dims: tuple[tuple[int, tuple[tuple[tuple[str, ...], int], ...]], ...]


class Sizing:
    """Parameters and multiply-accumulates as functions of how many units each axis keeps.

    Exact for weights and for layers that multiply by one; products of activations (attention) count as they are now.

    Args:
        network: The network.
        axes: Its free axes.
        kind: The cost to compute, `parameters` or `macs`.

    Example:
        >>> from torch import nn
        >>> from afina.graph import capture
        >>> from afina.graph.axes import analyse
        >>> from afina.types import InputSpec, TaskSpec
        >>> module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> spec = InputSpec(8, 8, mean=(0.5,), std=(0.25,), order="L")
        >>> network = capture(module, spec, TaskSpec("classification", ("cat", "dog")))
        >>> sizing = Sizing(network, analyse(network).free, "parameters")
        >>> sizing.total({}), sizing.total({"0": 2})  # the convolution is called "0"
        (330.0, 166.0)
        >>> sizing.saving({}, "0", 2)
        164.0
    """

    def __init__(self, network: Network, axes: Iterable[Axis], kind: str) -> None:
        axes = tuple(axes)
        self._sizes = {axis.name: axis.size for axis in axes}
        labels: dict[tuple[str, int], dict[str, np.ndarray]] = {}
        for axis in axes:
            for member in axis.members:
                labels.setdefault((member.name, member.dim), {})[axis.name] = member.units >= 0
        if kind == "macs":
            values, self._rest = macs_by_weight(network)
        else:
            values, self._rest = {n: float(p.numel()) for n, p in network.module.named_parameters()}, 0.0
        self._terms: dict[str, _Term] = {}
        self._touched: dict[str, list[str]] = {axis.name: [] for axis in axes}
        for name, value in values.items():
            shape = attribute(network.module, name).shape
            self._terms[name] = _Term(value, _dims(name, shape, labels))
            for axis_name in {a for _, parts in self._terms[name].dims for together, _ in parts for a in together}:
                self._touched[axis_name].append(name)

    def total(self, counts: Counts) -> float:
        """The cost when each axis keeps so many units; axes that are not named stay whole."""
        return self._rest + sum(self._value(term, counts) for term in self._terms.values())

    def saving(self, counts: Counts, axis: str, count: int) -> float:
        """How much less the network costs when `axis` goes from its number of units in `counts` to `count`."""
        fewer = {**counts, axis: count}
        terms = [self._terms[name] for name in self._touched[axis]]
        return sum(self._value(term, counts) - self._value(term, fewer) for term in terms)

    def _value(self, term: _Term, counts: Counts) -> float:
        """The cost of one weight when each axis keeps so many units, as `_Term` explains."""
        value = term.value
        for size, parts in term.dims:
            remaining = float(size)
            for together, positions in parts:
                share = 1.0
                for axis in together:
                    share *= counts.get(axis, self._sizes[axis]) / self._sizes[axis]
                remaining -= positions * (1.0 - share)
            value *= remaining / size
        return value


def _dims(
    name: str, shape: torch.Size, labels: dict[tuple[str, int], dict[str, np.ndarray]]
) -> tuple[tuple[int, tuple[tuple[tuple[str, ...], int], ...]], ...]:
    """Of each dimension with axes: its size, and how many of its positions go with each set of axes."""
    dims = []
    for dim, size in enumerate(shape):
        labels_of_dim = labels.get((name, dim), {})
        if not labels_of_dim:
            continue
        names = tuple(labels_of_dim)
        patterns, counts = np.unique(np.stack([labels_of_dim[n] for n in names]), axis=1, return_counts=True)
        parts = tuple(
            (tuple(n for n, inside in zip(names, pattern, strict=True) if inside), int(count))
            for pattern, count in zip(patterns.T, counts, strict=True)
            if pattern.any()
        )
        dims.append((int(size), parts))
    return tuple(dims)
