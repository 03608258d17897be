"""The chains that each layer could become: forms and ranks, their costs, and about how far they are from the layer."""

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

# Costs for which ranks are searched, as shares of the layer's parameters; the shares at which a chain is fitted, fewer
# where one product of the weight with the metric takes more than `_LARGE` multiply-accumulates; and those that one such
# fit may take.
_SHARES = tuple(np.geomspace(0.95, 0.03, 70))
_FITTED, _FITTED_OF_LARGE, _LARGE = (0.65, 0.35, 0.15), (0.5, 0.2), 2e9
_WORK = 2e9
# A form whose error is so many times that of the nearest form, where both hold the second of those shares, is out.
_FAR = 1.5
# A chain that costs more than this share of the layer it stands for is not worth its extra calls.
_WORTH = 0.95
_TINY = 1e-12


@dataclass
class Chain:
    """A chain that a layer could become.

    Attributes:
        form: The name of the form.
        ranks: The ranks, in the order of the form.
        parameters: How many numbers the chain holds.
        macs: Multiply-accumulates of the chain for one image.
        error: Squared error of the layer's outputs, as a share of what they vary.
        loss: What the chain does to the network's outputs, on the scale of `Effect`; not a number until it is known.
        weight: The weight that the chain stands for, in the layer's shape; None where it was not fitted.
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
        before: Height and width of what it reads for one image; for a linear layer its rows, and 1.
        after: Height and width of what it gives.

    Example:
        >>> layer = Layer(Reader("conv.weight", "conv.bias", (12, 8, 3, 3), ("conv",)), (10, 10), (10, 10))
        >>> layer.shape, layer.parameters, layer.macs
        ((12, 8, 3, 3), 864, 86400)
        >>> layer.forms("auto"), layer.most("svd")
        (['svd', 'spatial', 'tucker', 'cp'], (12,))
        >>> chain = layer.chain("tucker", (5, 4), error=0.1)
        >>> chain.parameters, chain.macs
        (272, 27200)
    """

    reader: Reader
    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of the weight of one group: outputs, inputs, height, width (see `Problem.weight`)."""
        outputs, inputs, *kernel = self.reader.shape
        height, width = kernel if len(kernel) == 2 else (math.prod(kernel), 1)
        return outputs // self.reader.groups, inputs, height, width

    @property
    def parameters(self) -> int:
        """How many numbers the layer's weight holds."""
        return math.prod(self.reader.shape)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer for one image."""
        return self.parameters * math.prod(self.after)

    def forms(self, method: str) -> list[str]:
        """The names of the forms that the layer may take with an option `method`: that form, or all with `auto`.

        Matrices, grouped convolutions and wide layers in blocks take the svd alone, whatever the method.
        """
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
        """The largest ranks of a form (see `Form.most`)."""
        return FORMS[form].most(self.shape)

    def chain(self, form: str, ranks: Sequence[int], error: float, weight: Tensor | None = None) -> Chain:
        """The chain of a form and ranks, with its costs; `error` and `weight` are those of `Chain`."""
        of_group, groups = FORMS[form], self.reader.groups
        return Chain(
            form, tuple(ranks), groups * of_group.parameters(self.shape, ranks),
            groups * of_group.macs(self.shape, ranks, self.before, self.after), error, weight=weight,
        )  # fmt: skip


def chains_of(layer: Layer, problems: Sequence[Problem], forms: Iterable[str], multiple: int) -> list[Chain]:
    """The chains that a layer could become: for each form and many costs the nearest; fewest parameters first.

    Chains that hold more than 95% of the layer's parameters are left out.

    Args:
        layer: The layer.
        problems: One for each of its groups.
        forms: Names of the forms, as `Layer.forms` gives them.
        multiple: Ranks are a multiple of this.
    """
    chains: list[Chain] = []
    others = [_Fits(layer, problems[0], form, multiple) for form in forms if form != "svd"]
    nearest = min((fits.first for fits in others if math.isfinite(fits.first)), default=0.0)
    for form in forms:
        if form == "svd":
            chains += _svd(layer, problems, multiple)
    for fits in others:
        if not math.isfinite(fits.first) or fits.first <= _FAR * nearest:
            chains += fits.chains()
    chains = [chain for chain in chains if chain.parameters <= _WORTH * layer.parameters]
    chains.sort(key=lambda chain: (chain.parameters, chain.error))
    return chains


def frontier(chains: Iterable[Chain], cost: str) -> list[Chain]:
    """The chains of which no other costs less (`parameters` or `macs`) and is as near; cheapest first.

    Example:
        >>> chains = [Chain("svd", (rank,), cost, cost, error) for rank, cost, error in [(3, 30, 0.1), (1, 10, 0.4)]]
        >>> chains.append(Chain("cp", (4,), 20, 20, 0.5))
        >>> [(chain.form, chain.parameters) for chain in frontier(chains, "parameters")]
        [('svd', 10), ('svd', 30)]
    """
    best, nearest = math.inf, list[Chain]()
    for chain in sorted(chains, key=lambda chain: (getattr(chain, cost), chain.error)):
        if chain.error < best:
            best = chain.error
            nearest.append(chain)
    return nearest


def fit(layer: Layer, problems: Sequence[Problem], form: str, ranks: Sequence[int], work: float) -> list[list[Tensor]]:
    """The factors of a layer's chain, for each group in the order of the form (see `fitting.decompose`)."""
    return [decompose(problem, form, ranks, work) for problem in problems]


