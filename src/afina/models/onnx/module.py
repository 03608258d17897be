"""`OnnxModule`: the nodes of an ONNX file as a module that torch can capture, with the file's weights by name.

What does not depend on images is computed once, when the module is made. Each other node calls torch's operators, so
that `capture` sees a graph like that of a network written in PyTorch: batch norms and dropout can be trained, weights
are parameters.

**The number of images.** Most files are exported for one image, and hold that number wherever it was known: a
reshape to `[1, 3, 85, -1]`. The network is followed twice without data, for the file's number and for twice as many,
and where a reshape meets twice as many numbers, it is noted which of its sizes has to grow:

    x       [1, 255, 52, 52]  ->  [2, 255, 52, 52]     twice as many numbers, from dimension 0 on
    sizes   [1, 3, 85, 2704]      no longer fit; size 0 has as much before it (nothing): it becomes [N, 3, 85, 2704]

Where that does not end in outputs with one row for each image, the file keeps its number, and the network runs in
parts of it.
"""

import keyword
import math
import re
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from afina.errors import AfinaError, InputError, Unsupported, first_lines
from afina.models.onnx.calls import ON_ARRAYS, OPERATORS, Call, Size, Value, is_symbol
from afina.models.onnx.file import OnnxGraph, Step, unsupported_step
from afina.models.onnx.joined import join_layers
from afina.models.onnx.preparing import (
    constant_weights,
    growing,
    is_of_exporter,
    last_uses,
    layout,
    needed,
    tensor_of,
)

_MOST_ELEMENTS = 2**31  # of one value, for two images
# What leaves weights what they are, in another form: folded, and known by the weight's name still.
_FORMS = frozenset("Identity Transpose Reshape Squeeze Unsqueeze Flatten Cast DequantizeLinear".split())
_NOT_FOLDED = frozenset("Dropout QuantizeLinear".split())
_SIZES = frozenset(("Shape", "Size"))
_DRAWING = frozenset("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli".split())
# What torch and numpy raise for nodes that do not fit together.
_FAULTS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
_MIXED = 1e-2  # relative; rounding alone changes less where an image is computed beside another


