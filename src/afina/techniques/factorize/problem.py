"""`Problem`: one layer that is to be written as a chain, and the metric in which the chain is to be near.

With `C` the second moments of the rows that the layer reads, a chain that stands for the weight V changes the layer's
outputs by `tr((W - V) C (W - V)^T)` in the mean of the squares.
"""

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

    Example:
        >>> weight = torch.tensor([[2.0, 0.0], [0.0, 1.0]])[:, :, None, None]  # the second input varies more
        >>> problem = Problem(weight, torch.tensor([[1.0, 0.0], [0.0, 9.0]]))
        >>> problem.output_energies()  # 9 and 4 of 13
        tensor([0.6923, 0.3077])
        >>> without_first = weight * torch.tensor([0.0, 1.0])[:, None, None, None]
        >>> round(problem.error(without_first), 4)
        0.3077
    """

    weight: Tensor
    metric: Tensor

    @property
    def matrix(self) -> Tensor:
        """The weight as `[outputs, columns]`."""
        return self.weight.flatten(1)

    def times_metric(self, rows: Tensor) -> Tensor:
        """Rows `[n, columns]` times the metric: `[n, columns]`."""
        if self.metric.ndim == 2:
            return rows @ self.metric
        blocks, width, _ = self.metric.shape
        padded = F.pad(rows, (0, blocks * width - rows.shape[1])).reshape(len(rows), blocks, width)
        return torch.einsum("nbw,bwv->nbv", padded, self.metric).flatten(1)[:, : rows.shape[1]]

    def error(self, approximation: Tensor) -> float:
        """Squared error of the outputs with another weight (of the same shape), as a share of the outputs' squares."""
        gap, matrix = (approximation - self.weight).flatten(1), self.matrix
        return float((self.times_metric(gap) * gap).sum() / (self.times_metric(matrix) * matrix).sum().clamp_min(_TINY))

    def output_energies(self) -> Tensor:
        """The share of the outputs' squares that each of their principal components has, largest first: `[outputs]`."""
        return shares(torch.linalg.eigvalsh(self.times_metric(self.matrix) @ self.matrix.T))


def shares(eigenvalues: Tensor) -> Tensor:
    """Eigenvalues (in rising order, as torch gives them) as shares of their sum, largest first."""
    values: Tensor = eigenvalues.flip(0).clamp_min(0)
    return values / values.sum().clamp_min(_TINY)


def problems_of(reader: Reader, weight: Tensor, moments: Moments | None) -> list[Problem]:
    """One problem for each group of a layer.

    Args:
        reader: The layer.
        weight: Its weight, in its shape.
        moments: What it reads; None where there are no images, and the metric is the identity.

    Returns:
        The problems, with the moments of the rows around their mean where a constant can be added to the outputs: it
        makes up for what the chain loses of the mean (`lost_constant`).
    """
    groups = weight.detach().chunk(reader.groups)
    metrics = _metrics(reader, moments, weight)
    return [Problem(_as_kernel(part).to(metric), metric) for part, metric in zip(groups, metrics, strict=True)]


def lost_constant(reader: Reader, gap: Tensor, moments: Moments) -> Tensor:
    """What the outputs lose on average, `[outputs]`, where the weight loses `gap` (a tensor of its shape)."""
    matrices = reader.matrices(gap).to(moments.xx)
    means = moments.xx[:, -1, :-1] / moments.rows
    lost = torch.einsum("son,sn->so", matrices, means)
    return lost.sum(0) if reader.blocks > 1 else lost.flatten()


def _metrics(reader: Reader, moments: Moments | None, weight: Tensor) -> list[Tensor]:
    """The metric of each group (see `Problem.metric`)."""
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
    """A weight with any kernel, or none, as `[outputs, inputs, height, width]`."""
    if weight.ndim == 4:
        return weight
    return weight.reshape(weight.shape[0], weight.shape[1], -1, 1) if weight.ndim > 2 else weight[:, :, None, None]
