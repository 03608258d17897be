"""A copy of a user's module, for a capture to work on, of which only the tensors need to be copied.

`copy.deepcopy` fails on modules that hold a Python module (a configuration file that was imported), a lock, a logger or
an open file. None of these is changed by a capture, so the copy shares them with the original.
"""

import copy
from typing import Any

from torch import Tensor, nn

# What makes up a module itself: copied, and an error where it cannot be.
_OF_MODULE = ("_parameters", "_buffers", "_modules")


def duplicate(module: nn.Module) -> nn.Module:
    """A copy of `module` with tensors and submodules of its own; attributes that cannot be copied are shared.

    Example:
        >>> import math
        >>> module = nn.Linear(2, 2)
        >>> module.config = math
        >>> twin = duplicate(module)
        >>> twin.config is math, twin.weight is module.weight
        (True, False)
    """
    try:
        return copy.deepcopy(module)
    except Exception:  # whatever an attribute's own copying may raise
        shared = {id(value): value for part in module.modules() for value in _uncopyable(part)}
        return copy.deepcopy(module, {**shared, **_computed(module)})


def _uncopyable(module: nn.Module) -> list[Any]:
    """The attributes of one module, without its submodules, that cannot be copied."""
    inside: dict[int, Any] = {id(part): part for part in module.modules()}
    values = []
    for name, value in vars(module).items():
        if name in _OF_MODULE:
            continue
        try:
            copy.deepcopy(value, dict(inside))
        except Exception:  # as above
            values.append(value)
    return values


def _computed(module: nn.Module) -> dict[int, Tensor]:
    """Tensors that a forward left behind in attributes: torch copies only those that its users made."""
    return {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