def dense_weight(layer: Layer, form: str, factors: Sequence[Sequence[Tensor]]) -> Tensor:
    """The weight, in the layer's shape, that a chain stands for; `factors` are those of each group."""
    return torch.cat([multiplied(form, of_group) for of_group in factors]).reshape(layer.reader.shape)


def _shares_fitted(layer: Layer) -> tuple[float, ...]:
    """The shares of a layer's parameters at which a chain is fitted: two of a layer of which one fit takes seconds."""
    return _FITTED_OF_LARGE if layer.parameters * layer.reader.width > _LARGE else _FITTED


# Where the principal components of the outputs hold 0.6, 0.3 and 0.1 of the squares, chains of rank 1, 2 and 3 have the
# errors 0.4, 0.1 and 0: no chain has to be fitted to know its error. A few are fitted nevertheless, at the shares of
# `_shares_fitted`: `study` puts their weights into the network to measure what they do to it.
def _svd(layer: Layer, problems: Sequence[Problem], multiple: int) -> list[Chain]:
    """Chains of the form svd, whose errors are what the principal components that are left out hold."""
    energies = torch.stack([problem.output_energies() for problem in problems]).mean(0)
    errors = (1 - energies.cumsum(0)).clamp_min(_TINY)
    (most,) = layer.most("svd")
    ranks = {
        best[0]
        for share in _SHARES
        if (best := _single_rank(FORMS["svd"], layer.shape, share * math.prod(layer.shape), multiple))
    }
    chains = [layer.chain("svd", (rank,), float(errors[rank - 1])) for rank in sorted(ranks) if rank <= most]
    for share in _shares_fitted(layer):
        near = min(chains, key=lambda c: abs(c.parameters - share * layer.parameters), default=None)
        if near is not None and near.weight is None:
            near.weight = dense_weight(layer, "svd", fit(layer, problems, "svd", near.ranks, _WORK))
    return chains