class OnnxModule(nn.Module):
    """A module over the nodes of an ONNX file.

    Args:
        graph: The file.
        size: Height and width that the images have to have.
        suggested: Those that they should have where the file leaves them open.

    Attributes:
        input_size: Channels, height and width of its images.
        batch_size: The number of images that it is fixed to; None where it takes any.

    It takes images `[N, C, H, W]` (a file that wants the channels last gets them so) and gives its outputs by name.

    Raises:
        InputError: it does not fit together, takes no pictures of 1 or 3 channels, or asks for absurd sizes.
        Unsupported: an operator, or a form of it, is not read.
    """

    def __init__(
        self, graph: OnnxGraph, size: tuple[int, int] | None = None, suggested: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.path, self.opset, self.outputs = graph.path, graph.opset, graph.outputs
        self.images, self.kind = graph.input, graph.kind
        self.channels_last, self.input_size = layout(graph, size, suggested)
        self.file_batch = graph.shape[0]
        self.batch_size: int | None = None
        self._places: dict[tuple[str, bool, bool, bool], str] = {}
        self._grows: dict[str, int] = {}
        self._repeats: dict[str, tuple[int, ...]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._sizes: dict[str, list[Size]] = {}
        self._learns = False
        self.arrays: dict[str, np.ndarray] = dict(graph.constants)
        self.arrays.update(graph.weights)
        self._weights = {name: name for name in (*graph.weights, *constant_weights(graph))}
        for step in graph.steps:
            if step.operator not in OPERATORS and step.operator not in ON_ARRAYS:
                why = "It draws random numbers." if step.operator in _DRAWING else ""
                raise unsupported_step(step, self.path, why)
        steps = self._folded(needed(graph.steps, graph.outputs))
        self.steps = join_layers(steps, self.arrays, graph.outputs)
        self._follow()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        size = self.batch_size
        if size is None or images.shape[0] == size:
            return self._run(images)
        # Each image by itself, as often as the file wants it: then its place among others does not matter.
        parts = [self._run(part.expand(size, *part.shape[1:])) for part in images.split(1)]
        return {name: torch.cat([part[name][:1] for part in parts]) for name in self.outputs}

    def stored(
        self,
        name: str,
        array: np.ndarray,
        *,
        transposed: bool = False,
        trained: bool = True,
        flat: bool = False,
        weight: bool = False,
    ) -> Tensor:
        """The array of that value as a parameter (a weight of the file) or as a constant, which it becomes once."""
        if array.dtype == object:
            return torch.stack([torch.scalar_tensor(n, dtype=torch.int64) for n in array.reshape(-1)]).reshape(
                array.shape
            )
        key = (name, transposed, trained, flat)
        other = (name, not transposed, trained, flat)
        if key not in self._places and other in self._places:  # one weight, read in two forms
            return self._kept_tensor(self._places[other]).transpose(-1, -2)
        if key not in self._places:
            with unset_fake_temporarily():
                values = tensor_of(array.swapaxes(-1, -2) if transposed else array.reshape(-1) if flat else array)
                if self._folding:
                    return values
                is_weight = weight or (trained and values.is_floating_point() and self.is_weight(name))
                self._places[key] = self._kept(self._weights.get(name) or name, values, is_weight)
        return self._kept_tensor(self._places[key])

    def _kept_tensor(self, path: str) -> Tensor:
        owner, _, attribute = path.rpartition(".")
        tensor: Tensor = getattr(self.get_submodule(owner), attribute)
        return tensor

    def is_weight(self, name: str) -> bool:
        """Whether a value is one of the file's initializers, in whatever form."""
        return bool(self._weights.get(name))

    def resized(self, step: Step, x: Tensor, sizes: list[Size]) -> list[Size]:
        """The sizes of a reshape of `x`, of which one grows with the number of images where the file has it fixed."""
        if self._following and not self._learns:
            self._sizes[step.outputs[0]] = list(sizes)
        if self._learns and step.inputs[0] in self._shapes and self._sizes.get(step.outputs[0]) == sizes:
            place = growing(self._shapes[step.inputs[0]], tuple(x.shape), self._shapes[step.outputs[0]])
            if place is not None and sizes[place] != -1 and not is_symbol(sizes[place]):
                self._grows[step.outputs[0]] = place
        place = self._grows.get(step.outputs[0])
        if place is None or self.file_batch is None:
            return sizes
        sizes = list(sizes)
        sizes[place] = sizes[place] // self.file_batch * self.count
        return sizes

    def repeated(self, step: Step, tensors: list[Tensor], axis: int) -> list[Tensor]:
        """What is joined, of which tensors that the file has once are repeated for each image."""
        if self._learns and step.outputs[0] in self._shapes and axis != 0:
            most = max(int(tensor.shape[0]) for tensor in tensors)
            single = tuple(i for i, tensor in enumerate(tensors) if tensor.shape[0] == 1 < most)
            if single:
                self._repeats[step.outputs[0]] = single
        for place in self._repeats.get(step.outputs[0], ()):
            tensors[place] = tensors[place].expand(self.count, *tensors[place].shape[1:])
        return tensors

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        self.count: Size = images.shape[0]
        values: dict[str, Value] = {self.images: images.permute(0, 2, 3, 1) if self.channels_last else images}
        for step, spent in zip(self.steps, self._spent, strict=True):
            try:
                given = self._computed(step, values)
            except (AfinaError, torch.fx.experimental.symbolic_shapes.ConstraintViolationError):
                raise
            except _FAULTS as error:
                if torch.compiler.is_exporting():
                    raise
                raise InputError(
                    f"{self.path}: {step.operator} ({step.name}) cannot be computed.",
                    why=first_lines(error, 2),
                    fix="Check the file with onnx.checker and ONNX Runtime; if they take it, please report it.",
                ) from error
            values.update(zip(step.outputs, given, strict=False))
            for name in spent:
                values.pop(name, None)
        return {name: self._output(name, values) for name in self.outputs}

    def _computed(self, step: Step, values: dict[str, Value]) -> tuple[Value, ...]:
        call = Call(step, tuple(self._value(name, values) for name in step.inputs), self)
        known = all(value is None or isinstance(value, np.ndarray) for value in call.values)
        table = ON_ARRAYS if known and step.operator in ON_ARRAYS else OPERATORS
        if step.operator not in table and step.operator not in ON_ARRAYS:
            raise unsupported_step(step, self.path)
        try:
            result = (table.get(step.operator) or ON_ARRAYS[step.operator])(call)
        except Unsupported:
            if table is OPERATORS or step.operator not in OPERATORS:
                raise
            result = OPERATORS[step.operator](call)
        given = result if isinstance(result, tuple) else (result,)
        if self._following:
            self._check(step, given)
        return given

    def _value(self, name: str, values: dict[str, Value]) -> Value:
        if not name:
            return None
        return values[name] if name in values else self.arrays[name]

    def _output(self, name: str, values: dict[str, Value]) -> Tensor:
        value = self._value(name, values)
        return value if isinstance(value, Tensor) else self.stored(name, value)

    def _folded(self, steps: Iterable[Step]) -> tuple[Step, ...]:
        """The nodes that depend on images; what the others give is kept as arrays."""
        self.count, self._following, self._folding = 1, False, True
        left = []
        for step in steps:
            inputs = [name for name in step.inputs if name]
            if not self._is_folded(step, inputs):
                left.append(step)
                continue
            try:
                with torch.no_grad():
                    given = self._computed_once(step)
            except _FAULTS as error:
                raise InputError(
                    f"{self.path}: {step.operator} ({step.name}) cannot be computed.", why=first_lines(error, 2)
                ) from error
            for name, value in zip(step.outputs, given, strict=False):
                self.arrays[name] = value
                if step.operator in _FORMS and self._weights.get(inputs[0]):
                    self._weights[name] = self._weights[inputs[0]]
        self._folding = False
        return tuple(left)

    def _is_folded(self, step: Step, inputs: list[str]) -> bool:
        if not all(name in self.arrays for name in inputs) or step.operator in _NOT_FOLDED:
            return False
        fractions = [n for n in inputs if self._weights.get(n) and self.arrays[n].dtype.kind == "f"]
        return not any(self.arrays[n].size > 1 for n in fractions) or step.operator in _FORMS | _SIZES

    def _computed_once(self, step: Step) -> list[np.ndarray]:
        """What a node of arrays gives, looked at without data first: it may ask for more memory than there is."""
        if step.operator not in ON_ARRAYS:
            with FakeTensorMode(allow_non_fake_inputs=True):
                self._check(step, self._computed(step, {}))
        return [v if isinstance(v, np.ndarray) else v.detach().numpy() for v in self._computed(step, {})]

    def _check(self, step: Step, given: tuple[Value, ...]) -> None:
        """Note the shapes of what a node gives. Raises `InputError` for absurd ones."""
        for name, value in zip(step.outputs, given, strict=False):
            if isinstance(value, list):
                continue
            shape = tuple(value.shape)
            if math.prod(shape) > _MOST_ELEMENTS:
                raise InputError(
                    f"{self.path}: {step.operator} ({step.name}) asks for {math.prod(shape):.2g} numbers.",
                    why=f"The shape of {name} is {list(shape)}.",
                    fix="Look for a wrong size in the file; of a file for large images, take a smaller --input-size.",
                )
            if self._following and not self._learns and isinstance(value, Tensor):
                self._shapes[name] = shape

    def _follow(self) -> None:
        """Follow shapes without data: sizes are checked, weights become parameters, and sizes that grow are noted."""
        self._spent = last_uses(self.steps, self.outputs)
        once = self._followed(self.file_batch or 1)
        self._learns = True
        try:
            twice = self._followed(2 * (self.file_batch or 1))
        except AfinaError:
            twice = None
        finally:
            self._learns = False
        if twice is None or any(b != (2 * a[0], *a[1:]) if a else True for a, b in zip(once, twice, strict=True)):
            self._fix_batch()
            if any(not shape or shape[0] != self.batch_size for shape in once):
                raise Unsupported(
                    f"{self.path} gives outputs that do not have the images as their first dimension.",
                    why=f"For {self.batch_size} images they are {', '.join(map(str, map(list, once)))}.",
                    fix="Export it with outputs [N, ...].",
                )
        self._shapes.clear()
        self._sizes.clear()
        if self.batch_size is None and self.file_batch is not None and self._mixes():
            self._fix_batch()

    def _fix_batch(self) -> None:
        """Keep to the file's number of images."""
        self.batch_size = self.file_batch or 1
        self._grows.clear()
        self._repeats.clear()

    def _mixes(self) -> bool:
        """Whether an image changes what the network gives for another, which a file of a fixed number may do."""
        count = self.file_batch or 1
        images = torch.randn(2 * count, *self.input_size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            try:
                together = self._run(images)
            except AfinaError:
                return True
            apart = [self._run(part) for part in images.split(count)]
        for name, value in together.items():
            wanted = torch.cat([part[name] for part in apart]).double()
            if not float((value.double() - wanted).norm()) <= _MIXED * float(wanted.norm().clamp_min(1e-12)):
                return True
        return False

    def _followed(self, count: int) -> list[tuple[int, ...]]:
        self._following = True
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        try:
            with torch.no_grad(), mode:
                given = self._run(torch.empty(count, *self.input_size))
        finally:
            self._following = False
        return [tuple(given[name].shape) for name in self.outputs]

    def _kept(self, name: str, values: Tensor, is_weight: bool) -> str:
        """Keep a tensor under the file's name, whose dots are modules; gives the path."""
        parts = [part + "_" * keyword.iskeyword(part) for part in re.split(r"\.+", name) if part] or ["constant"]
        owner: nn.Module = self
        for index, part in enumerate(parts[:-1]):
            inside = owner._modules.get(part)
            if inside is None:
                if hasattr(owner, part):  # a weight, or an attribute of modules, has that name
                    parts = [*parts[:index], "_".join(parts[index:])]
                    break
                inside = nn.Module()
                owner.add_module(part, inside)
            owner = inside
        if len(parts) == 1 and is_of_exporter(parts[0]):
            parts = [f"{parts[0]}_{'weight' if is_weight else 'constant'}"]
        last, number = parts[-1], 2
        while hasattr(owner, last):
            last, number = f"{parts[-1]}_{number}", number + 1
        if is_weight:
            owner.register_parameter(last, nn.Parameter(values))
        else:
            owner.register_buffer(last, values)
        return ".".join([*parts[:-1], last])
