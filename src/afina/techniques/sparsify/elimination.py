"""Which weights of a layer become zero, column by column; the columns that follow make up for the error of each.

With `H` the damped second moments of what the layer reads and U the upper Cholesky factor of its inverse, dropping
weight `w_j` of a row costs `w_j^2 / U_jj^2`, and the best change of the columns k > j is `- w_j / U_jj * U_jk`
(Frantar & Alistarh 2023, "SparseGPT", section 3; Hassibi & Stork 1993). Which weights of a block of columns go is
chosen when the block is reached, from the weights as they are by then.

One output reads `y = 2 x0 + 3 x1 + 1.5 x2`, where the first two inputs resemble each other:

    H = [[5, 4, 0],     H^-1 = [[ 0.56, -0.44, 0  ],     U = [[0.75, -0.6, 0   ],     U^T U = H^-1
         [4, 5, 0],             [-0.44,  0.56, 0  ],          [0,     0.45, 0   ],
         [0, 0, 5]]             [ 0,     0,    0.2]]          [0,     0,    0.45]]

    w                2          3            1.5
    w^2 / U_jj^2     7.2        45           11.25

With one of three weights to go, the first one goes: `w <- w - 2 / 0.75 * [0.75, -0.6, 0] = [0, 4.6, 1.5]`, where the
second takes over 4/5 of it. The second can pass its error on to the third only, as the first is done with: its cost is
45, and not the 16.2 that it would be with the first to help. That is the price of one order of columns for all outputs:
with it, one U serves all of them, whichever weights they lose.
"""

import torch
from torch import Tensor

from afina.errors import AfinaError

_BLOCK = 64
_DAMPING = 1e-2
_DOUBLE_UP_TO = 1025


def eliminate(
    matrix: Tensor, factor: Tensor, sparsity: float, pattern: tuple[int, int] | None, order: Tensor
) -> Tensor:
    """A matrix with zeros, `[outputs, columns + 1]`; its last column is to be added to the layer's constant.

    Args:
        matrix: The layer's matrix, `[outputs, columns]`.
        factor: As `factor_of` gives it for these columns.
        sparsity: Share of zeros, where there is no pattern; each block of 64 columns gets this share.
        pattern: N and M; M divides the number of columns.
        order: The columns in the order in which they are gone through, and grouped by M.

    Example:
        >>> h = torch.tensor([[5.0, 4, 0, 0], [4, 5, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1]])
        >>> factor = factor_of(h, torch.arange(3), constant=False)
        >>> sparse = eliminate(torch.tensor([[2, 3, 1.5]]), factor, 1 / 3, None, torch.arange(3))
        >>> sparse.numpy().round(1)
        array([[0. , 4.6, 1.5, 0. ]])
    """
    count = len(order)
    w = torch.nn.functional.pad(matrix[:, order], (0, 1)).to(factor)
    step = _BLOCK if pattern is None else max(pattern[1], _BLOCK // pattern[1] * pattern[1])
    for start in range(0, count, step):
        end = min(start + step, count)
        diagonal = factor.diagonal()[start:end]
        cost = (w[:, start:end] / diagonal).square()
        dropped = _most_dispensable(cost, sparsity, pattern)
        errors = torch.zeros_like(cost)
        for j in range(start, end):
            errors[:, j - start] = torch.where(dropped[:, j - start], w[:, j] / factor[j, j], 0.0)
            w[:, j:end] -= errors[:, j - start, None] * factor[j, j:end]
        w[:, end:] -= errors @ factor[start:end, end:]
        w[:, start:end][dropped] = 0.0
    result = torch.empty_like(w)
    result[:, _with_constant(order)] = w
    return result


def by_magnitude(matrix: Tensor, sparsity: float, pattern: tuple[int, int] | None, order: Tensor) -> Tensor:
    """The matrix `[outputs, columns]` with its smallest weights zero, the others as they are.

    Example:
        >>> matrix = torch.tensor([[4.0, -1.0, 2.0, 3.0], [0.5, 6.0, -7.0, 8.0]])
        >>> by_magnitude(matrix, 0.0, (2, 4), torch.arange(4)).tolist()
        [[4.0, 0.0, 0.0, 3.0], [0.0, 0.0, -7.0, 8.0]]
        >>> by_magnitude(matrix, 0.25, None, torch.arange(4)).tolist()
        [[4.0, 0.0, 2.0, 3.0], [0.0, 6.0, -7.0, 8.0]]
    """
    dropped = _most_dispensable(matrix[:, order].square(), sparsity, pattern)
    result = matrix.clone()
    result[:, order] = matrix[:, order].masked_fill(dropped, 0.0)
    return result


def _most_dispensable(cost: Tensor, sparsity: float, pattern: tuple[int, int] | None) -> Tensor:
    """True where a weight is dropped, `[outputs, columns]`: where it costs least."""
    if pattern is not None:
        n, m = pattern
        grouped = cost.reshape(len(cost), -1, m)
        order = grouped.argsort(dim=2, stable=True)
        dropped = torch.zeros_like(grouped, dtype=torch.bool)
        return dropped.scatter_(2, order[:, :, : m - n], True).reshape(cost.shape)
    number = round(sparsity * cost.numel())
    dropped = torch.zeros(cost.numel(), dtype=torch.bool, device=cost.device)
    dropped[cost.flatten().argsort(stable=True)[:number]] = True
    return dropped.reshape(cost.shape)


def factor_of(moments: Tensor, order: Tensor, constant: bool) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped moments, in an order of columns: it serves any sparsity.

    Where the layer cannot take a constant, the last row and column are those of the identity.

    Args:
        moments: Mean of `[x; 1] [x; 1]^T`, `[columns + 1, columns + 1]`.
        order: The columns in the order in which they are gone through.
        constant: Whether the layer can take a constant.

    Returns:
        `[columns + 1, columns + 1]`; of wide layers in single precision, which is twice as fast to work with.

    Raises:
        AfinaError: the moments cannot be inverted.
    """
    index = _with_constant(order)
    h = moments[index][:, index].double()
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
    return upper if len(upper) <= _DOUBLE_UP_TO else upper.float()


def _with_constant(order: Tensor) -> Tensor:
    """The constant comes last, so that it takes up what no weight can."""
    return torch.cat((order, torch.tensor([len(order)], device=order.device)))
