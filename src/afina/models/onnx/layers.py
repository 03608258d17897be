"""Layers of ONNX as torch's: convolutions, pooling, norms, products of matrices, attention."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from afina.models.onnx.calls import Call, operator

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVERAGES: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMA: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_EPSILON = 1e-5


def _numbers(call: Call, name: str, default: int, count: int) -> list[int]:
    return [int(n) for n in call.attribute(name, [default] * count)]


def paddings(
    call: Call, x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]
) -> tuple[list[int], list[int]]:
    """The padding before and after each spatial dimension, also where the file says only `SAME_UPPER`."""
    count, way = len(kernel), call.attribute("auto_pad", "NOTSET")
    if way in ("NOTSET", "", "VALID"):
        pads = [0] * (2 * count) if way == "VALID" else _numbers(call, "pads", 0, 2 * count)
        return pads[:count], pads[count:]
    begin, end = [], []
    for size, width, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + (width - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if way == "SAME_UPPER" else large)
        end.append(large if way == "SAME_UPPER" else small)
    return begin, end


def padded(x: Tensor, begin: list[int], end: list[int], value: float = 0.0) -> Tensor:
    """The tensor with that many values more before and after its last dimensions."""
    pairs = [(a, b) for a, b in zip(begin, end, strict=True)]
    return F.pad(x, list(itertools.chain.from_iterable(reversed(pairs))), value=value)


@operator("Conv")
def convolution(call: Call, x: Tensor | None = None, weight: Tensor | None = None, bias: Any = None) -> Tensor:
    """A convolution; padding that is not the same on both sides is a step of its own."""
    x = call.tensor(0) if x is None else x
    weight = call.tensor(1) if weight is None else weight
    bias = _bias(call, 2) if bias is None else bias
    kernel = [int(n) for n in weight.shape[2:]]
    strides, dilations = (_numbers(call, name, 1, len(kernel)) for name in ("strides", "dilations"))
    begin, end = paddings(call, x, kernel, strides, dilations)
    if begin != end or any(n < 0 for n in begin):
        x, begin = padded(x, begin, end), [0] * len(kernel)
    layer = _CONVOLUTIONS.get(len(kernel))
    if layer is None:
        raise call.refuse(f"It has {len(kernel)} spatial dimensions.")
    return layer(x, weight, bias, strides, begin, dilations, int(call.attribute("group", 1)))


def _bias(call: Call, place: int) -> Tensor | None:
    """A bias; None where exporters fill in zeros for one that is not there."""
    if call.has(place) and call.is_known(place) and not call.known(place).any():
        return call.tensor(place) if call.module.is_weight(call.step.inputs[place]) else None
    return call.optional(place)


@operator("ConvTranspose")
def transposed(call: Call) -> Tensor:
    """A transposed convolution; what padding cannot say is cut off or added behind it."""
    x, weight = call.tensor(0), call.tensor(1)
    kernel = [int(n) for n in weight.shape[2:]]
    strides, dilations = (_numbers(call, name, 1, len(kernel)) for name in ("strides", "dilations"))
    more = _numbers(call, "output_padding", 0, len(kernel))
    whole = [
        (size - 1) * stride + (width - 1) * dilation + 1 + extra
        for size, stride, width, dilation, extra in zip(x.shape[2:], strides, kernel, dilations, more, strict=True)
    ]
    begin, end = _transposed_paddings(call, whole, x, strides)
    # torch takes away `padding` on both sides, and adds `output_padding` at the end.
    layer = _TRANSPOSED.get(len(kernel))
    if layer is None:
        raise call.refuse(f"It has {len(kernel)} spatial dimensions.")
    groups, bias = int(call.attribute("group", 1)), _bias(call, 2)
    extra = [a - b + n for a, b, n in zip(begin, end, more, strict=True)]
    if all(0 <= e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)) and min(begin) >= 0:
        return layer(x, weight, bias, strides, begin, extra, groups, dilations)
    full = layer(x, weight, bias, strides, 0, more, groups, dilations)
    return padded(full, [-n for n in begin], [-n for n in end])


def _transposed_paddings(call: Call, whole: list[int], x: Tensor, strides: list[int]) -> tuple[list[int], list[int]]:
    """What is cut off the whole output before and after."""
    count, way = len(whole), call.attribute("auto_pad", "NOTSET")
    shape = call.attribute("output_shape")
    if shape is None and way in ("NOTSET", "", "VALID"):
        pads = [0] * (2 * count) if way == "VALID" else _numbers(call, "pads", 0, 2 * count)
        return pads[:count], pads[count:]
    wanted = list(shape)[-count:] if shape is not None else [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    total = [a - b for a, b in zip(whole, wanted, strict=True)]
    small, large = [max(n, 0) // 2 for n in total], [n - max(n, 0) // 2 for n in total]
    if way == "SAME_UPPER" or min(total) < 0:  # what is missing is added at the end
        return small, large
    return large, small


@operator("AveragePool")
def average(call: Call) -> Tensor:
    """A mean over windows."""
    x, kernel = call.tensor(0), [int(n) for n in call.attribute("kernel_shape")]
    strides, dilations = (_numbers(call, name, 1, len(kernel)) for name in ("strides", "dilations"))
    if any(n != 1 for n in dilations):
        raise call.refuse("Its windows are dilated.")
    begin, end = paddings(call, x, kernel, strides, dilations)
    counts_padding = bool(call.attribute("count_include_pad", 0))
    up = bool(call.attribute("ceil_mode", 0))
    layer = _AVERAGES[len(kernel)]
    if begin == end and all(2 * p <= k for p, k in zip(begin, kernel, strict=True)):
        return layer(x, kernel, strides, begin, up, counts_padding)
    mean = layer(padded(x, begin, end), kernel, strides, 0, up)
    if counts_padding:
        return mean
    return mean / layer(padded(torch.ones_like(x[:1, :1]), begin, end), kernel, strides, 0, up)


@operator("MaxPool")
def maximum(call: Call) -> Tensor | tuple[Tensor, Tensor]:
    """The largest of windows; where they are is told within each channel, which is all that `MaxUnpool` asks."""
    x, kernel = call.tensor(0), [int(n) for n in call.attribute("kernel_shape")]
    strides, dilations = (_numbers(call, name, 1, len(kernel)) for name in ("strides", "dilations"))
    begin, end = paddings(call, x, kernel, strides, dilations)
    if begin != end or any(2 * p > k for p, k in zip(begin, kernel, strict=True)):
        x, begin = padded(x, begin, end, -math.inf), [0] * len(kernel)
    up, places = bool(call.attribute("ceil_mode", 0)), len(call.step.outputs) > 1 and bool(call.step.outputs[1])
    if places and (len(kernel) != 2 or call.attribute("storage_order", 0)):
        raise call.refuse("It tells places column by column, or in other than two dimensions.")
    result: Tensor = _MAXIMA[len(kernel)](x, kernel, strides, begin, dilations, up, places)
    return result


@operator("MaxUnpool")
def unpooled(call: Call) -> Tensor:
    """Maxima put back to where they were."""
    x, kernel = call.tensor(0), [int(n) for n in call.attribute("kernel_shape")]
    strides = _numbers(call, "strides", 1, len(kernel))
    begin = _numbers(call, "pads", 0, 2 * len(kernel))
    if len(kernel) != 2:
        raise call.refuse("It has other than two dimensions.")
    height, width = (
        (n - 1) * s - begin[i] - begin[i + 2] + k
        for i, (n, s, k) in enumerate(zip(x.shape[2:], strides, kernel, strict=True))
    )
    if call.has(2) and call.sizes(2)[2:] != [height, width]:
        raise call.refuse("Its output has another size than its windows fill.")
    return F.max_unpool2d(x, call.tensor(1) % (height * width), kernel, strides, output_size=(height, width))


@operator("LpPool")
def norm_pool(call: Call) -> Tensor:
    """A norm over windows."""
    if any(n != 1 for n in call.attribute("dilations", [])) or call.attribute("ceil_mode", 0):
        raise call.refuse("Its windows are dilated, or reach beyond the map.")
    x, kernel = call.tensor(0), [int(n) for n in call.attribute("kernel_shape")]
    power = float(call.attribute("p", 2))
    strides = _numbers(call, "strides", 1, len(kernel))
    begin, end = paddings(call, x, kernel, strides, [1] * len(kernel))
    mean = _AVERAGES[len(kernel)](padded(x.abs().pow(power), begin, end), kernel, strides)
    return (mean * math.prod(kernel)).pow(1 / power)


@operator("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def whole_pool(call: Call) -> Tensor:
    """One number for each channel."""
    x = call.tensor(0)
    if call.step.operator == "GlobalAveragePool" and x.ndim == 4:
        return F.adaptive_avg_pool2d(x, 1)
    axes = list(range(2, x.ndim))
    if call.step.operator == "GlobalMaxPool":
        return x.amax(axes, keepdim=True)
    if call.step.operator == "GlobalAveragePool":
        return x.mean(axes, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(x, call.attribute("p", 2), axes, keepdim=True)
    return norm


@operator("BatchNormalization")
def batch_norm(call: Call) -> Tensor:
    """A batch norm by its running statistics, which training updates."""
    if call.attribute("training_mode", 0):
        raise call.refuse("It is in training form: it mixes the images of a batch.")
    mean, variance = call.statistic(3), call.statistic(4)
    momentum, epsilon = 1 - call.attribute("momentum", 0.9), call.attribute("epsilon", _EPSILON)
    return F.batch_norm(call.tensor(0), mean, variance, call.tensor(1), call.tensor(2), False, momentum, epsilon)


@operator("InstanceNormalization")
def instance_norm(call: Call) -> Tensor:
    """A norm of each channel of each image."""
    return F.instance_norm(
        call.tensor(0), None, None, call.tensor(1), call.tensor(2), True, 0.1, call.attribute("epsilon", _EPSILON)
    )


@operator("LayerNormalization")
def layer_norm(call: Call) -> Tensor:
    """A norm over the last dimensions."""
    if len(call.step.outputs) > 1 and any(call.step.outputs[1:]):
        raise call.refuse("Its mean or deviation is used.")
    x, axis = call.tensor(0), int(call.attribute("axis", -1))
    shape = [int(n) for n in x.shape[axis % x.ndim :]]
    epsilon, weight, bias = call.attribute("epsilon", _EPSILON), call.tensor(1), call.optional(2)
    if list(weight.shape) == shape:
        return F.layer_norm(x, shape, weight, bias, epsilon)
    scaled = F.layer_norm(x, shape, eps=epsilon) * weight
    return scaled if bias is None else scaled + bias


@operator("RMSNormalization")
def rms_norm(call: Call) -> Tensor:
    """A norm by the root of the mean square."""
    x, axis = call.tensor(0), int(call.attribute("axis", -1))
    shape = [int(n) for n in x.shape[axis % x.ndim :]]
    return F.rms_norm(x, shape, call.tensor(1), call.attribute("epsilon", _EPSILON))


@operator("GroupNormalization")
def group_norm(call: Call) -> Tensor:
    """A norm of groups of channels; before version 21 with one scale for each group."""
    x, groups, epsilon = call.tensor(0), int(call.attribute("num_groups")), call.attribute("epsilon", _EPSILON)
    weight, bias = call.tensor(1), call.tensor(2)
    if weight.numel() == groups != x.shape[1]:
        weight, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (weight, bias))
    return F.group_norm(x, groups, weight, bias, epsilon)


@operator("LRN")
def local_norm(call: Call) -> Tensor:
    """A norm over neighbouring channels."""
    size = int(call.attribute("size"))
    if size % 2 == 0:
        raise call.refuse("Its windows have an even size.")
    alpha, beta = call.attribute("alpha", 1e-4), call.attribute("beta", 0.75)
    return F.local_response_norm(call.tensor(0), size, alpha, beta, call.attribute("bias", 1.0))


@operator("LpNormalization")
def unit_length(call: Call) -> Tensor:
    """Vectors of length one."""
    x, axis = call.tensor(0), int(call.attribute("axis", -1))
    return F.normalize(x, p=call.attribute("p", 2), dim=axis)


@operator("MeanVarianceNormalization")
def standardized(call: Call) -> Tensor:
    """Of mean 0 and variance 1 over some dimensions."""
    x, axes = call.tensor(0), [int(n) for n in call.attribute("axes", [0, 2, 3])]
    if any(axis % x.ndim == 0 for axis in axes):
        raise call.refuse("It mixes the images of a batch.")
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True).sqrt() + 1e-9)


@operator("Dropout")
def dropout(call: Call) -> Tensor:
    """Nothing in inference; in training, units are left out."""
    ratio = call.attribute("ratio", 0.5)
    if call.has(1):
        ratio = call.number(1)
    return F.dropout(call.tensor(0), float(ratio), False)


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax(call: Call) -> Tensor:
    """Shares of a whole; before version 13 over all dimensions from one on."""
    x, kind = call.tensor(0), call.step.operator
    newer = call.opset >= 13
    axis = int(call.attribute("axis", -1 if newer else 1)) % x.ndim
    shape = x.shape
    if not newer and axis != x.ndim - 1 and any(n != 1 for n in shape[axis + 1 :]):
        x, axis = x.flatten(axis), axis
    if kind == "Hardmax":
        result = torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)
    else:
        result = F.softmax(x, axis) if kind == "Softmax" else F.log_softmax(x, axis)
    return result if result.shape == shape else result.reshape(shape)


@operator("MatMul")
def matmul(call: Call) -> Tensor:
    """A product; with a weight, a linear layer."""
    if not call.is_known(0) and call.is_known(1) and call.known(1).ndim == 2 and call.tensor(0).ndim > 1:
        return F.linear(call.tensor(0), call.matrix(1))
    return torch.matmul(call.tensor(0), call.tensor(1))


@operator("Linear")
def linear(call: Call) -> Tensor:
    """A product with a weight and what is added behind it (no operator of ONNX: `joined.py` makes it)."""
    return F.linear(call.tensor(0), call.matrix(1), call.tensor(2))


@operator("Gemm")
def gemm(call: Call) -> Tensor:
    """A product of matrices and a sum; with a weight, a linear layer."""
    x = call.tensor(0)
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    x = x.transpose(0, 1) if call.attribute("transA", 0) else x
    bias = call.optional(2)
    bias = bias * beta if bias is not None and beta != 1 else bias
    if not call.is_known(1):
        other = call.tensor(1)
        result = torch.matmul(x, other.transpose(0, 1) if call.attribute("transB", 0) else other)
    else:
        weight = call.tensor(1) if call.attribute("transB", 0) else call.matrix(1)
        if alpha == 1 and (bias is None or bias.shape == weight.shape[:1]):
            return F.linear(x, weight, bias)
        result = F.linear(x, weight)
    result = result if alpha == 1 else result * alpha
    return result if bias is None else result + bias


@operator("Einsum")
def einsum(call: Call) -> Tensor:
    """A sum of products by an equation."""
    return torch.einsum(call.attribute("equation"), *(call.tensor(place) for place in range(len(call.values))))


@operator("Attention")
def attention(call: Call) -> Tensor:
    """Scaled dot-product attention of queries, keys and values `[N, heads, tokens, features]`, or joined heads."""
    if len(call.values) > 4 and any(value is not None for value in call.values[4:]):
        raise call.refuse("It keeps a cache of keys and values.")
    if call.attribute("softcap", 0.0) or call.attribute("qk_matmul_output_mode", 0):
        raise call.refuse("It limits its scores.")
    if any("window" in name for name in call.step.attributes):
        raise call.refuse("It looks at windows.")
    query, key, value = (call.tensor(place) for place in range(3))
    joined = query.ndim == 3
    if joined:
        queries, keys = int(call.attribute("q_num_heads")), int(call.attribute("kv_num_heads"))
        query, key, value = (
            t.unflatten(2, (n, -1)).transpose(1, 2) for t, n in ((query, queries), (key, keys), (value, keys))
        )
    mask, causal = call.optional(3), bool(call.attribute("is_causal", 0))
    if mask is not None and causal:
        below = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
        mask = mask & below if mask.dtype == torch.bool else mask.masked_fill(~below, -math.inf)
    groups, alone = query.shape[1] != key.shape[1], causal and mask is None
    result = F.scaled_dot_product_attention(
        query, key, value, mask, is_causal=alone, scale=call.attribute("scale"), enable_gqa=groups
    )
    return result.transpose(1, 2).flatten(2) if joined else result
