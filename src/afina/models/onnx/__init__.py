"""ONNX files as models: opened with care (`file`), and made a module that torch can capture (`module`).

`calls` holds the table of operators; `pointwise`, `layers`, `shapes`, `indexing`, `resizing`, `recurrent`, `quantized`
and `arrays` fill it.
"""

from afina.models.onnx import arrays, indexing, layers, pointwise, quantized, recurrent, resizing, shapes
from afina.models.onnx.calls import ON_ARRAYS, OPERATORS
from afina.models.onnx.file import OnnxGraph, open_onnx
from afina.models.onnx.module import OnnxModule

__all__ = ["ON_ARRAYS", "OPERATORS", "OnnxGraph", "OnnxModule", "open_onnx"]
_TABLES = (arrays, indexing, layers, pointwise, quantized, recurrent, resizing, shapes)  # importing them fills it
