"""What a network gives: tensors with names, whatever its module returns.

The names come from the structure that the module returns. For

    {"logits": L, "features": (A, B), "loss": None}      ->  logits, features.0, features.1
    (L, A)                                               ->  out.0, out.1
    ModelOutput(logits=L, pred_boxes=B)                  ->  logits, pred_boxes
    L                                                    ->  outputs

None is left out without a word, as libraries fill fields with it that were not asked for; anything else that is not a
tensor is left out and named.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

# The name of the tensor where a module returns that alone, and what a plain tuple or list is called.
SINGLE, SEQUENCE = "outputs", "out"


def named_tensors(value: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors in what a module returned, by name, and what was left out: the name and type of each.

    Args:
        value: A tensor, or any nesting of tuples, lists, mappings and dataclasses.

    Example:
        >>> import torch
        >>> tensors, left_out = named_tensors({"logits": torch.zeros(1, 2), "maps": [torch.zeros(1), 3], "loss": None})
        >>> list(tensors), left_out
        (['logits', 'maps.0'], ('maps.1 (int)',))
        >>> list(named_tensors(torch.zeros(1))[0])
        ['outputs']
        >>> list(named_tensors((torch.zeros(1), torch.zeros(1)))[0])
        ['out.0', 'out.1']
    """
    if isinstance(value, (tuple, list)) and len(value) == 1:
        value = value[0]
    if isinstance(value, Tensor):
        return {SINGLE: value}, ()
    prefix = SEQUENCE if isinstance(value, (tuple, list)) and not _fields(value) else ""
    tensors: dict[str, Tensor] = {}
    left_out = []
    for name, part in _leaves(prefix, value):
        if isinstance(part, Tensor):
            tensors[name] = part
        elif part is not None:
            left_out.append(f"{name} ({type(part).__name__})".strip())
    return tensors, tuple(left_out)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Everything in a structure that is no structure itself, with its path as a name."""
    parts = _parts(value)
    if parts is None:
        yield name, value
        return
    for key, part in parts:
        yield from _leaves(f"{name}.{key}" if name else str(key), part)


def _parts(value: Any) -> list[tuple[Any, Any]] | None:
    """What a structure holds, by key; None where `value` is no structure."""
    if isinstance(value, Tensor):
        return None
    if isinstance(value, Mapping):
        return list(value.items())
    if _fields(value):
        return [(name, getattr(value, name)) for name in _fields(value)]
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    return None


def _fields(value: Any) -> tuple[str, ...]:
    """The names of the fields of a dataclass or named tuple."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return tuple(field.name for field in dataclasses.fields(value))
    names = getattr(value, "_fields", ())
    return tuple(names) if isinstance(value, tuple) else ()
