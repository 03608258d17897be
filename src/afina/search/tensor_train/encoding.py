"""Parameters of a trial as points of the unit cube, and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from afina.search.tensor_train.kernel import Array, Layout

# Above this number of values, a whole or stepped number is searched as a continuous one, and rounded.
_MOST_LEVELS = 64


@dataclass(frozen=True)
class Coordinate:
    """One parameter: its distribution, and all the values it has in the unit interval where they are few.

    Attributes:
        name: The parameter.
        distribution: The distribution of the parameter, as Optuna has it.
        levels: The values of the parameter in unit coordinates, rising; for categories their numbers 0, 1, ...; None
            where the parameter is continuous or has many values.
    """

    name: str
    distribution: BaseDistribution
    levels: Array | None = field(compare=False)

    @classmethod
    def of(cls, name: str, distribution: BaseDistribution) -> "Coordinate":
        """The coordinate of a parameter of a study."""
        return cls(name, distribution, _levels(distribution))

    @property
    def categorical(self) -> bool:
        """Whether its values have no order."""
        return isinstance(self.distribution, CategoricalDistribution)

    def encode(self, value: Any) -> float:
        """The value as a number: within [0, 1], or the number of its category."""
        d = self.distribution
        internal = d.to_internal_repr(value)
        if isinstance(d, CategoricalDistribution):
            return float(internal)
        low, high = _ends(d)
        place = np.log(internal) if _is_log(d) else internal
        return 0.0 if high == low else float(np.clip((place - low) / (high - low), 0.0, 1.0))

    def decode(self, unit: float) -> Any:
        """The nearest value of the parameter; a plain Python object."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return d.choices[int(unit)]
        assert isinstance(d, FloatDistribution | IntDistribution)
        low, high = _ends(d)
        place = low + unit * (high - low)
        value = float(np.exp(place)) if _is_log(d) else place
        if d.step is not None and not (isinstance(d, FloatDistribution) and d.log):
            value = d.low + round((value - d.low) / d.step) * d.step
        value = min(max(value, d.low), d.high)
        return round(value) if isinstance(d, IntDistribution) else float(value)


@dataclass(frozen=True)
class Domain:
    """The parameters that are searched together.

    Attributes:
        coordinates: One for each parameter, in a fixed order.

    Example:
        >>> from optuna.distributions import CategoricalDistribution, FloatDistribution
        >>> domain = Domain.of({"rate": FloatDistribution(1e-3, 1e-1, log=True), "kind": CategoricalDistribution("ab")})
        >>> domain.encode({"rate": 0.01, "kind": "b"}).round(3).tolist(), domain.encode({"rate": 5.0})
        ([1.0, 0.5], None)
    """

    coordinates: tuple[Coordinate, ...]

    @classmethod
    def of(cls, distributions: Mapping[str, BaseDistribution]) -> "Domain":
        """The domain of the parameters of a study, sorted by name."""
        return cls(tuple(Coordinate.of(name, distributions[name]) for name in sorted(distributions)))

    @property
    def layout(self) -> Layout:
        """Which coordinates are categories."""
        return Layout(np.array([c.categorical for c in self.coordinates], dtype=bool))

    def encode(self, params: Mapping[str, Any]) -> Array | None:
        """The point of a trial (d,), NaN for parameters it does not have; None where a value is out of range."""
        point = np.full(len(self.coordinates), np.nan)
        for j, c in enumerate(self.coordinates):
            if c.name in params:
                try:
                    inside = c.distribution._contains(c.distribution.to_internal_repr(params[c.name]))
                except (ValueError, TypeError):
                    inside = False
                if not inside:
                    return None
                point[j] = c.encode(params[c.name])
        return point

    def decode(self, point: Array) -> dict[str, Any]:
        """The parameters of a point (d,), without those that are NaN."""
        return {c.name: c.decode(x) for c, x in zip(self.coordinates, point, strict=True) if not np.isnan(x)}

    def nearest(self, point: Array) -> Array:
        """The point (d,) whose parameters exist: whole and stepped numbers rounded."""
        rounded = [x if np.isnan(x) else c.encode(c.decode(x)) for c, x in zip(self.coordinates, point, strict=True)]
        return np.array(rounded)


