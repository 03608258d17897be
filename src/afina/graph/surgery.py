"""Removing units from a network: weights are sliced, and the numbers that the graph spells out are put right."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from afina.errors import InputError
from afina.graph.axes import Analysis, Axis
from afina.graph.axes.labels import Expr
from afina.graph.network import Network
from afina.graph.propagate import attribute, refresh_meta

Mask = NDArray[np.bool_]
Owners = dict[int, list[tuple[nn.Module, str]]]


def remove(network: Network, keep: Mapping[Axis, Sequence[int]]) -> Network:
    """A new network in which each axis keeps only the given units; the network itself is left as it was.

    The result answers as the original would with the weights that read the other units set to zero.

    Args:
        network: Any captured network.
        keep: For free axes of this network (`analyse`), the numbers of the units to keep; others stay whole.

    Raises:
        InputError: an axis is not a free axis of this network, a unit does not exist, or nothing would be left.
    """
    twin = network.copy()
    analysis = Analysis(twin.module, twin.input.shape)
    kept = _kept_classes(analysis, keep)

    def mask(expr: Expr) -> Mask:
        stays = np.ones(len(expr[0]), dtype=np.bool_)
        for array in analysis.solution.expand(expr):
            stays &= (array < 0) | kept[array]
        return stays

    owners = _owners(twin.module)
    for respelling in analysis.respellings:
        respelling.write(lambda expr: int(mask(expr).sum()))
    for name, dims in analysis.held.items():
        _slice(twin.module, name, [mask(expr) if expr else None for expr in dims], owners)
    twin.module.graph.lint()
    twin.module.recompile()
    refresh_meta(twin.module)
    return twin


def _kept_classes(analysis: Analysis, keep: Mapping[Axis, Sequence[int]]) -> Mask:
    free = {axis.name: axis for axis in analysis.axes.free}
    kept = np.ones(len(analysis.solution.root), dtype=np.bool_)
    for axis, units in keep.items():
        own = free.get(axis.name)
        if own is None or own.size != axis.size:
            raise InputError(
                f"{axis.name} is not a free axis of this network.",
                why="Axes belong to the network that they were found in.",
                fix="Take them from analyse(network).free.",
            )
        chosen = np.unique(np.asarray(units, dtype=np.int64))
        if chosen.size == 0 or chosen[0] < 0 or chosen[-1] >= own.size:
            raise InputError(
                f"The units to keep of {axis.name} must be one or more of 0 to {own.size - 1}.",
                why=f"Given were {chosen.size}, from {chosen.min(initial=0)} to {chosen.max(initial=0)}.",
            )
        classes = analysis.classes[axis.name]
        kept[classes] = False
        kept[classes[chosen]] = True
    return kept


def _slice(module: nn.Module, name: str, masks: list[Mask | None], owners: Owners) -> None:
    """Keep the masked positions of a parameter, buffer or constant, under all its names."""
    old = attribute(module, name)
    new: Tensor = old.detach()
    for dim, mask in enumerate(masks):
        if mask is not None and not mask.all():
            if not mask.any():
                raise InputError(
                    f"Nothing would be left of {name}.", fix="Keep more units of the axes that it is part of."
                )
            new = new.index_select(dim, torch.from_numpy(np.flatnonzero(mask)).to(new.device))
    if new.shape == old.shape:
        return
    replacement = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
    for owner, key in owners[id(old)]:
        setattr(owner, key, replacement)


def _owners(module: nn.Module) -> Owners:
    """Where each tensor of the module is held, by its identity."""
    owners: Owners = {}
    for owner in module.modules():
        for key, value in [*owner._parameters.items(), *owner._buffers.items(), *vars(owner).items()]:
            if isinstance(value, Tensor):
                owners.setdefault(id(value), []).append((owner, key))
    return owners
