"""`Problem`: one layer that is to be written as a chain, and the metric in which the chain is to be near.

With `C` the second moments of the rows that the layer reads, a chain that stands for the weight V changes the layer's
outputs by `tr((W - V) C (W - V)^T)` in the mean of the squares.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from afina.graph.statistics import Moments, Reader

_DAMPING = 1e-4
# Rows for each column of a metric, below which more is added to its diagonal.
_ENOUGH = 4
_TINY = 1e-12


@dataclass(frozen=True)
class Problem:
    """A layer, or one group of a grouped one.

    What chains of all forms and ranks need of it (products with the metric, decompositions) is worked out once.

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

    @cached_property
    def weighted(self) -> Tensor:
        """The matrix times the metric."""
        return self.times_metric(self.matrix)

    @cached_property
    def principal_outputs(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (in rising order) and eigenvectors of the outputs' second moments, `W C W^T`."""
        values, vectors = torch.linalg.eigh(self.weighted @ self.matrix.T)
        return values, vectors

    @cached_property
    def squares(self) -> float:
        """The mean square of the outputs, summed over them."""
        return max(float((self.weighted * self.matrix).sum()), _TINY)

    def error(self, approximation: Tensor) -> float:
        """Squared error of the outputs with another weight (of the same shape), as a share of the outputs' squares."""
        gap = (approximation - self.weight).flatten(1)
        return float((self.times_metric(gap) * gap).sum()) / self.squares

    def output_energies(self) -> Tensor:
        """The share of the outputs' squares that each of their principal components has, largest first: `[outputs]`."""
        return shares(self.principal_outputs[0])

    @cached_property
    def separable(self) -> "SeparableMetric":
        """The metric as a product of moments over inputs, rows and columns of the kernel."""
        return SeparableMetric(self)

    @cached_property
    def scaled(self) -> Tensor:
        """The weight times the square roots of its separable metric: where all inputs count about the same."""
        return self.separable.applied(self.weight)

    @cached_property
    def scaled_svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """The SVD of the scaled weight as a matrix (outputs x width) by (inputs x height)."""
        outputs, inputs, height, width = self.weight.shape
        left, sizes, right = torch.linalg.svd(
            self.scaled.permute(0, 3, 1, 2).reshape(outputs * width, inputs * height), full_matrices=False
        )
        return left, sizes, right


# Two inputs and a kernel of 1 x 2 make four columns, (input, pixel) 00 01 10 11, with the metric
#
#     C = [[5, 1, 4, 0.8],      C_i[i,j] = C[i0,j0] + C[i1,j1] = [[10, 8],       the trace of each 2 x 2 block
#          [1, 5, 0.8, 4],                                        [8, 10]]
#          [4, 0.8, 5, 1],      C_w[v,w] = C[0v,0w] + C[1v,1w] = [[10, 2],       the sum of the blocks on the diagonal
#          [0.8, 4, 1, 5]]                                        [2, 10]]
#
# and C_h = [[20]]. C is (C_i x C_h x C_w) / 400 here; other metrics are near to such a product only, which is why what
# it gives is a start. The factor 400 does not matter: the nearest chain is the same for every multiple of a metric.
class SeparableMetric:
    """A problem's metric taken for a product `C_i x C_h x C_w`: the square roots of the three, and their inverses.

    Args:
        problem: The problem; its metric is not in blocks.
    """

    def __init__(self, problem: Problem) -> None:
        _, inputs, height, width = problem.weight.shape
        assert problem.metric.ndim == 2  # a matrix that is taken in blocks has the svd alone
        moments = problem.metric.reshape(inputs, height, width, inputs, height, width)
        parts = {
            "i": torch.einsum("ihwjhw->ij", moments),
            "h": torch.einsum("ihwigw->hg", moments),
            "w": torch.einsum("ihwihv->wv", moments),
        }
        self._roots = {letter: root_of(part) for letter, part in parts.items()}

    def applied(self, weight: Tensor) -> Tensor:
        """A weight `[outputs, inputs, height, width]` times the square roots."""
        for letter, (root, _) in self._roots.items():
            weight = _times(weight, "oihw".index(letter), root)
        return weight

    def undone(self, letters: str, factor: Tensor) -> Tensor:
        """A factor times the inverse roots of the letters that it has, each the name of one of its dimensions."""
        for place, letter in enumerate(letters):
            if letter in self._roots:
                factor = _times(factor, place, self._roots[letter][1])
        return factor


def root_of(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of a symmetric matrix, and the inverse of that root.

    Example:
        >>> root, inverse = root_of(torch.tensor([[5.0, 4.0], [4.0, 5.0]]))
        >>> root.numpy().round(3).tolist(), (3 * inverse).numpy().round(3).tolist()
        ([[2.0, 1.0], [1.0, 2.0]], [[2.0, -1.0], [-1.0, 2.0]])
    """
    values, vectors = torch.linalg.eigh(moments)
    sizes = values.clamp_min(values[-1].clamp_min(_TINY) * 1e-6).sqrt()
    return (vectors * sizes) @ vectors.T, (vectors / sizes) @ vectors.T


def _times(tensor: Tensor, place: int, matrix: Tensor) -> Tensor:
    """A tensor with one of its dimensions multiplied by a matrix `[size, size]`."""
    product: Tensor = torch.tensordot(tensor, matrix, dims=([place], [0]))
    return product.movedim(-1, place)


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
        metric = torch.baddbmm(metric, h[:, :-1, -1:], h[:, -1:, :-1], alpha=-1)
    # Of few rows a metric is nearly singular: by it a chain of as low a rank would lose nothing. What was not seen then
    # counts by its weight, as without images: eight images of 4 positions say little of a layer of 4608 columns.
    scarce = max(1.0, _ENOUGH * metric.shape[-1] / max(moments.rows, 1)) ** 2
    extra = _DAMPING * scarce * metric.diagonal(dim1=1, dim2=2).mean().clamp_min(_TINY)
    metric.diagonal(dim1=1, dim2=2).add_(extra)
    return [metric] if reader.blocks > 1 else list(metric)


def _as_kernel(weight: Tensor) -> Tensor:
    """A weight with any kernel, or none, as `[outputs, inputs, height, width]`."""
    if weight.ndim == 4:
        return weight
    return weight.reshape(weight.shape[0], weight.shape[1], -1, 1) if weight.ndim > 2 else weight[:, :, None, None]
