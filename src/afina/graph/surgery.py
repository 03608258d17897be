"""Removing units from a network: weights are sliced, and the numbers that the graph spells out are put right."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from afina.errors import InputError
from afina.graph.axes import Analysis, Axis
from afina.graph.axes.builder import Mask, RemainingPositions
from afina.graph.axes.labels import Expr
from afina.graph.network import Network
from afina.graph.propagate import refresh_meta
from afina.graph.stored import attribute

Masks = dict[str, list[Mask | None]]
Owners = dict[int, list[tuple[nn.Module, str]]]


def remove(network: Network, keep: Mapping[Axis, Sequence[int]], *, analysis: Analysis | None = None) -> Network:
    """A new network in which each axis keeps only the given units; the network itself is left as it was.

    The result answers as the original would with the weights that read the other units set to zero, and with the
    statistics of norms over normalised axes taken over the units that are left.

    Args:
        network: Any captured network.
        keep: For free axes of this network (`analyse`), the numbers of the units to keep; others stay whole.
        analysis: `Analysis(network)`, where it is at hand: saves computing it, which is most of the time.

    Raises:
        InputError: an axis is not a free axis of this network, a unit does not exist, or nothing would be left.

    Example:
        >>> from afina.graph import capture
        >>> from afina.graph.axes import analyse
        >>> from afina.types import InputSpec, TaskSpec
        >>> module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
        >>> network = capture(module, InputSpec(8, 8), TaskSpec("classification", ("cat", "dog")))
        >>> (axis,) = analyse(network).free
        >>> smaller = remove(network, {axis: [0, 3]})
        >>> [list(smaller.module.get_parameter(name).shape) for name in ("0.weight", "0.bias", "3.weight")]
        [[2, 3, 3, 3], [2], [2, 72]]
    """
    analysis = _checked(network, analysis)
    remaining = remaining_positions(analysis, keep)
    parts = _masks(analysis, remaining)
    twin = network.copy()
    twins = dict(zip(analysis.graph.nodes, twin.graph.nodes, strict=True))
    for number in analysis.rewritten_numbers:
        number.write(twins[number.node], remaining)
    owners = _owners(twin.module)
    for name, part in parts.items():
        _slice(twin.module, name, part, owners)
    twin.module.graph.lint()
    twin.module.recompile()
    refresh_meta(twin.module)
    return twin


def masks(network: Network, keep: Mapping[Axis, Sequence[int]], *, analysis: Analysis | None = None) -> Masks:
    """The positions of each weight that stay when each axis keeps only the given units; nothing is changed.

    Args:
        network, keep, analysis: The arguments of `remove`.

    Returns:
        For each parameter, buffer or constant that an op reads (by name, as in `Member.name`), one entry for each
        dimension: True where a position stays, or None where all of them do.

    Raises:
        InputError: for the same reasons as in `remove`.
    """
    analysis = _checked(network, analysis)
    return _masks(analysis, remaining_positions(analysis, keep))


def remaining_positions(analysis: Analysis, keep: Mapping[Axis, Sequence[int]]) -> RemainingPositions:
    """The positions that stay, of any dimension of the analysed graph, when each axis keeps only the given units."""
    class_remains = _remaining_classes(analysis, keep)

    def mask(expr: Expr) -> Mask:
        stays = np.ones(len(expr[0]), dtype=np.bool_)
        for array in analysis.solution.expand(expr):
            stays &= (array < 0) | class_remains[array]
        return stays

    return RemainingPositions(mask)


def _masks(analysis: Analysis, remaining: RemainingPositions) -> Masks:
    """The positions that stay of each stored tensor, as `masks` gives them. Raises `InputError` where none do."""
    if not all(remaining.mask(expr).any() for expr in analysis.needed):
        raise InputError("Nothing would be left for a norm to take statistics over.", fix="Keep more units.")
    masks: Masks = {}
    for name, dims in analysis.stored_dims.items():
        parts = [remaining.mask(expr) if expr else None for expr in dims]
        if any(part is not None and not part.any() for part in parts):
            raise InputError(f"Nothing would be left of {name}.", fix="Keep more units of the axes that it is part of.")
        masks[name] = [None if part is None or part.all() else part for part in parts]
    return masks


def _checked(network: Network, analysis: Analysis | None) -> Analysis:
    if analysis is not None and analysis.graph is not network.graph:
        raise InputError("The analysis is of another network.", fix="Make it with Analysis(network).")
    return analysis or Analysis(network)


def _remaining_classes(analysis: Analysis, keep: Mapping[Axis, Sequence[int]]) -> Mask:
    """For each class of labels, `[classes]`, whether it stays: all but the units that `keep` leaves out of its axes."""
    free = {axis.name: axis for axis in analysis.axes.free}
    remains = np.ones(len(analysis.solution.root), dtype=np.bool_)
    for axis, units in keep.items():
        free_axis = free.get(axis.name)
        if free_axis is None or free_axis.size != axis.size:
            raise InputError(
                f"{axis.name} is not a free axis of this network.",
                why="Axes belong to the network that they were found in.",
                fix="Take them from analyse(network).free.",
            )
        chosen = np.unique(np.asarray(units, dtype=np.int64))
        if chosen.size == 0 or chosen[0] < 0 or chosen[-1] >= free_axis.size:
            raise InputError(
                f"The units to keep of {axis.name} must be one or more of 0 to {free_axis.size - 1}.",
                why=f"Given were {chosen.size}, from {chosen.min(initial=0)} to {chosen.max(initial=0)}.",
            )
        classes = analysis.classes[axis.name]
        remains[classes] = False
        remains[classes[chosen]] = True
    return remains


def _slice(module: nn.Module, name: str, parts: list[Mask | None], owners: Owners) -> None:
    """Keep the masked positions of a parameter, buffer or constant, under all its names."""
    old = attribute(module, name)
    new: Tensor = old.detach()
    for dim, mask in enumerate(parts):
        if mask is not None:
            new = new.index_select(dim, torch.from_numpy(np.flatnonzero(mask)).to(new.device))
    if new.shape == old.shape:
        return
    replacement = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
    for owner, key in owners[id(old)]:
        setattr(owner, key, replacement)


def _owners(module: nn.Module) -> Owners:
    """The modules and attribute names that hold each tensor, by the tensor's identity."""
    owners: Owners = {}
    for owner in module.modules():
        for key, value in [*owner._parameters.items(), *owner._buffers.items(), *vars(owner).items()]:
            if isinstance(value, Tensor):
                owners.setdefault(id(value), []).append((owner, key))
    return owners
