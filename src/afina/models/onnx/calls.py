"""`Call`: one node on its way, and the table of what is known of operators.

A value is one of two kinds:

- a `Tensor`: numbers that depend on the images, or weights;
- a numpy array: numbers that are known before there are images (sizes, scales, indices). Where a size depends on the
  number of images, the array's type is `object` and the size one of torch's symbols: arithmetic on it goes on.

An operator on arrays alone is computed with numpy (`on_arrays`), so that no arithmetic on sizes is left in the graph.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from afina.models.onnx.file import Step, unsupported_step

if TYPE_CHECKING:
    from afina.models.onnx.module import OnnxModule

Value = Any  # Tensor | np.ndarray | list of Tensor | None
Size = Any  # int | torch.SymInt
OPERATORS: dict[str, Callable[["Call"], Value | tuple[Value, ...]]] = {}
ON_ARRAYS: dict[str, Callable[["Call"], Value | tuple[Value, ...]]] = {}


def operator(*names: str) -> Callable[[Any], Any]:
    """Enters a function into the table: it gives the output of a call (or a tuple of them), of tensors."""

    def enter(function: Any) -> Any:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return enter


def on_arrays(*names: str) -> Callable[[Any], Any]:
    """As `operator`, for calls all of whose inputs are arrays."""

    def enter(function: Any) -> Any:
        ON_ARRAYS.update(dict.fromkeys(names, function))
        return function

    return enter


@dataclass(frozen=True)
class Call:
    """A node with the values that go into it.

    Attributes:
        step: The node.
        values: Its inputs; None for one that is left out.
        module: The module that it is a part of, which keeps weights and constants.
    """

    step: Step
    values: tuple[Value, ...]
    module: "OnnxModule"

    @property
    def opset(self) -> int:
        return self.module.opset

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node, or what stands for it where it has none."""
        value = self.step.attributes.get(name)
        return default if value is None else value

    def has(self, place: int) -> bool:
        """Whether there is an input at this place."""
        return place < len(self.values) and self.values[place] is not None

    def tensor(self, place: int) -> Tensor:
        """The input as a tensor: what is known becomes a weight or a constant of the module."""
        value = self.values[place]
        return value if isinstance(value, Tensor) else self.module.stored(self.step.inputs[place], value)

    def optional(self, place: int) -> Tensor | None:
        """As `tensor`; None where the input is left out."""
        return self.tensor(place) if self.has(place) else None

    def matrix(self, place: int) -> Tensor:
        """A matrix `[inputs, outputs]` as torch's layers have it, `[outputs, inputs]`."""
        value = self.values[place]
        if isinstance(value, Tensor):
            return value.transpose(-1, -2)
        return self.module.stored(self.step.inputs[place], value, transposed=True)

    def statistic(self, place: int) -> Tensor:
        """An input that training updates without gradients."""
        value = self.values[place]
        return value if isinstance(value, Tensor) else self.module.stored(self.step.inputs[place], value, trained=False)

    def is_known(self, place: int) -> bool:
        """Whether the input is known before there are images."""
        return isinstance(self.values[place], np.ndarray)

    def known(self, place: int) -> np.ndarray:
        """An input that has to be known. Raises `Unsupported` where it depends on the images."""
        value = self.values[place]
        if not isinstance(value, np.ndarray):
            raise unsupported_step(self.step, self.module.path, f"Its input {self.step.inputs[place]} is computed.")
        return value

    def sizes(self, place: int) -> list[Size]:
        """A known input as whole numbers, of which some may depend on the number of images."""
        return [size if is_symbol(size) else int(size) for size in self.known(place).reshape(-1)]

    def integers(self, name: str, place: int | None = None) -> list[Size] | None:
        """Numbers that older versions have as an attribute, and newer ones as an input; None where there are none."""
        if name in self.step.attributes:
            return [int(number) for number in np.atleast_1d(np.asarray(self.step.attributes[name]))]
        return self.sizes(place) if place is not None and self.has(place) else None

    def number(self, place: int, default: Any = None) -> Any:
        """A known input of one element as a Python number."""
        if not self.has(place):
            return default
        (number,) = self.known(place).reshape(-1).tolist()
        return number

    def operand(self, place: int, beside: Tensor | None = None) -> Any:
        """An operand of arithmetic: a plain number where the input is one element, which widens nothing."""
        value = self.values[place]
        dimensions = 0 if beside is None else beside.ndim
        if isinstance(value, np.ndarray) and value.size == 1 and value.ndim <= dimensions:
            (number,) = value.reshape(-1).tolist()
            return number
        return self.tensor(place)

    def refuse(self, why: str) -> Exception:
        """The error of a form of the operator that is not read."""
        return unsupported_step(self.step, self.module.path, why)


def is_symbol(value: Any) -> bool:
    """Whether a number depends on the number of images."""
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))


def array_of(numbers: Sequence[Any], kind: Any = np.int64) -> np.ndarray:
    """Numbers as an array: of type `object` where one of them is a symbol."""
    if any(is_symbol(number) for number in numbers):
        array = np.empty(len(numbers), object)
        array[:] = list(numbers)
        return array
    return np.asarray(list(numbers), kind)


def settled(array: np.ndarray) -> np.ndarray:
    """An array of type `object` in which no symbol is left, as whole or broken numbers."""
    flat = array.reshape(-1).tolist() if array.dtype == object else []
    if array.dtype != object or any(is_symbol(number) for number in flat):
        return array
    kind: Any = np.bool_ if flat and isinstance(flat[0], (bool, np.bool_)) else None
    if kind is None:
        kind = np.float32 if any(isinstance(number, (float, np.floating)) for number in flat) else np.int64
    return array.astype(kind)


def part_of(x: Tensor, axis: int, start: Size, end: Size, step: Size) -> Tensor:
    """The part of a tensor from `start` up to `end` (None: all) along a dimension, each `step`-th."""
    part: Tensor = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
    return part
