"""Test functions of d variables, shifted and rotated by a seed, with a minimum of 0 inside the cube [0, 1]^d.

Each is a textbook function; `x` is a point (d,) in its own units, with its minimum value subtracted. Shifts move
the minimum to a random place in the inner part of the cube, so that no sampler wins by looking in the middle.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def ackley(z: Array) -> float:
    """Ackley 1987: one basin with ripples."""
    ripple = np.exp(np.cos(2 * np.pi * z).mean())
    return float(20 + np.e - 20 * np.exp(-0.2 * np.sqrt((z**2).mean())) - ripple)


def rastrigin(z: Array) -> float:
    """Rastrigin 1974: a bowl with a regular grid of minima."""
    return float((z**2 - 10 * np.cos(2 * np.pi * z) + 10).sum())


def rosenbrock(z: Array) -> float:
    """Rosenbrock 1960: a curved valley; its minimum is moved to 0."""
    z = z + 1
    return float((100 * (z[1:] - z[:-1] ** 2) ** 2 + (1 - z[:-1]) ** 2).sum())


def griewank(z: Array) -> float:
    """Griewank 1981: a wide bowl with a product of cosines."""
    return float((z**2).sum() / 4000 - np.cos(z / np.sqrt(np.arange(1, len(z) + 1))).prod() + 1)


def levy(z: Array) -> float:
    """Levy 1985 (with the minimum moved to 0)."""
    w = 1 + z / 4
    ends = np.sin(np.pi * w[0]) ** 2 + (w[-1] - 1) ** 2 * (1 + np.sin(2 * np.pi * w[-1]) ** 2)
    return float(ends + ((w[:-1] - 1) ** 2 * (1 + 10 * np.sin(np.pi * w[:-1] + 1) ** 2)).sum())


def alpine(z: Array) -> float:
    """Alpine 1: kinks everywhere."""
    return float(np.abs(z * np.sin(z) + 0.1 * z).sum())


def schwefel(z: Array) -> float:
    """Schwefel 2.26: the best minimum is far from the next best; outside its cube it rises."""
    z = z + 420.9687462275036
    inside = np.clip(z, -500, 500)
    return float((418.9828872724339 - inside * np.sin(np.sqrt(np.abs(inside))) + 0.02 * (z - inside) ** 2).sum())


def michalewicz(z: Array) -> float:
    """Michalewicz 1992 with m = 10: narrow valleys between plateaus; its minimum is moved to 0."""
    order = np.arange(1, len(z) + 1)
    x = z + _michalewicz_best(len(z))
    x = np.clip(x, 0, np.pi)
    return float((_valleys(_michalewicz_best(len(z)), order) - _valleys(x, order)).sum())


def _valleys(x: Array, order: Array) -> Array:
    return np.sin(x) * np.sin(order * x**2 / np.pi) ** 20


def _michalewicz_best(d: int) -> Array:
    if d not in _BEST:
        grid = np.linspace(0, np.pi, 20001)
        _BEST[d] = np.array([grid[np.argmax(_valleys(grid, np.array(i)))] for i in range(1, d + 1)])
    return _BEST[d]


_BEST: dict[int, Array] = {}

# Function, and half the width of its cube.
FUNCTIONS: dict[str, tuple[Callable[[Array], float], float]] = {
    "ackley": (ackley, 32.768),
    "rastrigin": (rastrigin, 5.12),
    "rosenbrock": (rosenbrock, 2.048),
    "griewank": (griewank, 600.0),
    "levy": (levy, 10.0),
    "alpine": (alpine, 10.0),
    "schwefel": (schwefel, 500.0),
    "michalewicz": (michalewicz, np.pi / 2),
}


@dataclass(frozen=True)
class Synthetic:
    """A function over the unit cube, with its minimum of 0 at `centre`.

    Attributes:
        name: One of `FUNCTIONS`.
        d: Variables.
        rotated: Whether the variables are mixed by a random rotation.
        grid: Values of each variable, evenly spread; 0 for continuous ones. The minimum is then on the grid.
        instance: Seed of shift and rotation.
    """

    name: str
    d: int
    rotated: bool
    grid: int
    instance: int

    @property
    def centre(self) -> Array:
        """Where the minimum is, (d,)."""
        rng = np.random.default_rng([self.instance, self.d, 1])
        place = rng.uniform(0.2, 0.8, self.d)
        return np.round(place * (self.grid - 1)) / (self.grid - 1) if self.grid else place

    def __call__(self, unit: Array) -> float:
        """The value at a point (d,) of the unit cube."""
        function, half = FUNCTIONS[self.name]
        z = (np.asarray(unit) - self.centre) * 2 * half
        if self.rotated:
            z = _rotation(self.d, self.instance) @ z
        return function(z)


_ROTATIONS: dict[tuple[int, int], Array] = {}


def _rotation(d: int, instance: int) -> Array:
    if (d, instance) not in _ROTATIONS:
        rng = np.random.default_rng([instance, d, 2])
        q, r = np.linalg.qr(rng.normal(size=(d, d)))
        _ROTATIONS[d, instance] = q * np.sign(np.diag(r))
    return _ROTATIONS[d, instance]
