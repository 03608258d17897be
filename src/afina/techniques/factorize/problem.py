"""`Problem`: one layer that is to be written as a chain, and the metric in which the chain is to be near."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from afina.graph.statistics import Moments, Reader

_DAMPING = 1e-4
_TINY = 1e-12


@dataclass(frozen=True)
class Problem:
    """A layer, or one group of a grouped one.

    Attributes:
        weight: `[outputs, inputs, height, width]`; layers with no two-dimensional kernel have all of it in `height`.
        metric: Second moments of the rows, damped: `[columns, columns]`, or `[blocks, width, width]` where a wide
            linear layer is taken in blocks of inputs.
    """

    weight: Tensor
    metric: Tensor

    @property
    def matrix(self) -> Tensor:
        """The weight as `[outputs, columns]`."""
        return self.weight.flatten(1)

    def seen(self, rows: Tensor) -> Tensor:
        """Rows `[n, columns]` times the metric."""
        if self.metric.ndim == 2:
            return rows @ self.metric
        blocks, width, _ = self.metric.shape
        padded = F.pad(rows, (0, blocks * width - rows.shape[1])).reshape(len(rows), blocks, width)
        return torch.einsum("nbw,bwv->nbv", padded, self.metric).flatten(1)[:, : rows.shape[1]]

    def error(self, found: Tensor) -> float:
        """Squared error of the outputs with another weight, as a share of their own squares."""
        gap, own = (found - self.weight).flatten(1), self.matrix
        return float((self.seen(gap) * gap).sum() / (self.seen(own) * own).sum().clamp_min(_TINY))

    def output_energies(self) -> Tensor:
        """Of each principal component of the outputs, the share of their squares, largest first."""
        own = self.matrix
        return shares(torch.linalg.eigvalsh(self.seen(own) @ own.T))


def shares(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues as shares of their sum, largest first."""
    values: Tensor = eigenvalues.flip(0).clamp_min(0)
    return values / values.sum().clamp_min(_TINY)


def problems_of(reader: Reader, weight: Tensor, moments: Moments | None) -> list[Problem]:
    """One problem for each group of a layer.

    The metric is that of the rows around their mean where a constant can be added to the outputs, which then makes up
    for what the mean loses; without moments every input counts the same.
    """
    groups = weight.detach().chunk(reader.groups)
    metrics = _metrics(reader, moments, weight)
    return [Problem(_as_kernel(part).to(metric), metric) for part, metric in zip(groups, metrics, strict=True)]


def lost_constant(reader: Reader, gap: Tensor, moments: Moments) -> Tensor:
    """What the outputs lose on average, `[outputs]`, where the weight loses `gap`."""
    matrices = reader.matrices(gap).to(moments.xx)
    means = moments.xx[:, -1, :-1] / moments.rows
    lost = torch.einsum("son,sn->so", matrices, means)
    return lost.sum(0) if reader.blocks > 1 else lost.flatten()


def _metrics(reader: Reader, moments: Moments | None, weight: Tensor) -> list[Tensor]:
    if moments is None:
        dtype = torch.float64 if reader.inputs <= 1024 else torch.float32
        return [torch.eye(reader.inputs, dtype=dtype, device=weight.device)] * reader.groups
    h = moments.xx / max(moments.rows, 1)
    metric = h[:, :-1, :-1]
    if reader.takes_constant:
        metric = metric - h[:, :-1, -1:] * h[:, -1:, :-1]
    extra = _DAMPING * metric.diagonal(dim1=1, dim2=2).mean().clamp_min(_TINY)
    metric = metric + extra * torch.eye(metric.shape[-1]).to(metric)
    return [metric] if reader.blocks > 1 else list(metric)


def _as_kernel(weight: Tensor) -> Tensor:
    if weight.ndim == 4:
        return weight
    return weight.reshape(weight.shape[0], weight.shape[1], -1, 1) if weight.ndim > 2 else weight[:, :, None, None]
