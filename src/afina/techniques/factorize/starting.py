"""Where the search for a chain starts: a plain decomposition of the weight, scaled by moments taken for a product."""

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
_FEWEST_ROUNDS, _MOST_ROUNDS = 10, 200


def start(problem: Problem, name: str, ranks: Sequence[int], work: float = math.inf) -> list[Tensor]:
    """Factors of form `name`: nearest to the weight where the metric is `C_i x C_h x C_w`.

    The form `cp`, which has no such minimum in closed form, is near to it after `work` multiply-accumulates.
    """
    scaled, undo = _scaled(problem)
    plain = partial(_cp, work=work) if name == "cp" else _PLAIN[name]
    factors = plain(scaled, ranks)
    return [undo(letters, factor) for letters, factor in zip(FORMS[name].factors, factors, strict=True)]


def input_energies(problem: Problem) -> Tensor:
    """Of each principal component of the inputs, the share of the outputs' squares, largest first, where the metric is
    taken for a product."""
    scaled, _ = _scaled(problem)
    matrix = scaled.transpose(0, 1).flatten(1)
    return shares(torch.linalg.eigvalsh(matrix @ matrix.T))


def _scaled(problem: Problem) -> tuple[Tensor, Callable[[str, Tensor], Tensor]]:
    """The weight times the square roots of its separable metric, and what takes them from a factor again."""
    _, inputs, height, width = problem.weight.shape
    assert problem.metric.ndim == 2  # a matrix that is taken in blocks has the svd alone
    moments = problem.metric.reshape(inputs, height, width, inputs, height, width)
    parts = {
        "i": torch.einsum("ihwjhw->ij", moments),
        "h": torch.einsum("ihwigw->hg", moments),
        "w": torch.einsum("ihwihv->wv", moments),
    }
    roots = {letter: _root(part) for letter, part in parts.items()}
    scaled = problem.weight
    for letter, (root, _) in roots.items():
        scaled = _times(scaled, "oihw".index(letter), root)

    def undo(letters: str, factor: Tensor) -> Tensor:
        for place, letter in enumerate(letters):
            if letter in roots:
                factor = _times(factor, place, roots[letter][1])
        return factor

    return scaled, undo


def _root(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of a symmetric matrix, and the inverse of that."""
    values, vectors = torch.linalg.eigh(moments)
    sizes = values.clamp_min(values[-1].clamp_min(_TINY) * 1e-6).sqrt()
    return (vectors * sizes) @ vectors.T, (vectors / sizes) @ vectors.T


def _times(tensor: Tensor, place: int, matrix: Tensor) -> Tensor:
    product: Tensor = torch.tensordot(tensor, matrix, dims=([place], [0]))
    return product.movedim(-1, place)


def _spatial(weight: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    outputs, inputs, height, width = weight.shape
    matrix = weight.permute(0, 3, 1, 2).reshape(outputs * width, inputs * height)
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
    (rank,) = ranks
    first = (left[:, :rank] * sizes[:rank]).reshape(outputs, width, rank).transpose(1, 2)
    return [first, right[:rank].reshape(rank, inputs, height)]


def _tucker(weight: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """HOSVD over outputs and inputs, with one round of orthogonal iteration (De Lathauwer et al. 2000)."""
    outer, inner = ranks
    left = _leading(weight.flatten(1), outer)
    right = _leading(torch.tensordot(weight, left, dims=([0], [0])).permute(0, 3, 1, 2).flatten(1), inner)
    left = _leading(torch.tensordot(weight, right, dims=([1], [0])).flatten(1), outer)
    return [left, torch.einsum("oihw,or,is->rshw", weight, left, right), right.T]


def _tt(weight: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """TT-SVD (Oseledets 2011, algorithm 1) over outputs, width, height, inputs."""
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


def _cp(weight: Tensor, ranks: Sequence[int], work: float) -> list[Tensor]:
    """Alternating least squares (Kolda and Bader 2009, figure 3.3); all but the outputs' factor share one product."""
    (rank,) = ranks
    rounds = int(min(max(work / (4 * weight.numel() * rank), _FEWEST_ROUNDS), _MOST_ROUNDS))
    _, inputs, height, width = weight.shape
    flat = weight.flatten(1)
    _, b, u, v = (_cp_start(weight, place, rank) for place in range(4))
    for _ in range(rounds):
        chain = torch.einsum("ri,rh,rw->rihw", b, u, v).flatten(1)
        a = _solved((b, u, v), chain @ flat.T)
        left = (a @ flat).reshape(rank, inputs, height, width)
        b = _solved((a, u, v), torch.einsum("rihw,rh,rw->ri", left, u, v))
        kernels = torch.einsum("rihw,ri->rhw", left, b)
        u = _solved((a, b, v), torch.einsum("rhw,rw->rh", kernels, v))
        v = _solved((a, b, u), torch.einsum("rhw,rh->rw", kernels, u))
    return [a.T, v, u, b]


def _cp_start(weight: Tensor, place: int, rank: int) -> Tensor:
    """`[rank, size]`: leading singular vectors of a dimension; a rank above its size has random ones in addition."""
    own = _leading(weight.movedim(place, 0).flatten(1), rank).T
    generator = torch.Generator().manual_seed(place)
    extra = torch.rand(rank - len(own), own.shape[1], generator=generator, dtype=torch.float64)
    return torch.cat([own, extra.to(own)])


def _solved(others: Sequence[Tensor], seen: Tensor) -> Tensor:
    """The factor that is nearest, the others fixed, from what they see of the weight."""
    system = reduce(mul, (factor @ factor.T for factor in others))
    diagonal = system.diagonal()
    diagonal += _RIDGE * diagonal.mean()
    solved: Tensor = torch.linalg.solve(system, seen)
    return solved


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """Its leading left singular vectors, as columns."""
    vectors: Tensor = torch.linalg.eigh(matrix @ matrix.T)[1]
    return vectors[:, -rank:].flip(1)


_PLAIN: dict[str, Callable[[Tensor, Sequence[int]], list[Tensor]]] = {
    "spatial": _spatial, "tucker": _tucker, "tt": _tt,
}  # fmt: skip