# The errors of other forms are known only once they are fitted, which is too much work for all of a layer's chains (up
# to 70). So the chains at a few shares of the parameters are fitted, and the errors of the others lie on the curve
# through these (`interpolate`). Which ranks to take at a cost follows from spectra, which are cheap (`_ranks_by_loss`).
# The second is fitted first: a form that is far behind another there is not fitted again.
class _Fits:
    """Chains of another form than svd.

    Args:
        layer: The layer.
        problem: The same, in its metric.
        form: The form.
        multiple: Ranks are a multiple of this.

    Attributes:
        first: The error of the chain that is fitted first; infinite where there is none.
    """

    def __init__(self, layer: Layer, problem: Problem, form: str, multiple: int) -> None:
        self._layer, self._problem, self._form, self._multiple = layer, problem, form, multiple
        self._by_loss = _ranks_by_loss(FORMS[form], layer.shape, _spectra(problem, form), multiple)
        self._fitted: dict[tuple[int, ...], Chain] = {}
        self._fit(_shares_fitted(layer)[1])
        self.first = min((chain.error for chain in self._fitted.values()), default=math.inf)

    def chains(self) -> list[Chain]:
        """A few that are fitted, and others, whose errors follow a power of the cost between."""
        for share in _shares_fitted(self._layer):
            self._fit(share)
        if not self._fitted:
            return []
        points = sorted((chain.parameters, chain.error) for chain in self._fitted.values())
        others = {ranks for share in _SHARES if (ranks := self._ranks_at(share)) is not None} - set(self._fitted)
        chains = [self._layer.chain(self._form, ranks, 0.0) for ranks in others]
        for chain in chains:
            chain.error = interpolate(chain.parameters, points)
        return [*self._fitted.values(), *chains]

    def _fit(self, share: float) -> None:
        """Fit the chain of so large a share of the layer's parameters, where there is one."""
        ranks, problem = self._ranks_at(share), self._problem
        if ranks is None or ranks in self._fitted:
            return
        weight = dense_weight(self._layer, self._form, fit(self._layer, [problem], self._form, ranks, _WORK))
        error = max(problem.error(weight.reshape(problem.weight.shape).to(problem.weight)), _TINY)
        self._fitted[ranks] = self._layer.chain(self._form, ranks, error, weight)

    def _ranks_at(self, share: float) -> tuple[int, ...] | None:
        size = math.prod(self._layer.shape)
        if self._by_loss is None:
            return _single_rank(FORMS[self._form], self._layer.shape, share * size, self._multiple)
        return next((ranks for parameters, ranks in self._by_loss if parameters <= share * size), None)


def interpolate(x: float, points: Sequence[tuple[float, float]]) -> float:
    """The value at x of a curve through points (x, y), straight between them on logarithmic scales of both.

    Args:
        x: More than 0.
        points: In rising order of x. Beyond the ends the curve goes on straight; through one point it is constant.

    Example:
        >>> points = [(100, 0.4), (400, 0.1)]
        >>> [round(interpolate(x, points), 3) for x in (100, 200, 800)]
        [0.4, 0.2, 0.05]
    """
    xs, ys = np.log([p[0] for p in points]), np.log(np.maximum([p[1] for p in points], _TINY))
    if len(points) == 1:
        return float(np.exp(ys[0]))
    place = int(np.clip(np.searchsorted(xs, math.log(x)), 1, len(xs) - 1))
    slope = (ys[place] - ys[place - 1]) / max(xs[place] - xs[place - 1], _TINY)
    return float(np.exp(ys[place - 1] + slope * (math.log(x) - xs[place - 1])))


def _spectra(problem: Problem, form: str) -> list[np.ndarray]:
    """For each rank of a form, what its spectrum loses at the ranks 0, 1, 2, ... (`_tail`); [] for forms of one rank.

    The spectra are those of the outputs (in the metric), of the matrix that the middle rank of a train is of (without a
    metric), and of the inputs (with the metric taken for a product).
    """
    if form not in ("tucker", "tt"):
        return []
    outer, inner = (_tail(values) for values in (problem.output_energies(), input_energies(problem)))
    return [outer, inner] if form == "tucker" else [outer, _middle(problem), inner]


