"""Each operator of ONNX that is read gives what the standard's own examples say, or is refused by name."""

import contextlib
import io
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from afina.errors import Unsupported
from afina.models.onnx import ON_ARRAYS, OPERATORS
from afina.models.onnx.calls import Call
from afina.models.onnx.file import Step, plain_kind

# Examples of what is read otherwise on purpose, or that have no answer that all agree on.
_OTHERWISE = {
    "QuantizeLinear": "rounding is undone",
    "DynamicQuantizeLinear": "rounding is undone",
    "QLinearConv": "rounding is undone",
    "QLinearMatMul": "rounding is undone",
    "training_dropout": "in training units are drawn at random",
    "top_k_same_values": "which of equal values is first is left open",
    "convinteger_with_padding": "a zero point with two numbers",
    "empty_set": "nothing to take the largest of",
    "edge_cases_fmod": "the sign of zero",
    "bitwise_not_3d": "torch has no unsigned numbers of 16 bits to turn around",
}
_KINDS = ("uint16", "uint32", "uint64", "float16", "bfloat16", "fp16", "bf16", "e4m3", "e5m2", "float4", "int4", "int2")
_ALL_TENSORS = frozenset(
    "Einsum Concat Max Min Sum Mean Where GatherND ScatterND ScatterElements Attention Add Mul Pow MatMul Gemm".split()
)


class _Holder:
    """What operators ask of the module that they are part of."""

    path, count, images = Path("example.onnx"), 1, "images"

    def __init__(self, opset: int) -> None:
        self.opset = opset

    def stored(self, name: str, array: Any, transposed: bool = False, flat: bool = False, **_: bool) -> torch.Tensor:
        array = array.swapaxes(-1, -2) if transposed else array.reshape(-1) if flat else array
        return torch.from_numpy(np.array(array, order="C"))

    def is_weight(self, name: str) -> bool:
        return True

    def resized(self, step: Step, x: torch.Tensor, sizes: list[int]) -> list[int]:
        return sizes

    def repeated(self, step: Step, tensors: list[torch.Tensor], axis: int) -> list[torch.Tensor]:
        return tensors


@cache
def _examples() -> dict[str, list[Any]]:
    """The standard's examples of one node each, by operator."""
    from onnx.backend.test.case.node import collect_testcases

    found: dict[str, list[Any]] = {}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        for case in collect_testcases(None):
            if case.model is not None and len(case.model.graph.node) == 1:
                node = case.model.graph.node[0]
                if node.domain in ("", "ai.onnx") and not any(
                    word in case.name.lower() for word in (*_KINDS, *_OTHERWISE)
                ):
                    found.setdefault(node.op_type, []).append(case)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        value = onnx.numpy_helper.to_array(value)
    value = plain_kind(np.asarray(value))
    return value.astype(np.int64) if value.dtype.kind == "u" and value.dtype != np.uint8 else value


def _attribute(attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, list):
        return [v.decode() if isinstance(v, bytes) else v for v in value]
    if isinstance(value, onnx.TensorProto):
        return _plain(value)
    return value.decode() if isinstance(value, bytes) else value


def _answers(case: Any, on_arrays: bool) -> tuple[list[Any], list[Any]]:
    """What the operator gives for a case, and what it should."""
    node = case.model.graph.node[0]
    opset = next(entry.version for entry in case.model.opset_import if entry.domain in ("", "ai.onnx"))
    step = Step(
        case.name, node.op_type, tuple(node.input), tuple(node.output), {a.name: _attribute(a) for a in node.attribute}
    )
    inputs, outputs = case.data_sets[0]
    rest = iter(inputs)
    values = [_plain(next(rest)) if name else None for name in node.input]
    if not on_arrays:
        tensors = range(len(values)) if node.op_type in _ALL_TENSORS else (0,)
        for place in tensors:
            if place < len(values) and values[place] is not None:
                values[place] = torch.from_numpy(np.array(values[place], order="C"))
    call = Call(step, tuple(values), _Holder(opset))  # type: ignore[arg-type]
    with torch.no_grad():
        given = (ON_ARRAYS if on_arrays else OPERATORS)[node.op_type](call)
    given = given if isinstance(given, tuple) else (given,)
    return [g for g, name in zip(given, step.outputs, strict=False) if name], list(outputs)


def _is_text(case: Any) -> bool:
    return any(i.type.tensor_type.elem_type in (0, onnx.TensorProto.STRING) for i in case.model.graph.input)


_LISTS = {"SplitToSequence", "SequenceAt", "SequenceConstruct", "ConcatFromSequence"}  # see test_onnx_models.py
_NAMES = sorted((set(OPERATORS) | set(ON_ARRAYS)) - {"Linear"} - set(_OTHERWISE) - _LISTS)


@pytest.mark.parametrize("name", [name for name in _NAMES if "." not in name])
def test_operators_give_what_the_standards_examples_say(name: str) -> None:
    right = 0
    refused = []
    for case in _examples().get(name, []):
        if _is_text(case):
            continue
        for on_arrays in (False, True):
            if name not in (ON_ARRAYS if on_arrays else OPERATORS):
                continue
            try:
                given, wanted = _answers(case, on_arrays)
            except Unsupported as error:
                refused.append(str(error))
                continue
            for value, expected in zip(given, wanted, strict=False):
                expected = _plain(expected).astype(np.float64)
                value = np.asarray(value).astype(np.float64)
                assert value.shape == expected.shape, case.name
                assert np.allclose(value, expected, rtol=1e-4, atol=1e-4, equal_nan=True), case.name
            right += 1
    assert right or name in _WITHOUT_EXAMPLE or refused, name
    assert all(name in text for text in refused)


# No example of one node, or only examples of types that are left out above.
_WITHOUT_EXAMPLE = frozenset(
    "Upsample Scatter CastLike MatMulInteger ConvInteger BitwiseNot BitwiseAnd BitwiseOr BitwiseXor BitShift "
    "GlobalLpPool MeanVarianceNormalization Constant Flatten".split()
)


def test_nearly_all_examples_are_read_and_not_refused() -> None:
    counts = {True: 0, False: 0}
    for name in _NAMES:
        for case in _examples().get(name, []):
            if not _is_text(case) and name in OPERATORS:
                try:
                    _answers(case, False)
                    counts[True] += 1
                except Unsupported:
                    counts[False] += 1
    assert counts[True] > 750
    assert counts[False] < 0.15 * counts[True]
