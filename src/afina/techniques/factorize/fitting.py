"""The chain of a given form and rank that is nearest to a layer, in the metric of what the layer reads.

For rows `x` with second moments `C` the squared error of the outputs is `tr((W - V) C (W - V)^T)`. Over all V of rank r
that is least for `V = U U^T W` with U the r leading eigenvectors of `W C W^T`: the principal components of the outputs
(Zhang et al. 2016, "Accelerating very deep convolutional networks", equation 8, without its nonlinear part). The other
forms have no closed form in this metric. They start from the one that they have where C is taken for a product
`C_i x C_h x C_w` of moments over inputs, rows and columns of the kernel (a truncated SVD, HOSVD or TT-SVD of the weight
scaled by their square roots), and are refined by alternating least squares in C itself: each factor in turn is the
minimum of a quadratic; the output's by one linear system, the others by conjugate gradients.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from afina.techniques.factorize.forms import FORMS, OUTPUT, Form
from afina.techniques.factorize.problem import Problem
from afina.techniques.factorize.starting import start

_TINY = 1e-12
# Sweeps of alternating least squares, steps of conjugate gradients in each, and the multiply-accumulates that a layer's
# refinement may take: large layers get fewer of both.
_SWEEPS, _STEPS = 12, 8
# A sweep that takes less than this share off the error is the last.
_GAIN = 0.002
WORK = 1.5e11


def decompose(problem: Problem, name: str, ranks: Sequence[int], work: float = WORK) -> list[Tensor]:
    """The factors of the nearest chain of form `name` with those ranks, in the order of the form.

    Args:
        problem: The layer.
        name: One of `FORMS`.
        ranks: One for each letter of the form's ranks, none above `Form.most`.
        work: Multiply-accumulates that refining them may take.

    Returns:
        Factors of the shapes `Form.shapes`, in the type of the problem.

    Example:
        >>> weight = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)[:, :, None, None]
        >>> problem = Problem(weight, torch.diag(torch.tensor([1.0, 9.0], dtype=torch.float64)))
        >>> factors = decompose(problem, "svd", (1,))
        >>> [tuple(factor.shape) for factor in factors]
        [(2, 1), (1, 2, 1, 1)]
        >>> multiplied("svd", factors).flatten(1).abs().numpy().round(6).tolist()  # not the larger number is kept
        [[0.0, 0.0], [0.0, 1.0]]
    """
    if name == "svd":
        return _balanced(FORMS[name], _by_outputs(problem, ranks[0]))
    factors = start(problem, name, ranks, work)
    return _balanced(FORMS[name], refine(problem, FORMS[name], factors, work))


def multiplied(name: str, factors: Sequence[Tensor]) -> Tensor:
    """The weight `[outputs, inputs, height, width]` that a chain stands for."""
    return torch.einsum(FORMS[name].equation, *factors)


def refine(problem: Problem, form: Form, factors: Sequence[Tensor], work: float = WORK) -> list[Tensor]:
    """Factors that are nearer in the metric, by alternating least squares from `factors`; the error never grows.

    Each sweep takes the factors in the order in which their layers run, the output's last. Products with the metric are
    nearly all the work: large layers get fewer steps of conjugate gradients, and fewer sweeps.

    Args:
        problem: The layer.
        form: The form of the chain.
        factors: In the order of the form; they are left as they are.
        work: Multiply-accumulates that it may take.
    """
    factors = list(factors)
    product = problem.weight.numel() * problem.metric.shape[-1]
    affordable = work / (product * (len(factors) - 1))
    steps, error = int(min(_STEPS, max(2, affordable / 2))), math.inf
    for _ in range(int(min(_SWEEPS, max(1, affordable / (steps + 1))))):
        for index in reversed(range(1, len(factors))):
            factors[index] = _conjugate_gradients(problem, form, factors, index, steps)
        before = error
        factors[0], error = _best_output(problem, form, factors)
        if error > (1 - _GAIN) * before:
            break
    return factors


# Two outputs, two inputs, C the moments of the inputs:
#
#     W = [[2, 0],     C = [[1, 0],     W C W^T = [[4, 0],      U = [[0],     U U^T W = [[0, 0],
#          [0, 1]]          [0, 9]]                [0, 9]]           [1]]                [0, 1]]
#
# Rank 1 keeps the output that varies most, and loses 4 of 13. The svd of W itself would keep the weight 2, and lose 9.
def _by_outputs(problem: Problem, rank: int) -> list[Tensor]:
    """The factors U and `U^T W` of the svd, with U the leading eigenvectors of `W C W^T`."""
    _, vectors = problem.principal_outputs
    basis = vectors[:, -rank:].flip(1)
    return [basis, (basis.T @ problem.matrix).reshape(rank, *problem.weight.shape[1:])]


# The output's factor A multiplies rows R that the rest of the chain makes of the input, so that V = A R, and the least
# error is at A = W C R^T (R C R^T)^-1. In most forms R is the product of the other factors; in `spatial` A has the
# kernel's width too. One input, a kernel of 2 x 2, rank 1 and B[r,i,h] = [[[1, 2]]] give a row for each width w:
#
#     R[(r,w), (i,h,W)] = B[r,i,h] * (w == W) = [[1, 0, 2, 0],      w = 0: the first column of the kernel is 1, 2
#                                                [0, 1, 0, 2]]      w = 1: the second is
#
# In the equation for `einsum`, W is the letter of the column's width, and an identity matrix [w, W] is what compares.
def _best_output(problem: Problem, form: Form, factors: Sequence[Tensor]) -> tuple[Tensor, float]:
    """The output's factor, by least squares on what the rest of the chain gives it; and the squared error with it."""
    letters, rest = form.factors[0][1:], form.factors[1:]
    identity = [torch.eye(problem.weight.shape[3]).to(problem.weight)] if "w" in letters else []
    identity_letters = ["wW"] if identity else []
    columns = "ihW" if identity else OUTPUT[1:]
    rows = torch.einsum(f"{','.join((*rest, *identity_letters))}->{letters}{columns}", *factors[1:], *identity)
    rows = rows.reshape(-1, problem.matrix.shape[1])
    weighted = problem.times_metric(rows)
    system = weighted @ rows.T
    system += 1e-9 * system.diagonal().mean().clamp_min(_TINY) * torch.eye(len(system)).to(system)
    shared = weighted @ problem.matrix.T
    solved = torch.linalg.solve(system, shared)
    # At the least squares the error is what the outputs have, less what the chain gives of them.
    return solved.T.reshape(factors[0].shape), problem.squares - float((solved * shared).sum())


