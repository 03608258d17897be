"""Refitting a changed network, layer by layer in the order of the graph, to the outputs that its layers had before.

For a layer that now reads rows x' where it read x, the weights nearest to its old outputs `y = W x` are
`argmin_V sum |y - V x'|^2 + r |V - V0|^2`, with V0 the weights that it has: ordinary least squares drawn to V0. As
layers are taken in order, x' holds the errors of those before, which the later ones correct.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from afina.graph.network import Network
from afina.graph.statistics.moments import Moments
from afina.graph.statistics.readers import Reader, find_readers
from afina.graph.statistics.sweep import moments_in_turn
from afina.graph.stored import attribute
from afina.progress import Progress

_RIDGE = 1e-3


def refit(
    original: Network,
    pruned: Network,
    outputs: Mapping[str, Tensor | None],
    calibration: Callable[[], Iterable[Tensor]],
    count: int,
    progress: Progress,
) -> list[str]:
    """Refit the weights of `pruned`, in place, to the outputs that the same layers have in `original`.

    Args:
        original: The network before.
        pruned: The same network with units or weights gone.
        outputs: For each weight, the indices of the outputs that it still has; None for all.
        calibration: Gives a fresh stream of images at each call.
        count: About how many images that is.
        progress: Shows how many layers are done.

    Returns:
        The names of the layers that were refitted.
    """
    readers = {name: reader for name, reader in find_readers(pruned).items() if reader.blocks == 1}
    done: list[str] = []
    with progress.work("Refitting layers", len(readers)) as bar:
        for measured, _ in moments_in_turn(original, pruned, readers, outputs, calibration, count):
            for name, moments in measured.items():
                solve(pruned, readers[name], moments, constant_of(original, pruned, readers[name], outputs.get(name)))
                done.append(readers[name].name)
            bar.advance(len(measured))
    return done


def solve(network: Network, reader: Reader, moments: Moments, constant: Tensor) -> None:
    """Put the least-squares weights of one layer into the network.

    Args:
        network: Changed in place.
        reader: The layer.
        moments: The moments of its inputs, with `xy` to the outputs that it should have.
        constant: The constant that it adds to its outputs now, `[outputs]`.
    """
    matrices, change = _best_matrices(network, reader, moments, constant)
    weight = attribute(network.module, reader.weight)
    with torch.no_grad():
        weight.copy_(reader.from_matrices(matrices, weight))
        if reader.takes_constant:
            add_constant(network, reader, change)


def _best_matrices(network: Network, reader: Reader, moments: Moments, constant: Tensor) -> tuple[Tensor, Tensor]:
    """The least-squares matrices `[stack, outputs, columns]` of a layer, and the change of its constant `[outputs]`."""
    assert moments.xy is not None
    weight = attribute(network.module, reader.weight)
    # One copy of the widest matrices: of 4608 columns it has 170 MB.
    system = moments.xx.to(torch.float64, copy=True).div_(moments.rows)
    wanted = moments.xy.double() / moments.rows
    now = reader.matrices(weight.detach()).double()
    constant = constant.to(now).reshape(*now.shape[:2], 1)
    if not reader.takes_constant:
        system, wanted = system[:, :-1, :-1], wanted[:, :-1]
    else:
        now = torch.cat((now, constant), dim=2)
    # The gradient of sum |y - V x'|^2 + r |V - V0|^2 is zero where (xx + R) V^T = xy + R V0^T, with xx = sum x' x'^T,
    # xy = sum x' y^T and R = diag(r): ridge regression (Hoerl & Kennard 1970), drawn to V0 in the place of zero.
    diagonal = system.diagonal(dim1=1, dim2=2)
    # A layer that saw few rows for its width is drawn harder to the weights that it has.
    ridge = _RIDGE * max(1.0, 4 * system.shape[1] / moments.rows) * diagonal.mean(1, keepdim=True).clamp_min(1e-12)
    ridge = ridge + torch.zeros_like(diagonal)
    if reader.takes_constant:
        ridge[:, -1] = _RIDGE
    wanted = wanted + ridge[:, :, None] * now.transpose(1, 2)
    diagonal += ridge
    factor, failed = torch.linalg.cholesky_ex(system)  # half the work of the general way
    solved = torch.linalg.solve(system, wanted) if bool(failed.any()) else torch.cholesky_solve(wanted, factor)
    solved = solved.transpose(1, 2)
    if not reader.takes_constant:
        return solved, torch.zeros(reader.shape[0])
    return solved[:, :, :-1], (solved[:, :, -1:] - constant).flatten()


def write_matrices(network: Network, reader: Reader, matrices: Tensor, positions: Sequence[Tensor | None]) -> None:
    """Write refitted matrices `[stack, outputs, columns + 1]`, of the whole layer, into the layer as it is now.

    Args:
        network: Changed in place.
        reader: The layer before.
        matrices: The weights; the last column holds the change of the layer's constant.
        positions: For each dimension of the weight, the positions that the layer still has; None for all.
    """
    weight = attribute(network.module, reader.weight)
    whole = reader.from_matrices(matrices[:, :, :-1], torch.empty(reader.shape, device=weight.device))
    # The constant of a wide layer is shared by its blocks.
    constant = matrices[:, :, -1].sum(0) if reader.blocks > 1 else matrices[:, :, -1].flatten()
    for dim, index in enumerate(positions):
        if index is not None:
            whole = whole.index_select(dim, index.to(whole.device))
    if positions[0] is not None:
        constant = constant[positions[0].to(constant.device)]
    with torch.no_grad():
        weight.copy_(whole)
        add_constant(network, reader, constant)


def constant_of(original: Network, network: Network, reader: Reader, outputs: Tensor | None) -> Tensor:
    """The constant `[outputs]` that a layer adds now: its bias, or how much lower the mean of the norm behind it is."""
    if reader.bias is not None:
        bias: Tensor = attribute(network.module, reader.bias)
        return bias.detach()
    if reader.shift is None:
        return torch.zeros(reader.shape[0])
    before: Tensor = attribute(original.module, reader.shift)
    now: Tensor = attribute(network.module, reader.shift)
    return (before if outputs is None else before[outputs.to(before.device)]).detach() - now.detach()


def add_constant(network: Network, reader: Reader, change: Tensor) -> None:
    """Add `change` `[outputs]` to a layer's outputs: to its bias, or by lowering the mean that its norm subtracts."""
    if reader.bias is not None:
        bias = attribute(network.module, reader.bias)
        bias += change.to(bias)
    elif reader.shift is not None:
        mean = attribute(network.module, reader.shift)
        mean -= change.to(mean)
