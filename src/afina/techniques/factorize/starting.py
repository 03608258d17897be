"""The chain that `fitting.refine` starts from: a plain decomposition of the weight, scaled by its separable metric.

A plain decomposition (SVD, HOSVD, TT-SVD, CP) is the nearest where all inputs count the same. Where the metric is a
product `C_i x C_h x C_w` of moments over inputs, rows and columns of the kernel, it is the nearest to the weight times
the square roots of the three, and each factor is then multiplied by the inverse roots of the letters that it has.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import mul

import torch
from torch import Tensor

from afina.techniques.factorize.forms import FORMS
from afina.techniques.factorize.problem import Problem, shares

_TINY, _RIDGE = 1e-12, 1e-10
# Rounds of alternating least squares that a CP starts with; more than the fewest only within the work that is allowed.
_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 200


def start(problem: Problem, name: str, ranks: Sequence[int], work: float = math.inf) -> list[Tensor]:
    """Factors of form `name` that are about the nearest to the weight where the metric is `C_i x C_h x C_w`.

    Args:
        problem: The layer.
        name: One of `FORMS` but `svd`, which needs no start.
        ranks: One for each letter of the form's ranks.
        work: Multiply-accumulates that `cp`, which has no closed form, may take.
    """
    plain = partial(_cp, work=work) if name == "cp" else _PLAIN[name]
    factors = plain(problem, ranks)
    undone = problem.separable.undone
    return [undone(letters, factor) for letters, factor in zip(FORMS[name].factors, factors, strict=True)]


def input_energies(problem: Problem) -> Tensor:
    """The share of the outputs' squares that each principal component of the inputs has, largest first: `[inputs]`.

    The metric is taken for a product.
    """
    matrix = problem.scaled.transpose(0, 1).flatten(1)
    return shares(torch.linalg.eigvalsh(matrix @ matrix.T))


def _spatial(problem: Problem, ranks: Sequence[int]) -> list[Tensor]:
    """The truncated SVD of the matrix (outputs x width) by (inputs x height) (Jaderberg et al. 2014, scheme 2)."""
    outputs, inputs, height, width = problem.weight.shape
    left, sizes, right = problem.scaled_svd
    (rank,) = ranks
    first = (left[:, :rank] * sizes[:rank]).reshape(outputs, width, rank).transpose(1, 2)
    return [first, right[:rank].reshape(rank, inputs, height)]


def _tucker(problem: Problem, ranks: Sequence[int]) -> list[Tensor]:
    """HOSVD over outputs and inputs, with one round of orthogonal iteration (De Lathauwer et al. 2000)."""
    weight = problem.scaled
    outer, inner = ranks
    left = _leading(weight.flatten(1), outer)
    right = _leading(torch.tensordot(weight, left, dims=([0], [0])).permute(0, 3, 1, 2).flatten(1), inner)
    left = _leading(torch.tensordot(weight, right, dims=([1], [0])).flatten(1), outer)
    return [left, torch.einsum("oihw,or,is->rshw", weight, left, right), right.T]


def _tt(problem: Problem, ranks: Sequence[int]) -> list[Tensor]:
    """TT-SVD (Oseledets 2011, algorithm 1) over outputs, width, height, inputs."""
    weight = problem.scaled
    outputs, inputs, height, width = weight.shape
    outer, middle, inner = ranks
    rest = weight.permute(0, 3, 2, 1).reshape(outputs, -1)
    first = _leading(rest, outer)
    rest = (first.T @ rest).reshape(outer * width, height * inputs)
    second = _leading(rest, middle)
    rest = (second.T @ rest).reshape(middle * height, inputs)
    third = _leading(rest, inner)
    return [
        first,
        second.reshape(outer, width, middle).transpose(1, 2),
        third.reshape(middle, height, inner).transpose(1, 2),
        third.T @ rest,
    ]


def _cp(problem: Problem, ranks: Sequence[int], work: float) -> list[Tensor]:
    """Alternating least squares (Kolda and Bader 2009, "Tensor decompositions and applications", figure 3.3).

    With `W[o,i,h,w] = sum_r a[r,o] b[r,i] u[r,h] v[r,w]`, each factor in turn is the least-squares solution. What the
    weight times the new `a` is (`[rank, inputs, height, width]`) serves for the other three factors of a round.
    """
    weight, (rank,) = problem.scaled, ranks
    rounds = int(min(max(work / (4 * weight.numel() * rank), _FEWEST_ROUNDS), _MOST_ROUNDS))
    _, inputs, height, width = weight.shape
    flat = weight.flatten(1)
    _, b, u, v = (_cp_start(weight, place, rank) for place in range(4))
    for _ in range(rounds):
        chain = torch.einsum("ri,rh,rw->rihw", b, u, v).flatten(1)
        a = _solved((b, u, v), chain @ flat.T)
        without_outputs = (a @ flat).reshape(rank, inputs, height, width)
        b = _solved((a, u, v), torch.einsum("rihw,rh,rw->ri", without_outputs, u, v))
        kernels = torch.einsum("rihw,ri->rhw", without_outputs, b)
        u = _solved((a, b, v), torch.einsum("rhw,rw->rh", kernels, v))
        v = _solved((a, b, u), torch.einsum("rhw,rh->rw", kernels, u))
    return [a.T, v, u, b]


def _cp_start(weight: Tensor, place: int, rank: int) -> Tensor:
    """`[rank, size]`: leading singular vectors of a dimension; a rank above its size has random ones in addition."""
    leading = _leading(weight.movedim(place, 0).flatten(1), rank).T
    generator = torch.Generator().manual_seed(place)
    extra = torch.rand(rank - len(leading), leading.shape[1], generator=generator, dtype=torch.float64)
    return torch.cat([leading, extra.to(leading)])


# With rank 2 and `a` and `b` known, c[r,w] is to make sum_r a[r,o] b[r,i] c[r,w] near to W[o,i,w]. The normal equations
# have a matrix of rank x rank only: the moments of the vectors a[r] times b[r] (of outputs x inputs numbers each) are
# the products, entry by entry, of the moments of a and of b.
#
#     a = [[1, 0],     a a^T = [[1, 1],      b = [[1, 2],     b b^T = [[5, 5],      system = [[5,  5],
#          [1, 1]]              [1, 2]]           [1, 2]]              [5, 5]]                [5, 10]]
#
# Where two terms become the same in all factors, the system is singular: the ridge keeps the solution finite.
def _solved(others: Sequence[Tensor], product: Tensor) -> Tensor:
    """The factor `[rank, size]` that is the nearest with the others `[rank, sizes]` fixed.

    Args:
        others: The other three factors.
        product: The weight multiplied by the other three, `[rank, size]`.

    Example:
        >>> a, b, c = torch.tensor([[1.0, 0], [1, 1]]), torch.tensor([[1.0, 2], [1, 2]]), torch.tensor([[3.0], [4]])
        >>> weight = torch.einsum("ro,ri,rw->oiw", a, b, c)
        >>> _solved((a, b), torch.einsum("oiw,ro,ri->rw", weight, a, b)).numpy().round(3).tolist()
        [[3.0], [4.0]]
    """
    system = reduce(mul, (factor @ factor.T for factor in others))
    diagonal = system.diagonal()
    diagonal += _RIDGE * diagonal.mean()
    solved: Tensor = torch.linalg.solve(system, product)
    return solved


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors of a matrix, `[rows, rank]`, or all of them where there are fewer."""
    vectors: Tensor = torch.linalg.eigh(matrix @ matrix.T)[1]
    return vectors[:, -rank:].flip(1)


_PLAIN: dict[str, Callable[[Problem, Sequence[int]], list[Tensor]]] = {
    "spatial": _spatial, "tucker": _tucker, "tt": _tt,
}  # fmt: skip
