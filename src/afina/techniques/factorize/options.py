"""What each layer could become: forms and ranks with what they cost and about how far they are from the layer."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from torch import Tensor

from afina.graph.statistics import Reader
from afina.techniques.factorize.fitting import decompose, multiplied
from afina.techniques.factorize.forms import FORMS, Form
from afina.techniques.factorize.problem import Problem
from afina.techniques.factorize.starting import input_energies

# Costs that ranks are looked for at, as shares of the layer's own; those at which chains are really fitted; and the
# multiply-accumulates that one of these fits may take.
_SHARES = tuple(np.geomspace(0.95, 0.03, 70))
_FITTED = (0.65, 0.35, 0.15)
_WORK = 2e9
# A chain that costs more than this share of the layer it stands for is not worth its extra calls.
_WORTH = 0.95
_TINY = 1e-12


@dataclass
class Chain:
    """One thing that a layer could become.

    Attributes:
        form: Name of the form.
        ranks: Its ranks.
        parameters: Numbers that it holds.
        macs: Multiply-accumulates for one image.
        error: Squared error of the layer's outputs, as a share of what they vary.
        loss: What it does to the network's outputs, on the scale of `Effect`.
        weight: The whole weight that it stands for; only of chains that were fitted.
    """

    form: str
    ranks: tuple[int, ...]
    parameters: int
    macs: int
    error: float
    loss: float = math.nan
    weight: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Layer:
    """A layer that can become a chain.

    Attributes:
        reader: The layer.
        before: Height and width of what it reads.
        after: Of what it gives.
    """

    reader: Reader
    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the weight of one group: outputs, inputs, height, width (see `Problem.weight`)."""
        outputs, inputs, *kernel = self.reader.shape
        height, width = kernel if len(kernel) == 2 else (math.prod(kernel), 1)
        return outputs // self.reader.groups, inputs, height, width

    @property
    def parameters(self) -> int:
        return math.prod(self.reader.shape)

    @property
    def macs(self) -> int:
        return self.parameters * math.prod(self.after)

    def forms(self, method: str) -> list[str]:
        """Names of the forms that it may take where `method` was asked for."""
        _, _, height, width = self.shape
        plain = self.reader.groups == 1 and len(self.reader.shape) == 4 and self.reader.blocks == 1
        if not plain or height * width == 1:
            return ["svd"]
        # A kernel of one row or one column has nothing to separate.
        flat = ("svd", "tucker") if min(height, width) == 1 else ("svd", "spatial", "tucker", "cp")
        if method == "auto":
            return list(flat)
        return [method] if method in flat or (method == "tt" and min(height, width) > 1) else ["svd"]

    def most(self, form: str) -> tuple[int, ...]:
        """The largest ranks that mean anything."""
        return FORMS[form].most(self.shape)

    def chain(self, form: str, ranks: Sequence[int], error: float, weight: Tensor | None = None) -> Chain:
        """That form with those ranks, and its costs."""
        own, groups = FORMS[form], self.reader.groups
        return Chain(
            form, tuple(ranks), groups * own.parameters(self.shape, ranks),
            groups * own.macs(self.shape, ranks, self.before, self.after), error, weight=weight,
        )  # fmt: skip


def chains_of(layer: Layer, problems: Sequence[Problem], forms: Iterable[str], multiple: int) -> list[Chain]:
    """Chains at many costs, those that are nearest to the layer at theirs; fewest parameters first."""
    found: list[Chain] = []
    for form in forms:
        found += _svd(layer, problems, multiple) if form == "svd" else _fitted(layer, problems[0], form, multiple)
    found = [chain for chain in found if chain.parameters <= _WORTH * layer.parameters]
    found.sort(key=lambda chain: (chain.parameters, chain.error))
    return found


def frontier(chains: Iterable[Chain], cost: str) -> list[Chain]:
    """Those of which no other costs less (`parameters` or `macs`) and is as near; cheapest first."""
    best, found = math.inf, list[Chain]()
    for chain in sorted(chains, key=lambda chain: (getattr(chain, cost), chain.error)):
        if chain.error < best:
            best = chain.error
            found.append(chain)
    return found


def fit(layer: Layer, problems: Sequence[Problem], form: str, ranks: Sequence[int], work: float) -> list[list[Tensor]]:
    """The factors of a layer's chain, for each group."""
    return [decompose(problem, form, ranks, work) for problem in problems]


def whole(layer: Layer, form: str, factors: Sequence[Sequence[Tensor]]) -> Tensor:
    """The weight, in the layer's shape, that a chain stands for."""
    return torch.cat([multiplied(form, own) for own in factors]).reshape(layer.reader.shape)


def _svd(layer: Layer, problems: Sequence[Problem], multiple: int) -> list[Chain]:
    """The error of every rank is known at once: what the principal components that are left out hold."""
    energies = torch.stack([problem.output_energies() for problem in problems]).mean(0)
    errors = (1 - energies.cumsum(0)).clamp_min(_TINY)
    (most,) = layer.most("svd")
    ranks = {
        found[0]
        for share in _SHARES
        if (found := _single_rank(FORMS["svd"], layer.shape, share * math.prod(layer.shape), multiple))
    }
    chains = [layer.chain("svd", (rank,), float(errors[rank - 1])) for rank in sorted(ranks) if rank <= most]
    for share in _FITTED:
        near = min(chains, key=lambda c: abs(c.parameters - share * layer.parameters), default=None)
        if near is not None and near.weight is None:
            near.weight = whole(layer, "svd", fit(layer, problems, "svd", near.ranks, _WORK))
    return chains


