"""What the next point should be best at: expected improvement, times the probability that constraints hold."""

from dataclasses import dataclass

import numpy as np

from afina.search.tensor_train.acquisition import (
    log_feasible,
    log_feasible_slopes,
    log_improvement,
    log_improvement_slopes,
)
from afina.search.tensor_train.encoding import Domain
from afina.search.tensor_train.kernel import Array
from afina.search.tensor_train.surrogate import Surrogate


@dataclass(frozen=True)
class Problem:
    """What is maximised: the logarithm of expected improvement times the probability that constraints hold.

    Attributes:
        domain: The d parameters.
        objective: Surrogate of what is minimised.
        best: The value to improve on; None where no trial is feasible, so that feasibility alone is sought.
        constraints: One surrogate for each constraint.
        limits: The highest feasible value of each constraint, on the scale of its surrogate.
    """

    domain: Domain
    objective: Surrogate
    best: float | None
    constraints: tuple[Surrogate, ...] = ()
    limits: tuple[float, ...] = ()

    def acquisition(self, points: Array) -> Array:
        """The value of the acquisition (m,) at points (m, d)."""
        total = np.zeros(len(points))
        if self.best is not None:
            total += log_improvement(*self.objective.posterior(points), self.best)
        for surrogate, limit in zip(self.constraints, self.limits, strict=True):
            mean, variance = surrogate.posterior(points)
            total += log_feasible(mean - limit, variance)
        return total

    def slopes(self, points: Array) -> tuple[Array, Array]:
        """The value of the acquisition (m,) at points (m, d), and its gradient (m, d)."""
        total, gradient = np.zeros(len(points)), np.zeros(points.shape)
        if self.best is not None:
            mean, variance, by_x, variance_by_x = self.objective.gradient(points)
            total += log_improvement(mean, variance, self.best)
            by_mean, by_variance = log_improvement_slopes(mean, variance, self.best)
            gradient += by_mean[:, None] * by_x + by_variance[:, None] * variance_by_x
        for surrogate, limit in zip(self.constraints, self.limits, strict=True):
            mean, variance, by_x, variance_by_x = surrogate.gradient(points)
            total += log_feasible(mean - limit, variance)
            by_mean, by_variance = log_feasible_slopes(mean - limit, variance)
            gradient += by_mean[:, None] * by_x + by_variance[:, None] * variance_by_x
        return total, gradient
