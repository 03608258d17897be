"""When trials that have no hope are stopped early, by the values that they report."""

import warnings
from collections.abc import Callable

import optuna
from optuna.pruners import BasePruner

from afina.errors import InputError, did_you_mean

DEFAULT_STOPPING = "median"
# For trials whose reports are of different folds of the images, and no curve.
FOLD_BY_FOLD = "wilcoxon"
# Trials that run to their end before any is compared with them.
_WARM_UP = 4
# How probable it may be that a trial stopped by the test is as good as the best: three folds, all worse, are 1 in 8.
_DOUBT = 0.13

# Makes a rule from the last step that a trial reports, where that is known, and the factor between two rungs.
StoppingFactory = Callable[[int | None, int], BasePruner]


def _median(steps: int | None, factor: int) -> BasePruner:
    # Before the first third of a training, curves cross.
    return optuna.pruners.MedianPruner(n_startup_trials=_WARM_UP, n_warmup_steps=max(2, (steps or 0) // 3))


def _halving(steps: int | None, factor: int) -> BasePruner:
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=factor)


def _hyperband(steps: int | None, factor: int) -> BasePruner:
    return optuna.pruners.HyperbandPruner(max_resource=steps or "auto", reduction_factor=factor)


# The table of rules of early stopping, by name.
STOPPING: dict[str, StoppingFactory] = {
    "none": lambda steps, factor: optuna.pruners.NopPruner(),
    "median": _median,
    "halving": _halving,
    "hyperband": _hyperband,
    FOLD_BY_FOLD: lambda steps, factor: optuna.pruners.WilcoxonPruner(p_threshold=_DOUBT),
}


def check_stopping(name: str) -> None:
    """Raise `InputError` where there is no such rule of early stopping."""
    if name not in STOPPING:
        raise InputError(f"There is no rule of early stopping {name!r}.", fix=did_you_mean(name, STOPPING))


def make_stopping(name: str, steps: int | None, factor: int = 4) -> BasePruner:
    """The rule `name`, one of `STOPPING`.

    Args:
        name: `none`; `median`: worse than half of the trials at the same step, after the first third;
            `halving` (Li et al. 2020), `hyperband` (Li et al. 2018): the best share goes on at each rung; `wilcoxon`:
            worse than the best trial by the signed-rank test over the folds so far (Wilcoxon 1945).
        steps: The last step that a trial reports, such as its epochs; None where that is not known.
        factor: Between the steps of two rungs, for `halving` and `hyperband`.

    Raises:
        InputError: there is no such rule.

    Example:
        >>> type(make_stopping("median", steps=30)).__name__
        'MedianPruner'
    """
    check_stopping(name)
    with warnings.catch_warnings():
        # That one of them is new in Optuna is nothing that a user can act on.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return STOPPING[name](steps, factor)