def _fitted(layer: Layer, problem: Problem, form: str, multiple: int) -> list[Chain]:
    """Errors are measured at a few costs, and follow a power of the cost between."""
    best_first = _ranks_best_first(FORMS[form], layer.shape, _spectra(problem, form), multiple)
    size = math.prod(layer.shape)

    def at(share: float) -> tuple[int, ...] | None:
        if best_first is None:
            return _single_rank(FORMS[form], layer.shape, share * size, multiple)
        return next((ranks for price, ranks in best_first if price <= share * size), None)

    known: dict[tuple[int, ...], Chain] = {}
    for ranks in {ranks for share in _FITTED if (ranks := at(share)) is not None}:
        weight = whole(layer, form, fit(layer, [problem], form, ranks, _WORK))
        error = max(problem.error(weight.reshape(problem.weight.shape).to(problem.weight)), _TINY)
        known[ranks] = layer.chain(form, ranks, error, weight)
    if not known:
        return []
    points = sorted((chain.parameters, chain.error) for chain in known.values())
    others = {ranks for share in _SHARES if (ranks := at(share)) is not None} - set(known)
    chains = [layer.chain(form, ranks, 0.0) for ranks in others]
    for chain in chains:
        chain.error = between(chain.parameters, points)
    return [*known.values(), *chains]


def between(x: float, points: Sequence[tuple[float, float]]) -> float:
    """A curve through points (sorted by x), straight where both are on logarithmic scales, and on beyond the ends."""
    xs, ys = np.log([p[0] for p in points]), np.log(np.maximum([p[1] for p in points], _TINY))
    if len(points) == 1:
        return float(np.exp(ys[0]))
    place = int(np.clip(np.searchsorted(xs, math.log(x)), 1, len(xs) - 1))
    slope = (ys[place] - ys[place - 1]) / max(xs[place] - xs[place - 1], _TINY)
    return float(np.exp(ys[place - 1] + slope * (math.log(x) - xs[place - 1])))


def _spectra(problem: Problem, form: str) -> list[np.ndarray]:
    """For each rank of a form, by how much of it is kept (from 0), what the rest of its spectrum holds."""
    if form not in ("tucker", "tt"):
        return []
    outer, inner = (_tail(values) for values in (problem.output_energies(), input_energies(problem)))
    return [outer, inner] if form == "tucker" else [outer, _middle(problem), inner]


def _middle(problem: Problem) -> np.ndarray:
    weight = problem.weight
    matrix = weight.permute(0, 3, 1, 2).reshape(weight.shape[0] * weight.shape[3], -1)
    values = torch.linalg.svdvals(matrix).square()
    return _tail(values / values.sum().clamp_min(_TINY))


def _tail(values: Tensor) -> np.ndarray:
    found: np.ndarray = np.maximum(0.0, 1 - np.concatenate(([0.0], values.cumsum(0).double().cpu().numpy())))
    return found


def _single_rank(form: Form, shape: Sequence[int], cost: float, multiple: int) -> tuple[int] | None:
    """The largest rank of a form that has one alone, at a cost."""
    rank = min(int(cost // form.parameters(shape, (1,))), form.most(shape)[0]) // multiple * multiple
    return (rank,) if rank else None


def _ranks_best_first(
    form: Form, shape: Sequence[int], spectra: Sequence[np.ndarray], multiple: int
) -> list[tuple[int, tuple[int, ...]]] | None:
    """Ranks with what they cost, those that leave out least first; None for a form that has one rank alone."""
    if len(form.ranks) == 1:
        return None
    found = []
    for ranks in product(*(_steps(size, multiple) for size in form.most(shape))):
        if _possible(form, shape, ranks):
            left_out = sum(float(tail[min(rank, len(tail) - 1)]) for tail, rank in zip(spectra, ranks, strict=True))
            found.append((left_out, form.parameters(shape, ranks), ranks))
    found.sort(key=lambda each: (each[0], -each[1]))
    return [(price, ranks) for _, price, ranks in found]


def _possible(form: Form, shape: Sequence[int], ranks: Sequence[int]) -> bool:
    """In a train, no rank is more than the one beside it times what lies between them."""
    if form.name != "tt":
        return True
    (outer, middle, inner), (_, _, height, width) = ranks, shape
    return max(outer, middle) <= min(outer, middle) * width and max(middle, inner) <= min(middle, inner) * height


def _steps(size: int, multiple: int) -> list[int]:
    """About sixteen ranks up to `size`, multiples of `multiple`."""
    step = max(multiple, math.ceil(size / 16 / multiple) * multiple)
    return list(range(step, size + 1, step)) or ([size // multiple * multiple] if size >= multiple else [])