def _middle(problem: Problem) -> np.ndarray:
    """What the middle rank of a train loses: that of the matrix (outputs x width) by (inputs x height)."""
    weight = problem.weight
    matrix = weight.permute(0, 3, 1, 2).reshape(weight.shape[0] * weight.shape[3], -1)
    values = torch.linalg.svdvals(matrix).square()
    return _tail(values / values.sum().clamp_min(_TINY))


def _tail(values: Tensor) -> np.ndarray:
    """What is lost of shares that sum to 1 when the first 0, 1, 2, ... of them are kept.

    Example:
        >>> _tail(torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)).round(3)
        array([1. , 0.4, 0.1, 0. ])
    """
    tail: np.ndarray = np.maximum(0.0, 1 - np.concatenate(([0.0], values.cumsum(0).double().cpu().numpy())))
    return tail


def _single_rank(form: Form, shape: Sequence[int], cost: float, multiple: int) -> tuple[int] | None:
    """The largest rank of a form of one rank whose chain has at most `cost` parameters; None where none has."""
    rank = min(int(cost // form.parameters(shape, (1,))), form.most(shape)[0]) // multiple * multiple
    return (rank,) if rank else None


def _ranks_by_loss(
    form: Form, shape: Sequence[int], spectra: Sequence[np.ndarray], multiple: int
) -> list[tuple[int, tuple[int, ...]]] | None:
    """The ranks of a form with the parameters of their chains, those that lose least first; None for one of one rank.

    The first that costs little enough is about the nearest at that cost. All combinations on a grid (`_steps`) are
    ordered by the sum of what the spectra lose, which bounds the squared error of HOSVD and of TT-SVD (De Lathauwer et
    al. 2000, "A multilinear singular value decomposition", property 10; Oseledets 2011, theorem 2.2); of equals, the
    one with more parameters comes first.

    Args:
        form: The form.
        shape: The weight's, `[outputs, inputs, height, width]`.
        spectra: For each rank of the form, what is lost at the ranks 0, 1, 2, ... (`_spectra`).
        multiple: Ranks are a multiple of this.

    Example:
        >>> outputs, inputs = np.array([1, 0.4, 0.1, 0.02, 0]), np.array([1, 0.5, 0.2, 0.1, 0])
        >>> ordered = _ranks_by_loss(FORMS["tucker"], (4, 4, 3, 3), [outputs, inputs], multiple=1)
        >>> next((parameters, ranks) for parameters, ranks in ordered if parameters <= 72)
        (52, (2, 2))

        There, (2, 2) loses 0.1 + 0.2; (1, 4) holds 56 and loses 0.4 + 0; (3, 2) would hold 74.
    """
    if len(form.ranks) == 1:
        return None
    losses = []
    for ranks in product(*(_steps(size, multiple) for size in form.most(shape))):
        if _possible(form, shape, ranks):
            lost = sum(float(tail[min(rank, len(tail) - 1)]) for tail, rank in zip(spectra, ranks, strict=True))
            losses.append((lost, form.parameters(shape, ranks), ranks))
    losses.sort(key=lambda row: (row[0], -row[1]))
    return [(parameters, ranks) for _, parameters, ranks in losses]


def _possible(form: Form, shape: Sequence[int], ranks: Sequence[int]) -> bool:
    """Whether a train can have these ranks: none is above the one beside it times the kernel's side between them."""
    if form.name != "tt":
        return True
    (outer, middle, inner), (_, _, height, width) = ranks, shape
    return max(outer, middle) <= min(outer, middle) * width and max(middle, inner) <= min(middle, inner) * height


def _steps(size: int, multiple: int) -> list[int]:
    """About sixteen ranks up to `size`, multiples of `multiple`.

    Example:
        >>> _steps(40, 8), _steps(6, 4), len(_steps(64, 1))
        ([8, 16, 24, 32, 40], [4], 16)
    """
    step = max(multiple, math.ceil(size / 16 / multiple) * multiple)
    return list(range(step, size + 1, step)) or ([size // multiple * multiple] if size >= multiple else [])
