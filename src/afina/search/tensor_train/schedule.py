"""The sampler's schedule: which step comes at which trial, and why.

| when | step | why, and what would go wrong without it |
| --- | --- | --- |
| fewer than 2 d + 2 trials have ended | a point of a Latin hypercube (`startup.py`) | a process with 3 d + 3 hyperparameters fits anything to fewer data: it would be sure of a wrong trend |
| first suggestion after that | `FIRST`: every warping from the prior's mean, then the best of them from every start | the evidence has several maxima; one that is taken early is kept for long |
| every later one, few data | `REFINE_AND_EXPLORE` | hyperparameters follow the data; without alternatives a study stays with its first warping |
| every later one, many data | `REFINE` and `EXPLORE` by turns | an evaluation of the evidence costs n^2 d: both at once would double the time of a suggestion |
| d + 8 trials without improvement | a lottery of strategies, every other trial (`strategies.py`) | expected improvement alone keeps refining one local minimum |
| once 4 (d + 8) without improvement | a rotation of the numbers (`online_rotation.py`) | in a valley askew to the parameters no step along one of them is better |
| a rotation is in use, 5 trials of 6 | `KEEP`: the hyperparameters stay | the straight process is not asked, and a fit of it would be for nothing |
| 8 trials are running | drawn functions in place of expected improvement (`propose.draw`) | points next to each other would be proposed to all of them |

Everything here is a function of counts of trials alone, never of the clock: the same seed gives the same suggestions on
every machine. Times in this module are about what a step costs, and only scale the counts.
"""  # noqa: E501  # rows of a table cannot be wrapped

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import numpy as np

Alternative = TypeVar("Alternative")

# A stagnation begins after this many trials without an improvement, and one more for each parameter. With six in all,
# the sampler was behind itself without any other strategy on 6 of 7 functions at 50 trials.
_PATIENCE = 8
# A stagnation this many patiences long is a valley that the study will not leave by itself.
STUCK_AFTER_PATIENCES = 4
# With this many trials running, each follows a function of its own, drawn from the posterior.
CROWD = 8

# Seconds that one evaluation of the evidence takes for one pair of points and one coordinate, about.
_SECONDS_PER_PAIR = 2.5e-8
# Seconds that a fit may take, about, and the fewest and the most evaluations that it gets for that.
_SECONDS_PER_FIT = 0.05
_FEWEST_EVALUATIONS, _MOST_EVALUATIONS = 6, 60


def startup_trials(parameters: int) -> int:
    """Trials that must have ended before the surrogate is used, for this many parameters with several values."""
    return 2 * parameters + 2


def stagnation_patience(parameters: int) -> int:
    """Trials without an improvement after which other strategies take part."""
    return _PATIENCE + parameters


def evaluations_per_fit(points: int, coordinates: int, share: float = 1.0) -> int:
    """Evaluations of the evidence that one fit gets: as many as take about 0.05 s, between 6 and 60.

    Args:
        points: Number of data; an evaluation's time grows with its square.
        coordinates: Number of coordinates.
        share: Scales the work.

    Example:
        >>> [evaluations_per_fit(n, coordinates=5) for n in (20, 120, 300)]
        [60, 27, 6]
    """
    evaluations = share * _SECONDS_PER_FIT / (_SECONDS_PER_PAIR * points * points * coordinates)
    return int(np.clip(evaluations, _FEWEST_EVALUATIONS, _MOST_EVALUATIONS))


class FitStep(Enum):
    """What happens to the hyperparameters of a surrogate when it is updated."""

    FIRST = "fit every warping from the prior's mean, and the best of them from every start"
    REFINE = "fit the warping in use from its last hyperparameters"
    EXPLORE = "score the warping in use, and fit one alternative: another warping, or another start"
    REFINE_AND_EXPLORE = "refine the warping in use, then fit one alternative"
    KEEP = "leave the hyperparameters as they are"

    @property
    def refines(self) -> bool:
        """Whether the warping in use is fitted."""
        return self in (FitStep.REFINE, FitStep.REFINE_AND_EXPLORE)

    @property
    def explores(self) -> bool:
        """Whether an alternative is fitted."""
        return self in (FitStep.EXPLORE, FitStep.REFINE_AND_EXPLORE)


