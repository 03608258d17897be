"""Operators of quantized ONNX files, undone: weights become fractions again, activations stay what they were.

What a quantizer left out because rounding implies it is put back: where the lowest integer stands for zero, numbers
below are cut off (`Relu`), and where the highest stands for six as well, above too.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from afina.models.onnx.arrays import kind_of
from afina.models.onnx.calls import Call, Value, operator
from afina.models.onnx.layers import convolution

QUANTIZED = frozenset(
    "QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv QLinearMatMul ConvInteger MatMulInteger".split()
    + [f"com.microsoft.{name}" for name in "QLinearAdd QLinearMul QLinearConcat QLinearGlobalAveragePool QGemm "
       "QLinearSigmoid QLinearLeakyRelu QLinearAveragePool QLinearSoftmax".split()]
)  # fmt: skip
_MICROSOFT = "com.microsoft."
_SIX = 0.02  # how near to 6 the highest number is where it is meant


@operator("QuantizeLinear")
def quantize(call: Call) -> Tensor:
    """The numbers as they are, without those that no integer stands for on the side of zero."""
    kind = kind_of(call.attribute("output_dtype", 2)) or np.uint8
    return _limited(call.tensor(0), call.known(1), call.known(2) if call.has(2) else np.zeros((), kind))


def _limited(x: Tensor, scale: np.ndarray, zero: np.ndarray | None) -> Tensor:
    """The tensor with the rectifier that rounding to these integers implies."""
    if zero is None or zero.size != 1 or scale.size != 1 or zero.dtype.kind not in "iu":
        return x
    lowest, highest = (np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max)
    if int(zero.reshape(-1)[0]) != lowest:
        return x
    top = float(scale.reshape(-1)[0]) * (highest - lowest)
    return F.hardtanh(x, 0.0, 6.0) if math.isclose(top, 6, abs_tol=_SIX) else torch.relu(x)


@operator("DequantizeLinear")
def dequantize(call: Call) -> Tensor:
    """Fractions of integers; what was never rounded stays as it is."""
    if not call.is_known(0) and call.tensor(0).is_floating_point():
        return call.tensor(0)
    axis = int(call.attribute("axis", 1))
    zero = call.known(2) if call.has(2) else None
    if call.attribute("block_size", 0):
        raise call.refuse("Its scales are for blocks.")
    if call.is_known(0):
        return torch.from_numpy(_fractions(call.known(0), call.known(1), zero, axis))
    x = call.tensor(0)
    shape = [1] * x.ndim
    if call.known(1).size > 1:
        shape[axis % x.ndim] = call.known(1).size
    scale = torch.from_numpy(call.known(1).astype(np.float32)).reshape(shape)
    offset = 0 if zero is None else torch.from_numpy(zero.astype(np.float32)).reshape(shape)
    return (x.float() - offset) * scale


def _fractions(integers: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, axis: int) -> np.ndarray:
    """What integers stand for, with one scale or one for each place along an axis."""
    shape = [1] * integers.ndim
    if scale.size > 1:
        shape[axis % integers.ndim] = scale.size
    shift = 0.0 if zero is None else zero.astype(np.float32).reshape(shape if zero.size > 1 else [1] * integers.ndim)
    scales = scale.astype(np.float32).reshape(shape if scale.size > 1 else [1] * integers.ndim)
    return np.asarray((integers.astype(np.float32) - shift) * scales, np.float32)


def _weight(call: Call, place: int, axis: int = 0) -> Tensor:
    """The integers at a place as fractions, by the scale and zero behind them; a weight under their name."""
    zero = call.known(place + 2) if call.has(place + 2) else None
    values = _fractions(call.known(place), call.known(place + 1), zero, axis)
    return call.module.stored(call.step.inputs[place], values, weight=True)


def _activation(call: Call, place: int) -> Tensor:
    """What flows at a place: fractions already, or integers with the scale and zero behind them."""
    x = call.tensor(place)
    if x.is_floating_point():
        return x
    return (x.float() - float(call.number(place + 2, 0))) * float(call.number(place + 1))


@operator("DynamicQuantizeLinear")
def dynamic(call: Call) -> tuple[Value, ...]:
    """The numbers as they are, with a scale of one and no offset."""
    return call.tensor(0), np.float32(1.0).reshape(()), np.zeros((), np.uint8)


@operator("QLinearConv")
def quantized_convolution(call: Call) -> Tensor:
    """A convolution in fractions."""
    bias = None
    if call.has(8):
        scale = call.known(1).astype(np.float32).reshape(-1) * call.known(4).astype(np.float32).reshape(-1)
        bias = call.module.stored(call.step.inputs[8], call.known(8).astype(np.float32) * scale, weight=True)
    plain = replace(call, values=call.values[:1])
    result = convolution(plain, _activation(call, 0), _weight(call, 3), bias)
    return _limited(result, call.known(6), call.values[7])


@operator("QLinearMatMul", f"{_MICROSOFT}QGemm")
def quantized_product(call: Call) -> Tensor:
    """A product of matrices in fractions."""
    if not call.is_known(3):
        return torch.matmul(_activation(call, 0), _activation(call, 3))
    if call.step.operator == "QLinearMatMul":
        return _limited(torch.matmul(_activation(call, 0), _weight(call, 3, 1)), call.known(6), call.values[7])
    rows = bool(call.attribute("transB", 0))
    weight = _weight(call, 3, 0 if rows else 1)
    bias = None
    if call.has(6):
        scale = call.known(1).astype(np.float32).reshape(-1) * call.known(4).astype(np.float32).reshape(-1)
        bias = call.module.stored(call.step.inputs[6], call.known(6).astype(np.float32) * scale, weight=True)
    result = F.linear(_activation(call, 0), weight if rows else weight.transpose(0, 1), bias)
    return _limited(result, call.known(7), call.values[8]) if call.has(7) else result


@operator("MatMulInteger", "ConvInteger")
def integers(call: Call) -> Tensor:
    """A product of integers, of which those of the weight stay what they are."""
    zero = call.known(3) if call.has(3) else None
    axis = 1 if call.step.operator == "MatMulInteger" else 0
    ones = np.ones(1, np.float32)
    weight = call.module.stored(call.step.inputs[1], _fractions(call.known(1), ones, zero, axis), weight=True)
    x = call.tensor(0)
    if not x.is_floating_point() and call.has(2):
        x = x.float() - torch.from_numpy(call.known(2).astype(np.float32))
    if call.step.operator == "MatMulInteger":
        return torch.matmul(x.float(), weight)
    result: Tensor = convolution(replace(call, values=call.values[:1]), x.float(), weight)
    return result


@operator(f"{_MICROSOFT}QLinearAdd", f"{_MICROSOFT}QLinearMul")
def quantized_pair(call: Call) -> Tensor:
    """A sum or a product in fractions."""
    a, b = (_operand(call, place) for place in (0, 3))
    result: Any = a + b if call.step.operator.endswith("Add") else a * b
    return _limited(result, call.known(6), call.values[7] if call.has(7) else None)


def _operand(call: Call, place: int) -> Tensor:
    return _weight(call, place) if call.is_known(place) else call.tensor(place)


@operator(f"{_MICROSOFT}QLinearConcat")
def quantized_concat(call: Call) -> Tensor:
    """Joined in fractions."""
    return torch.cat([_operand(call, place) for place in range(2, len(call.values), 3)], int(call.attribute("axis")))


@operator(*(f"{_MICROSOFT}{name}" for name in
            ("QLinearSigmoid", "QLinearLeakyRelu", "QLinearGlobalAveragePool", "QLinearSoftmax")))  # fmt: skip
def quantized_single(call: Call) -> Tensor:
    """An operator of one tensor in fractions."""
    x, kind = call.tensor(0), call.step.operator.removeprefix(f"{_MICROSOFT}QLinear")
    if kind == "Sigmoid":
        return torch.sigmoid(x)
    if kind == "LeakyRelu":
        return F.leaky_relu(x, call.attribute("alpha", 0.01))
    if kind == "Softmax":
        return F.softmax(x, int(call.attribute("axis", -1)))
    if call.attribute("channels_last", 0):
        return x.mean((1, 2), keepdim=True)
    return F.adaptive_avg_pool2d(x, 1)
