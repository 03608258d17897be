"""The chain of a given form and rank that is nearest to a layer, in the metric of what the layer reads.

For rows `x` with second moments `C` the squared error of the outputs is `tr((W - V) C (W - V)^T)`. Over all V of rank r
that is least for `V = U U^T W` with U the r leading eigenvectors of `W C W^T`: the principal components of the outputs
(Zhang et al. 2016, "Accelerating very deep convolutional networks", equation 8, without its nonlinear part). The other
forms have no closed form in this metric. They start from the one that they have where C is taken for a product
`C_i x C_h x C_w` of moments over inputs, rows and columns of the kernel (a truncated SVD, HOSVD or TT-SVD of the weight
scaled by their square roots), and are refined by alternating least squares in C itself: each factor in turn is the
minimum of a quadratic; the output's by one linear system, the others by conjugate gradients.
"""

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
WORK = 1.5e11


def decompose(problem: Problem, name: str, ranks: Sequence[int], work: float = WORK) -> list[Tensor]:
    """The factors of the nearest chain of form `name` with those ranks, in the order of the form.

    Args:
        problem: The layer.
        name: One of `FORMS`.
        ranks: One for each letter of the form's ranks, none above `Form.most`.
        work: Multiply-accumulates that refining them may take.
    """
    if name == "svd":
        return _balanced(FORMS[name], _by_outputs(problem, ranks[0]))
    factors = start(problem, name, ranks, work)
    return _balanced(FORMS[name], refine(problem, FORMS[name], factors, work))


def multiplied(name: str, factors: Sequence[Tensor]) -> Tensor:
    """The weight `[outputs, inputs, height, width]` that a chain stands for."""
    return torch.einsum(FORMS[name].equation, *factors)


def refine(problem: Problem, form: Form, factors: Sequence[Tensor], work: float = WORK) -> list[Tensor]:
    """Alternating least squares in the metric, from factors at hand; the error never grows."""
    factors = list(factors)
    product = problem.weight.numel() * problem.metric.shape[-1]
    possible = work / (product * (len(factors) - 1))
    steps = int(min(_STEPS, max(2, possible / 2)))
    for _ in range(int(min(_SWEEPS, max(1, possible / (steps + 1))))):
        for index in reversed(range(1, len(factors))):
            factors[index] = _conjugate_gradients(problem, form, factors, index, steps)
        factors[0] = _best_output(problem, form, factors)
    return factors


def _by_outputs(problem: Problem, rank: int) -> list[Tensor]:
    own = problem.matrix
    _, vectors = torch.linalg.eigh(problem.seen(own) @ own.T)
    basis = vectors[:, -rank:].flip(1)
    return [basis, (basis.T @ own).reshape(rank, *problem.weight.shape[1:])]


def _best_output(problem: Problem, form: Form, factors: Sequence[Tensor]) -> Tensor:
    """The output's factor, by least squares on what the rest of the chain gives it."""
    letters, rest = form.factors[0], form.factors[1:]
    own = letters[1:]
    extra = [torch.eye(problem.weight.shape[3]).to(problem.weight)] if "w" in own else []
    # The kernel's width, where this factor has it, is read position by position: capital W.
    spelled = ["wW"] if extra else []
    columns = "ihW" if extra else OUTPUT[1:]
    read = torch.einsum(f"{','.join((*rest, *spelled))}->{own}{columns}", *factors[1:], *extra)
    rows = read.reshape(-1, problem.matrix.shape[1])
    seen = problem.seen(rows)
    system = seen @ rows.T
    system += 1e-9 * system.diagonal().mean().clamp_min(_TINY) * torch.eye(len(system)).to(system)
    solved: Tensor = torch.linalg.solve(system, seen @ problem.matrix.T).T
    return solved.reshape(factors[0].shape)


def _conjugate_gradients(problem: Problem, form: Form, factors: Sequence[Tensor], index: int, steps: int) -> Tensor:
    """One factor nearer to its least-squares value, the others fixed; starts from where it is."""
    # `einsum` multiplies from left to right: only between neighbours, from the ends inwards, is what it keeps small.
    own, down = form.factors[index], [*range(index), *reversed(range(index + 1, len(factors)))]
    forth = f"{','.join(reversed(form.factors))}->{OUTPUT}"
    home = f"{','.join((OUTPUT, *(form.factors[place] for place in down)))}->{own}"
    above, below, others = factors[:index], factors[index + 1 :], [factors[place] for place in down]

    def weight(factor: Tensor) -> Tensor:
        return torch.einsum(forth, *reversed((*above, factor, *below)))

    def back(gap: Tensor) -> Tensor:
        seen = problem.seen(gap.flatten(1)).reshape(gap.shape)
        return torch.einsum(home, seen, *others)

    found = factors[index].clone()
    residual = back(problem.weight - weight(found))
    step, energy = residual.clone(), residual.square().sum()
    for _ in range(steps):
        if energy <= _TINY:
            break
        applied = back(weight(step))
        length = energy / (step * applied).sum().clamp_min(_TINY)
        found += length * step
        residual -= length * applied
        energy, before = residual.square().sum(), energy
        step = residual + (energy / before) * step
    return found


def _balanced(form: Form, factors: Sequence[Tensor]) -> list[Tensor]:
    """Neighbours share their scale evenly along the rank between them, which training and quantization like."""
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
