"""The table of samplers, which installed packages can extend.

Another package adds one by an entry point of the group `afina.samplers`:

    [project.entry-points."afina.samplers"]
    halton = "mypackage.samplers:make_halton"

The contract: what the entry point refers to is called as `make_halton(space, seed)`, with the `Space` that is searched
and a seed (None for a different one each time), and returns a sampler of Optuna (`optuna.samplers.BaseSampler`).
What its suggestions must promise is checked by `afina.testing.samplers`.
"""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.samplers import BaseSampler

from afina.errors import AfinaError, InputError
from afina.extensions import BrokenContract, Table
from afina.search.grid import GridSampler
from afina.search.spaces import Space, make_space
from afina.search.tensor_train import TensorTrainSampler

DEFAULT_SAMPLER = "tensor-train"
GRID_POINTS = 5

# Makes a sampler from the space, a seed, and the values of each continuous parameter of a grid.
SamplerFactory = Callable[[Space, int | None, int], BaseSampler]


def _of_optuna(make: Callable[..., BaseSampler], **options: Any) -> SamplerFactory:
    """The factory of one of Optuna's samplers with these options."""

    def build(space: Space, seed: int | None, grid_points: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return make(seed=seed, **options)

    return build


def _accept(make: Any) -> SamplerFactory:
    """The factory that an entry point refers to; one sampler is made with it, to see that the contract is kept."""
    if not callable(make):
        raise BrokenContract(f"it is {make!r}, not a function or class that takes (space, seed)")
    try:
        inspect.signature(make).bind(None, None)
    except TypeError as error:
        raise BrokenContract(f"it cannot be called with (space, seed): {error}") from error
    except ValueError:
        pass  # a function without a Python signature: the call below tells
    _check_result(make(make_space({"x": {"type": "float", "low": 0, "high": 1}}), 0))

    def build(space: Space, seed: int | None, grid_points: int) -> BaseSampler:
        try:
            return _check_result(make(space, seed))
        except AfinaError:
            raise
        except Exception as error:
            name = f"{getattr(make, '__module__', '')}.{getattr(make, '__qualname__', make)}"
            raise InputError(
                "The sampler cannot be made for this space.",
                why=f"{name} raised {type(error).__name__}: {error}",
                fix="Choose another sampler, or tell its makers.",
            ) from error

    return build


def _check_result(sampler: Any) -> BaseSampler:
    """The sampler that a factory returned; raises `BrokenContract` where it is no sampler of Optuna."""
    if not isinstance(sampler, BaseSampler):
        raise BrokenContract(f"it returns {type(sampler).__name__}, not an optuna.samplers.BaseSampler")
    return sampler


SAMPLERS: Table[SamplerFactory] = Table(
    "sampler",
    "afina.samplers",
    {
        "tensor-train": lambda space, seed, grid_points: TensorTrainSampler(seed),
        "tpe": _of_optuna(optuna.samplers.TPESampler, multivariate=True, group=True, constant_liar=True),
        "gp": _of_optuna(optuna.samplers.GPSampler),
        "cmaes": _of_optuna(optuna.samplers.CmaEsSampler, warn_independent_sampling=False),
        "qmc": _of_optuna(optuna.samplers.QMCSampler, warn_independent_sampling=False),
        "random": _of_optuna(optuna.samplers.RandomSampler),
        "grid": lambda space, seed, grid_points: GridSampler(space.combinations(grid_points)),
    },
    accept=_accept,
)


def check_sampler_name(name: str) -> None:
    """Check that there is a sampler of this name, and where another package adds it, that it keeps the contract.

    Raises:
        InputError: there is none, its package cannot be imported, or it breaks the contract.

    Example:
        >>> check_sampler_name("tensortrain")
        Traceback (most recent call last):
        afina.errors.InputError: There is no sampler 'tensortrain'.
        Did you mean tensor-train?
    """
    SAMPLERS.get(name)


def make_sampler(name: str, space: Space, seed: int | None = None, grid_points: int = GRID_POINTS) -> BaseSampler:
    """The sampler `name`, one of `SAMPLERS`.

    Args:
        name: `tensor-train`, `tpe`, `gp` (needs torch), `cmaes`, `qmc`, `random`, `grid`, or what an installed package
            adds.
        space: The space that it searches.
        seed: The seed of its randomness; None for a different one each time.
        grid_points: Values of each continuous parameter in a grid.

    Raises:
        InputError: there is no such sampler, the grid has more than a million points, or another package's sampler
            cannot be used.

    Example:
        >>> space = make_space({"x": {"type": "float", "low": 0, "high": 1}})
        >>> type(make_sampler("tensor-train", space, seed=0)).__name__
        'TensorTrainSampler'
    """
    return SAMPLERS.get(name)(space, seed, grid_points)
