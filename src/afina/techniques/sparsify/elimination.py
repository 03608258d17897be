"""Which weights of a layer become zero, one column after the other, the error of each put right by those that follow.

With `H` the damped second moments of what the layer reads and U the upper Cholesky factor of its inverse, dropping
weight `w_j` of a row costs `w_j^2 / U_jj^2`, and the best change of the columns k > j is `- w_j / U_jj * U_jk`
(Frantar & Alistarh 2023, "SparseGPT", section 3; Hassibi & Stork 1993). Which weights of a block of columns go is
chosen when the block is reached, from the weights as they have become.
"""

import torch
from torch import Tensor

from afina.errors import AfinaError

_BLOCK = 64
_DAMPING = 1e-2


def eliminate(
    matrix: Tensor, moments: Tensor, sparsity: float, pattern: tuple[int, int] | None, order: Tensor, constant: bool
) -> Tensor:
    """A matrix with zeros, `[outputs, columns + 1]`; the last column is what is to be added to the constant.

    Args:
        matrix: `[outputs, columns]`.
        moments: Mean of `[x; 1] [x; 1]^T`, `[columns + 1, columns + 1]`.
        sparsity: Share of zeros, where there is no pattern.
        pattern: N and M; M divides the columns.
        order: In which order columns are gone through, and grouped by M.
        constant: Whether the layer can take a constant.

    Raises:
        AfinaError: the moments cannot be inverted.
    """
    count = len(order)
    # The constant comes last, so that it takes up what no weight can.
    index = torch.cat((order, torch.tensor([count], device=order.device)))
    factor = _factor(moments[index][:, index], constant)
    w = torch.nn.functional.pad(matrix[:, order], (0, 1)).to(factor)
    step = _BLOCK if pattern is None else max(pattern[1], _BLOCK // pattern[1] * pattern[1])
    for start in range(0, count, step):
        end = min(start + step, count)
        diagonal = factor.diagonal()[start:end]
        cost = (w[:, start:end] / diagonal).square()
        gone = _most_dispensable(cost, sparsity, pattern)
        errors = torch.zeros_like(cost)
        for j in range(start, end):
            dropped = gone[:, j - start]
            errors[:, j - start] = torch.where(dropped, w[:, j] / factor[j, j], 0.0)
            w[:, j:end] -= errors[:, j - start, None] * factor[j, j:end]
        w[:, end:] -= errors @ factor[start:end, end:]
        w[:, start:end][gone] = 0.0
    result = torch.empty_like(w)
    result[:, index] = w
    return result


def by_magnitude(matrix: Tensor, sparsity: float, pattern: tuple[int, int] | None, order: Tensor) -> Tensor:
    """The matrix `[outputs, columns]` with its smallest weights zero, the others as they are."""
    gone = _most_dispensable(matrix[:, order].square(), sparsity, pattern)
    result = matrix.clone()
    result[:, order] = matrix[:, order].masked_fill(gone, 0.0)
    return result


def _most_dispensable(cost: Tensor, sparsity: float, pattern: tuple[int, int] | None) -> Tensor:
    """True where a weight goes, `[outputs, columns]`."""
    if pattern is not None:
        kept, group = pattern
        grouped = cost.reshape(len(cost), -1, group)
        order = grouped.argsort(dim=2, stable=True)
        gone = torch.zeros_like(grouped, dtype=torch.bool)
        return gone.scatter_(2, order[:, :, : group - kept], True).reshape(cost.shape)
    number = round(sparsity * cost.numel())
    gone = torch.zeros(cost.numel(), dtype=torch.bool, device=cost.device)
    gone[cost.flatten().argsort(stable=True)[:number]] = True
    return gone.reshape(cost.shape)


def _factor(moments: Tensor, constant: bool) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped moments."""
    h = moments.double().clone()
    inputs = h.diagonal()[:-1]
    h.diagonal()[:-1] += _DAMPING * inputs.mean().clamp_min(1e-12)
    h.diagonal()[-1] += 1e-6
    if not constant:
        h[-1, :] = h[:, -1] = 0
        h[-1, -1] = 1
    lower, failed = torch.linalg.cholesky_ex(h)
    if int(failed):
        raise AfinaError(
            "What a layer reads on the calibration images could not be inverted.",
            fix="Use more calibration images, or the magnitude criterion.",
        )
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return upper