@dataclass(frozen=True)
class FitSchedule:
    """What the k-th update of a surrogate does, k = 1, 2, ... counted from its first fit.

    Attributes:
        alternates: Whether refining and exploring come by turns, not both at each update.
    """

    alternates: bool

    @classmethod
    def for_budget(cls, evaluations: int) -> "FitSchedule":
        """The schedule where a fit gets this many evaluations: by turns where that is less than half of the most."""
        return cls(alternates=evaluations < _MOST_EVALUATIONS // 2)

    def step(self, update: int) -> FitStep:
        """The step of the k-th update.

        Example:
            >>> [FitSchedule(alternates=True).step(k).name for k in (1, 2, 3, 4)]
            ['REFINE', 'EXPLORE', 'REFINE', 'EXPLORE']
            >>> FitSchedule(alternates=False).step(1).name
            'REFINE_AND_EXPLORE'
        """
        if not self.alternates:
            return FitStep.REFINE_AND_EXPLORE
        return FitStep.REFINE if update % 2 == 1 else FitStep.EXPLORE

    def alternative(self, update: int, alternatives: Sequence[Alternative]) -> Alternative:
        """Which alternative the k-th update explores: one after another, and again from the first.

        Example:
            >>> [FitSchedule(alternates=True).alternative(k, ["log 1", "log 0.1", "prior"]) for k in (2, 4, 6, 8)]
            ['log 0.1', 'prior', 'log 1', 'log 0.1']
        """
        exploration = update // 2 if self.alternates else update
        return alternatives[exploration % len(alternatives)]


@dataclass
class Countdown:
    """Trials until something is due; it is due at the first trial.

    Attributes:
        left: Trials that are left; 0 or fewer where it is due.

    Example:
        >>> fit = Countdown()
        >>> fit.tick(), fit.is_due
        (None, True)
        >>> fit.restart(2), fit.tick(), fit.is_due, fit.is_due_next
        (None, None, False, True)
    """

    left: int = 1

    def tick(self) -> None:
        """One more trial has ended."""
        self.left -= 1

    def restart(self, trials: int) -> None:
        """It is due again after so many trials."""
        self.left = trials

    @property
    def is_due(self) -> bool:
        """Whether it is time."""
        return self.left <= 0

    @property
    def is_due_next(self) -> bool:
        """Whether it will be time when the next trial has ended."""
        return self.left <= 1


class RotationSchedule:
    """When a rotation of the coordinates is fitted, and from where. A fit costs as much as several suggestions.

    Attributes:
        FIT_EVERY: Trials from one fit to the next while the rotation is in use.
        TRY_EVERY: The same while it is not: what had too little evidence seldom has enough a few trials later.
        EVALUATIONS: Evaluations of the evidence in a fit from the last rotation.
        FRESH_EVERY: Trials from one fit from a fresh start to the next. Refining alone would keep the first axes.
        FRESH_EVALUATIONS: Evaluations of such a fit. With 40 it stayed behind a rotation that was refined for long.
        OTHER_WARPING_EVERY: Every third fit also tries another warping with the last rotation.
    """

    FIT_EVERY = 6
    TRY_EVERY = 9
    EVALUATIONS = 40
    FRESH_EVERY = 41
    FRESH_EVALUATIONS = 150
    OTHER_WARPING_EVERY = 3

    @classmethod
    def other_warping(cls, fits: int, others: Sequence[str]) -> str | None:
        """The other warping that a fit tries, after so many fits; None where it tries none.

        Example:
            >>> [RotationSchedule.other_warping(fits, ["log 1", "log 0.1"]) for fits in range(6)]
            [None, None, 'log 1', None, None, 'log 0.1']
        """
        every = cls.OTHER_WARPING_EVERY
        return others[fits // every % len(others)] if others and fits % every == every - 1 else None