# With the others fixed, the weight V is linear in one factor F, and the error is a quadratic whose minimum solves
#
#     gradient(V(F)) = gradient(W)        gradient(X) = X C, multiplied by the other factors: a tensor in the shape of F
#
# The matrix of this system has a row for each number in F (r * s * h * w for a core), and is never formed: conjugate
# gradients (Hestenes and Stiefel 1952) need its product with a factor only. A few steps do, as F starts from its value
# in the sweep before, and the other factors will change again anyway.
def _conjugate_gradients(problem: Problem, form: Form, factors: Sequence[Tensor], index: int, steps: int) -> Tensor:
    """The factor at `index`, nearer to its least-squares value with the others fixed; starts from its value now."""
    # `einsum` multiplies from left to right: what it keeps is small only between neighbours, from the ends inwards.
    letters, inwards = form.factors[index], [*range(index), *reversed(range(index + 1, len(factors)))]
    weight_equation = f"{','.join(reversed(form.factors))}->{OUTPUT}"
    gradient_equation = f"{','.join((OUTPUT, *(form.factors[place] for place in inwards)))}->{letters}"
    above, below, others = factors[:index], factors[index + 1 :], [factors[place] for place in inwards]

    def weight(factor: Tensor) -> Tensor:
        return torch.einsum(weight_equation, *reversed((*above, factor, *below)))

    def gradient(gap: Tensor) -> Tensor:
        weighted = problem.times_metric(gap.flatten(1)).reshape(gap.shape)
        return torch.einsum(gradient_equation, weighted, *others)

    solution = factors[index].clone()
    residual = gradient(problem.weight - weight(solution))
    step, energy = residual.clone(), residual.square().sum()
    for _ in range(steps):
        if energy <= _TINY:
            break
        applied = gradient(weight(step))
        length = energy / (step * applied).sum().clamp_min(_TINY)
        solution += length * step
        residual -= length * applied
        energy, before = residual.square().sum(), energy
        step = residual + (energy / before) * step
    return solution


def _balanced(form: Form, factors: Sequence[Tensor]) -> list[Tensor]:
    """Factors with the same product, of which neighbours are of the same norm along each unit of the rank between them.

    Training and quantization like that better than a large factor beside a small one.

    Example:
        >>> outer, inner = torch.tensor([[8.0, 1.0]]), torch.tensor([2.0, 4.0]).reshape(2, 1, 1, 1)
        >>> outer, inner = _balanced(FORMS["svd"], [outer, inner])
        >>> outer.flatten().tolist(), inner.flatten().tolist()
        ([4.0, 2.0], [4.0, 2.0])
    """
    factors = list(factors)
    for first in range(len(factors) - 1):
        second = first + 1
        rank = next(letter for letter in form.factors[second] if letter in form.factors[first])
        a, b = factors[first], factors[second]
        along = form.factors[first].index(rank)
        sizes = a.movedim(along, 0).flatten(1).norm(dim=1), b.flatten(1).norm(dim=1)
        scale = (sizes[1].clamp_min(_TINY) / sizes[0].clamp_min(_TINY)).sqrt()
        shape = [1] * a.ndim
        shape[along] = -1
        factors[first] = a * scale.reshape(shape)
        factors[second] = b / scale.reshape(-1, *[1] * (b.ndim - 1))
    return factors