@dataclass(frozen=True)
class Pattern:
    """A set of parameters that were active together, and the categories that came with it.

    Attributes:
        active: Which coordinates the trials of this pattern have, (d,).
        levels: The values that each coordinate may take here; None where it may take all.
    """

    active: NDArray[np.bool_]
    levels: tuple[Array | None, ...]


def patterns(domain: Domain, points: Array) -> list[Pattern]:
    """The patterns of active parameters among points (n, d).

    Which parameters a trial has depends on its other values; that is learned from the trials. A category is
    proposed with the patterns that it was seen in, and with all of them where it was never seen.

    Example:
        `momentum` is there where the optimizer is the second one:

        >>> from optuna.distributions import CategoricalDistribution, FloatDistribution
        >>> space = {"momentum": FloatDistribution(0, 1), "optimizer": CategoricalDistribution(["adam", "sgd"])}
        >>> domain = Domain.of(space)
        >>> points = np.array([[np.nan, 0.0], [0.9, 1.0], [0.5, 1.0]])
        >>> [(pattern.active.tolist(), pattern.levels[1].tolist()) for pattern in patterns(domain, points)]
        [([False, True], [0.0]), ([True, True], [1.0])]
    """
    active = ~np.isnan(points)
    kinds = np.unique(active, axis=0)
    if len(kinds) == 1:
        return [Pattern(kinds[0], tuple(c.levels for c in domain.coordinates))]
    collected = []
    for kind in kinds:
        members = points[(active == kind).all(axis=1)]
        levels = []
        for j, c in enumerate(domain.coordinates):
            if c.levels is None or not kind[j] or not (c.categorical or len(c.levels) <= 8):
                levels.append(c.levels)
                continue
            seen, ever = members[:, j], points[active[:, j], j]
            near = np.isclose(c.levels[:, None], seen[None, :]).any(axis=1)
            new = ~np.isclose(c.levels[:, None], ever[None, :]).any(axis=1)
            levels.append(c.levels[near | new])
        collected.append(Pattern(kind, tuple(levels)))
    return collected


def _levels(distribution: BaseDistribution) -> Array | None:
    d = distribution
    if isinstance(d, CategoricalDistribution):
        return np.arange(len(d.choices), dtype=float)
    assert isinstance(d, FloatDistribution | IntDistribution)
    if d.low == d.high:
        return np.zeros(1)
    if d.step is None or (d.high - d.low) / d.step >= _MOST_LEVELS:
        return None
    values = d.low + d.step * np.arange(round((d.high - d.low) / d.step) + 1)
    low, high = _ends(d)
    return np.asarray(((np.log(values) if _is_log(d) else values) - low) / (high - low))


def _ends(d: BaseDistribution) -> tuple[float, float]:
    assert isinstance(d, FloatDistribution | IntDistribution)
    return (float(np.log(d.low)), float(np.log(d.high))) if _is_log(d) else (float(d.low), float(d.high))


def _is_log(d: BaseDistribution) -> bool:
    return isinstance(d, FloatDistribution | IntDistribution) and d.log


def latin_hypercube(rows: int, d: int, rng: np.random.Generator, tries: int = 20) -> Array:
    """Points (rows, d) in the unit cube with one in each of `rows` slices of each axis: of several, the most spread."""
    best, widest = np.empty((rows, d)), -1.0
    for _ in range(tries):
        slices = np.argsort(rng.random((rows, d)), axis=0)
        points = (slices + rng.random((rows, d))) / rows
        gaps = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(rows)
        if rows < 2 or gaps.min() > widest:
            best, widest = points, float(gaps.min())
    return best


def spread_levels(count: int, domain: Domain, rng: np.random.Generator) -> list[Array]:
    """A Latin hypercube of `count` points of `domain`, each (d,), with every parameter active."""
    cube = latin_hypercube(count, len(domain.coordinates), rng)
    for j, c in enumerate(domain.coordinates):
        if c.levels is not None:
            cube[:, j] = c.levels[np.minimum((cube[:, j] * len(c.levels)).astype(int), len(c.levels) - 1)]
    return list(cube)
