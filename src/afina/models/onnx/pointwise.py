"""Operators of ONNX that work on each element, compare, choose and reduce, as torch's."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from afina.models.onnx.calls import Call, operator

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "Log": torch.log, "Neg": torch.neg,
    "Reciprocal": torch.reciprocal, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign,
    "Sin": torch.sin, "Sinh": torch.sinh, "Softplus": F.softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt,
    "Tan": torch.tan, "Tanh": torch.tanh, "Relu": torch.relu, "HardSwish": F.hardswish, "Mish": F.mish,
    "Not": torch.logical_not, "IsNaN": torch.isnan, "BitwiseNot": torch.bitwise_not, "Identity": lambda x: x,
}  # fmt: skip
_BINARY: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "And": torch.logical_and, "Or": torch.logical_or,
    "Xor": torch.logical_xor, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt,
    "LessOrEqual": torch.le, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}  # fmt: skip
_SELU_ALPHA, _SELU_GAMMA = 1.6732632423543772, 1.0507009873554805


@operator(*_UNARY)
def unary(call: Call) -> Tensor:
    """An operator of one tensor."""
    return _UNARY[call.step.operator](call.tensor(0))


def operands(call: Call) -> tuple[Any, Any]:
    """Two operands, of which one may be a plain number, and one is a tensor."""
    if call.is_known(0) and not call.is_known(1):
        return call.operand(0, call.tensor(1)), call.tensor(1)
    return call.tensor(0), call.operand(1, call.tensor(0))


@operator(*_BINARY)
def binary(call: Call) -> Tensor:
    """An operator of two tensors."""
    a, b = operands(call)
    function = _BINARY[call.step.operator]
    if not isinstance(a, Tensor):  # torch takes a number second
        if call.step.operator in ("Add", "Mul", "Equal"):
            return function(b, a)
        if call.step.operator == "Sub":
            return torch.rsub(b, a)
        a = call.tensor(0)
    if not isinstance(b, Tensor) and call.step.operator in ("And", "Or", "Xor"):
        b = call.tensor(1)
    return function(a, b)


@operator("Div")
def divided(call: Call) -> Tensor:
    """A quotient; of whole numbers cut off towards zero."""
    a, b = operands(call)
    a = a if isinstance(a, Tensor) else call.tensor(0)
    quotient: Tensor = torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")
    return quotient


@operator("Mod")
def remainder(call: Call) -> Tensor:
    """A remainder with the sign of the divisor, or (`fmod`) of the dividend."""
    return (torch.fmod if call.attribute("fmod", 0) else torch.remainder)(call.tensor(0), call.tensor(1))


@operator("Pow")
def power(call: Call) -> Tensor:
    """A power, of the type of its base."""
    base = call.tensor(0)
    exponent = call.operand(1, base)
    if isinstance(exponent, float) and exponent == int(exponent):
        exponent = int(exponent)
    return torch.pow(base, exponent).to(base.dtype)


@operator("BitShift")
def shifted(call: Call) -> Tensor:
    """Bits moved up or down."""
    way = call.attribute("direction")
    return (torch.bitwise_left_shift if way == "LEFT" else torch.bitwise_right_shift)(call.tensor(0), call.tensor(1))


@operator("Max", "Min", "Sum", "Mean")
def several(call: Call) -> Tensor:
    """An operator of any number of tensors."""
    tensors = [call.tensor(place) for place in range(len(call.values))]
    pair = {"Max": torch.maximum, "Min": torch.minimum}.get(call.step.operator, torch.add)
    result = tensors[0]
    for tensor in tensors[1:]:
        result = pair(result, tensor)
    return result / len(tensors) if call.step.operator == "Mean" else result


@operator("Where")
def chosen(call: Call) -> Tensor:
    """One of two, by a condition."""
    a, b = call.operand(1, call.tensor(2)), call.operand(2, call.tensor(1))
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a = call.tensor(1)
    return torch.where(call.tensor(0).bool(), a, b)


@operator("Clip")
def clipped(call: Call) -> Tensor:
    """Cut off below and above."""
    x = call.tensor(0)
    limits: list[Any] = []
    for place, name in ((1, "min"), (2, "max")):
        if call.has(place) and not call.is_known(place):
            limits.append(call.tensor(place))
        else:
            limits.append(call.number(place, call.attribute(name)))
    low, high = limits
    if any(isinstance(limit, Tensor) for limit in limits):
        x = x if low is None else torch.maximum(x, torch.as_tensor(low))
        return x if high is None else torch.minimum(x, torch.as_tensor(high))
    if low == 0 and high is None:
        return torch.relu(x)
    if low is None and high is None:
        return x
    if low is not None and high is not None and x.is_floating_point():
        return F.hardtanh(x, low, high) if low <= high else torch.full_like(x, high)
    return torch.clamp(x, low, high)


@operator("LeakyRelu")
def leaky(call: Call) -> Tensor:
    """A rectifier with a slope below zero."""
    return F.leaky_relu(call.tensor(0), call.attribute("alpha", 0.01))


@operator("PRelu")
def parametric(call: Call) -> Tensor:
    """A rectifier with a slope for each channel."""
    x = call.tensor(0)
    if not call.is_known(1):
        slope = call.tensor(1)
        return torch.where(x >= 0, x, slope * x)
    known = call.known(1)
    along_channels = known.ndim <= 1 or (known.ndim == x.ndim - 1 and known.shape[0] == known.size)
    if known.size in (1, x.shape[1] if x.ndim > 1 else 1) and along_channels and (known.ndim > 1 or known.size == 1):
        return F.prelu(x, call.module.stored(call.step.inputs[1], known, flat=True))
    return torch.where(x >= 0, x, call.tensor(1) * x)


@operator("Elu", "Celu", "Selu", "HardSigmoid", "ThresholdedRelu", "Shrink", "Gelu", "Swish")
def activation(call: Call) -> Tensor:
    """An activation with numbers of its own."""
    x, alpha = call.tensor(0), call.attribute("alpha", 1.0)
    kind = call.step.operator
    if kind == "Elu":
        return F.elu(x, alpha)
    if kind == "Celu":
        return F.celu(x, alpha)
    if kind == "Selu":
        return _selu(x, call.attribute("alpha", _SELU_ALPHA), call.attribute("gamma", _SELU_GAMMA))
    if kind == "ThresholdedRelu":
        return F.threshold(x, alpha, 0.0)
    if kind == "Gelu":
        return F.gelu(x, approximate=call.attribute("approximate", "none"))
    if kind == "Swish":
        return F.silu(x) if alpha == 1 else x * torch.sigmoid(x * alpha)
    if kind == "Shrink":
        bias, limit = call.attribute("bias", 0.0), call.attribute("lambd", 0.5)
        return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))
    slope, offset = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    if math.isclose(slope, 1 / 6, rel_tol=1e-4) and offset == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * slope + offset, 0, 1)


def _selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    if math.isclose(alpha, _SELU_ALPHA, rel_tol=1e-6) and math.isclose(gamma, _SELU_GAMMA, rel_tol=1e-6):
        return F.selu(x)
    return gamma * F.elu(x, alpha)


@operator("IsInf")
def infinite(call: Call) -> Tensor:
    """Where numbers are infinite, of either sign or one."""
    x = call.tensor(0)
    up, down = call.attribute("detect_positive", 1), call.attribute("detect_negative", 1)
    if up and down:
        return torch.isinf(x)
    return x == (math.inf if up else -math.inf)


def axes_of(call: Call, x: Tensor, place: int = 1) -> list[int] | None:
    """The dimensions that a reduction goes over, counted from the front; None for all, empty for none."""
    axes = call.integers("axes", place)
    if not axes:
        return [] if call.attribute("noop_with_empty_axes", 0) else None
    return [axis % x.ndim for axis in axes]


def _logsumexp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=keep)


_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": _logsumexp,
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


@operator(*_REDUCTIONS)
def reduced(call: Call) -> Tensor:
    """A sum, a mean, a norm over some dimensions."""
    x = call.tensor(0)
    axes = axes_of(call, x)
    if axes == []:
        return x
    whole = list(range(x.ndim)) if axes is None else axes
    result = _REDUCTIONS[call.step.operator](x, whole, bool(call.attribute("keepdims", 1)))
    return result.to(x.dtype)


@operator("ReduceProd")
def product(call: Call) -> Tensor:
    """A product over some dimensions, one after the other."""
    x, keep = call.tensor(0), bool(call.attribute("keepdims", 1))
    axes = axes_of(call, x)
    for axis in sorted(range(x.ndim) if axes is None else axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


@operator("ArgMax", "ArgMin")
def extreme(call: Call) -> Tensor:
    """Where the largest or smallest is: the first of equal ones, or the last."""
    x, axis, keep = call.tensor(0), call.attribute("axis", 0), bool(call.attribute("keepdims", 1))
    function = torch.argmax if call.step.operator == "ArgMax" else torch.argmin
    if not call.attribute("select_last_index", 0):
        return function(x, axis, keepdim=keep)
    last: Tensor = x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)
    return last


@operator("CumSum")
def running_sum(call: Call) -> Tensor:
    """Sums of all up to each, from the front or the back, with or without itself."""
    x, axis = call.tensor(0), int(call.number(1))
    if call.attribute("reverse", 0):
        x = x.flip(axis)
    total = x.cumsum(axis)
    total = total - x if call.attribute("exclusive", 0) else total
    result: Tensor = total.flip(axis) if call.attribute("reverse", 0) else total
    return result
